"""What a silo tells Prometheus, to the institution that runs it: numbers of its own work.

Between ``Doing`` and the client, which are read at every scrape, and core/exposition.py. Labels are the federation's
class names and words of this program, never a file's or a folder's name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from feddiff.core.exposition import Exposition
from feddiff.core.vitals import Vitals
from feddiff.core.wire import SOFTWARE
from feddiff.silo.client import Client
from feddiff.silo.daemon import Silo
from feddiff.silo.doing import PHASES, Doing

_P = "feddiff_silo"


def expose(address: str, folder: Path, silo: Silo, client: Client) -> Exposition:
    """Tell of a silo with this state folder at HOST:PORT from now on. Raises ConfigError."""
    exposition = Exposition(address)
    certificates = {"silo": folder / "certificate.pem", "authority": folder / "authority.pem"}
    exposition.begin(SiloMetrics(silo.name, silo.doing, client), Vitals(_P, folder, certificates))
    return exposition


class SiloMetrics:
    """Of one silo's daemon."""

    def __init__(self, name: str, doing: Doing, client: Client) -> None:
        self._name, self._doing, self._client = name, doing, client
        self._started = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        doing, client = self._doing, self._client
        yield InfoMetricFamily(_P, "What runs here.", {"silo": self._name, "software": SOFTWARE})
        phase = GaugeMetricFamily(f"{_P}_phase", "What the silo is doing: 1 for its phase.", labels=["phase"])
        now = doing.phase
        for each in PHASES:
            phase.add_metric([each], now == each)
        yield phase
        yield GaugeMetricFamily(f"{_P}_training", "Whether it is training (1 or 0).", now == "training")
        yield GaugeMetricFamily(f"{_P}_round", "The newest round that it took part in; 0 before one.", doing.round)
        yield GaugeMetricFamily(f"{_P}_rounds", "Rounds that the federation is to have; 0 if not known.", doing.rounds)
        yield GaugeMetricFamily(f"{_P}_step", "Steps done of this round's training.", doing.step)
        yield GaugeMetricFamily(f"{_P}_steps", "Steps that this round's training has.", doing.steps)
        loss = GaugeMetricFamily(f"{_P}_loss", "The newest training loss; none before one.", labels=[])
        if doing.loss == doing.loss or doing.steps:
            loss.add_metric([], doing.loss)
        yield loss
        speed = doing.images_per_second if now == "training" and doing.step else 0.0
        yield GaugeMetricFamily(f"{_P}_images_per_second", "Images a second of the training; 0 outside one.", speed)
        images = GaugeMetricFamily(f"{_P}_images", "Images that it trains on, by the rules' class.", labels=["label"])
        for label, count in sorted(doing.images.items()):
            images.add_metric([label], count)
        yield images
        moved = CounterMetricFamily(
            f"{_P}_transferred_bytes",
            "Bytes of weights and public images that came down or went up, compressed, without framing.",
            labels=["direction"],
        )
        moved.add_metric(["down"], client.received)
        moved.add_metric(["up"], client.sent)
        yield moved
        heard = self._started if client.answered_at is None else client.answered_at
        yield GaugeMetricFamily(
            f"{_P}_federator_silent_seconds",
            "Seconds since the federator last answered, or since the start if it has not yet.",
            max(time.monotonic() - heard, 0.0),
        )
