"""What both daemons tell Prometheus of themselves, whatever they are doing: certificates, disk, errors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from feddiff.core.identity import MAX_PEM_BYTES


class Vitals(logging.Handler):
    """Of one daemon; counts the errors that feddiff logs from its making on, never their texts.

    ``program``: its metrics' first words. ``certificates``: PEM files by whose they are; they may be renewed meanwhile.
    """

    def __init__(self, program: str, folder: Path, certificates: Mapping[str, Path]) -> None:
        super().__init__(logging.ERROR)
        self._program, self._folder, self._certificates = program, folder, certificates
        self._errors, self._last = 0, 0.0
        logging.getLogger("feddiff").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._errors += 1
        self._last = record.created

    def collect(self) -> Iterator[Metric]:
        """One family after the other. Sizes in bytes, times in seconds."""
        left = GaugeMetricFamily(
            f"{self._program}_certificate_remaining_seconds",
            "Seconds until a certificate expires, by whose it is.",
            labels=["holder"],
        )
        for holder, path in self._certificates.items():
            if (seconds := remaining(path)) is not None:
                left.add_metric([holder], seconds)
        yield left
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError:  # a disk that is away has no numbers, and an alert for absent ones
            pass
        else:
            yield GaugeMetricFamily(
                f"{self._program}_disk_free_bytes", "Free bytes of the disk of the state folder.", disk.free
            )
            yield GaugeMetricFamily(
                f"{self._program}_disk_used_bytes", "Used bytes of the disk of the state folder.", disk.used
            )
        yield CounterMetricFamily(f"{self._program}_errors", "Errors in the log since the start.", self._errors)
        yield GaugeMetricFamily(
            f"{self._program}_last_error_timestamp_seconds",
            "When the newest error was logged, Unix time in seconds; 0 for none since the start.",
            self._last,
        )


def remaining(path: Path) -> float | None:
    """Seconds until the certificate in a PEM file expires, of several the last; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            found = x509.load_pem_x509_certificates(file.read(MAX_PEM_BYTES))
    except (OSError, ValueError):
        return None
    return (max(each.not_valid_after_utc for each in found) - datetime.now(UTC)).total_seconds()
