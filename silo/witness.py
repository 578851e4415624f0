"""What a silo says of its model and its images beside its update: measured when due, told once.

Between the daemon and the gauge. A measurement never costs the round: what goes wrong with it is a warning. Only a
federator that is away and a certificate that is refused are the daemon's, which waits or ends.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from feddiff.core.errors import FedDiffError, FederatorUnavailable, IdentityError, RoundError
from feddiff.silo.client import Client
from feddiff.silo.gauge import Abandoned, Gauge, Told
from feddiff.silo.local import Local
from feddiff.silo.readings import Reading

ATTEMPTS = 5
"""A measurement that ends the process each time (for want of memory, say) or cannot be told is then given up."""

log = logging.getLogger("feddiff.silo")


class Witness:
    """Of one silo that has an extractor."""

    def __init__(self, gauge: Gauge, local: Local, client: Client) -> None:
        self._gauge, self._local, self._client = gauge, local, client

    def due(self, round: int) -> bool:
        return self._gauge.due(round)

    def measure(self, round: int, seed: int, told: Told) -> bool:
        """Measure the trained model of a round, if that is not done yet, and tell the federator; False if abandoned."""
        readings = self._local.readings
        if readings.begin(round) > ATTEMPTS:
            log.warning("round %d goes on without its measurement, which failed %d times", round, ATTEMPTS)
        else:
            try:
                reading = readings.kept(round) or self._measured(round, seed, told)
            except Abandoned:
                return False
            if reading is not None:
                self._heard(f"the measurement of round {round}", lambda: self._client.measure(round, reading))
        readings.settle(round)
        return True

    def _measured(self, round: int, seed: int, told: Told) -> Reading | None:
        """None if it cannot be measured. Raises Abandoned."""
        local = self._local
        vectors = local.trained.averages() or local.trained.weights()
        try:
            reading = self._gauge.measure(vectors, seed, local.folder / "features", told)
            local.readings.keep(round, reading)
        except Abandoned:
            raise
        except Exception as error:  # torch's, too: there may be memory to train, and not to measure
            log.warning("round %d is not measured: %s", round, _words(error))
            return None
        log.info("round %d measured: %s", round, "; ".join(f"{n.metric} {n.value:.4g}" for n in reading.numbers))
        return reading

    def statistics(self, told: Told) -> bytes:
        """The moments of the features of this silo's images; empty if there are none to be had, or abandoned."""
        try:
            return self._gauge.statistics(self._local.folder / "features", told)
        except Abandoned:
            return b""
        except Exception as error:
            log.warning("no statistics of the images are contributed: %s", _words(error))
            return b""

    def contribute(self, data: bytes, known: str) -> None:
        """Give statistics to the federator, unless these are the ones that it has."""
        if data and hashlib.sha256(data).hexdigest() != known:
            log.info("contributing the statistics of the images, %.1f MB", len(data) / 1e6)
            self._heard("the statistics of the images", lambda: self._client.contribute(data))

    def _heard(self, what: str, tell: Callable[[], None]) -> None:
        """Tell; a refusal is only warned of. Raises FederatorUnavailable, IdentityError, RoundError."""
        try:
            tell()
        except (FederatorUnavailable, IdentityError, RoundError):
            raise
        except FedDiffError as error:
            log.warning("%s: %s", what, error.sentence)


def _words(error: Exception) -> str:
    """One line of an error that may be anybody's."""
    if isinstance(error, FedDiffError):
        return error.sentence
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
