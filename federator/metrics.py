"""What a federator tells Prometheus: the answer of ``status``, and what the ledger has summed up, as numbers.

Between the federation, which is asked at every scrape, and core/exposition.py. No question here grows with the rounds
that have gone by. Labels are names of enrolled silos, of segments, and words of this program: what a silo calls its own
metrics or phases makes no series.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from feddiff.core.exposition import Exposition
from feddiff.core.quality import OWN_IMAGES
from feddiff.core.spool import POOL
from feddiff.core.vitals import Vitals
from feddiff.core.wire import SOFTWARE
from feddiff.federator import appraisal
from feddiff.federator.federation import Federation
from feddiff.federator.gauge import EVERYBODY, HELD
from feddiff.federator.ledger import GLOBAL, OVERHEAD
from feddiff.federator.operator import status
from feddiff.v1 import operator_pb2 as pb

PHASES = ("waiting", "collecting", "folding", "paused", "finished")
MEASURED = (*appraisal.METRICS, "memorised", "copying", "authentic")
"""Metrics of quality that are told; a silo could make up others."""
AGAINST = (HELD, EVERYBODY, OWN_IMAGES, "")
MOST_SILOS = 250
"""With more of them bytes are told by segment and direction only: 13 series for each silo and direction are enough."""
_P = "feddiff_federator"
_SILO: dict[str, str] = {
    "enrolled": "Whether a silo is enrolled and not evicted (1 or 0).",
    "reachable": "Whether a silo was heard from lately (1 or 0).",
    "planned": "Whether a silo has work in the open round (1 or 0).",
    "training": "Whether a silo tells of steps of its training (1 or 0).",
    "committed": "Whether all of a silo's update of the open round is here (1 or 0).",
}


def tell(exposition: Exposition, federation: Federation) -> None:
    """Answer scrapes with a federation's numbers from now on."""
    folder = federation.folder
    certificates = {"server": folder / "server.pem", "authority": folder / "ca.pem"}
    exposition.begin(FederatorMetrics(federation), Vitals(_P, folder, certificates))


class FederatorMetrics:
    """Of one federation, as its daemon runs it."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._sent: dict[tuple[str, str, str], int] = {}
        self._moved = 0.0

    def collect(self) -> Iterator[Metric]:
        """One family after the other. Raises sqlite3.Error."""
        found = status(self._federation, live=True)
        yield from self._progress(found)
        yield from self._silos(found)
        yield from self._bytes({silo.name for silo in found.silos})
        yield from self._quality([silo.name for silo in found.silos])
        yield from self._queues()

    def _progress(self, found: pb.StatusReply) -> Iterator[Metric]:
        federation, now = self._federation, time.monotonic()
        about = {"federation": found.federation, "plan": found.policy, "rules": found.config_digest[:12]}
        yield InfoMetricFamily(_P, "What runs here.", {**about, "software": SOFTWARE})
        phase = GaugeMetricFamily(f"{_P}_phase", "What the federation is doing: 1 for its phase.", labels=["phase"])
        for each in PHASES:
            phase.add_metric([each], found.phase == each)
        yield phase
        yield GaugeMetricFamily(f"{_P}_round", "The newest round, open or closed; 0 before the first.", found.round)
        yield GaugeMetricFamily(f"{_P}_rounds", "Rounds that the federation is to have.", found.rounds)
        current = federation.round
        is_open = current is not None and current.closed_at is None
        age = max(time.time() - current.opened_at, 0.0) if current is not None and is_open else 0.0
        yield GaugeMetricFamily(
            f"{_P}_round_open_seconds", "Seconds since the open round opened; 0 while none is open.", age
        )
        with federation.changed:
            known = federation.presence
            seen = [
                known[each.name].progress_at
                for each in found.silos
                if each.planned and not each.committed and each.name in known
            ]
        self._moved = max(self._moved, federation.since, *seen)
        yield GaugeMetricFamily(
            f"{_P}_progress_age_seconds",
            "Seconds since a round opened or closed, or a silo that is planned got further in its work.",
            max(now - self._moved, 0.0),
        )

    def _silos(self, found: pb.StatusReply) -> Iterator[Metric]:
        for truth, text in _SILO.items():
            family = GaugeMetricFamily(f"{_P}_silo_{truth}", text, labels=["silo"])
            for silo in found.silos:
                family.add_metric([silo.name], getattr(silo, truth))
            yield family
        loss = GaugeMetricFamily(f"{_P}_silo_loss", "The newest training loss that a silo told.", labels=["silo"])
        images = GaugeMetricFamily(f"{_P}_silo_images", "Images that a silo trains on.", labels=["silo"])
        done = GaugeMetricFamily(
            f"{_P}_silo_progress_ratio", "Share of its steps that a silo has done.", labels=["silo"]
        )
        silent = GaugeMetricFamily(
            f"{_P}_silo_silent_seconds", "Seconds since a silo was heard; none before the first time.", labels=["silo"]
        )
        link = GaugeMetricFamily(
            f"{_P}_link_bytes_per_second",
            "Bytes a second of a silo's link, by its transfers of the last rounds.",
            labels=["silo", "direction"],
        )
        expiry = GaugeMetricFamily(
            f"{_P}_silo_certificate_remaining_seconds", "Seconds until a silo's certificate expires.", labels=["silo"]
        )
        for silo in found.silos:
            if not math.isnan(days := silo.certificate_days):
                expiry.add_metric([silo.name], days * 86400)
            images.add_metric([silo.name], silo.samples)
            done.add_metric([silo.name], silo.step / silo.steps if silo.training and silo.steps else 0.0)
            if not math.isnan(silo.loss):
                loss.add_metric([silo.name], silo.loss)
            if not math.isnan(silo.silent_s):
                silent.add_metric([silo.name], silo.silent_s)
            for direction, rate in (("down", silo.down_mbit), ("up", silo.up_mbit)):
                if rate:
                    link.add_metric([silo.name, direction], rate / 8e-6)
        yield from (images, done, loss, silent, link, expiry)

    def _bytes(self, silos: set[str]) -> Iterator[Metric]:
        wire, again, raw = (defaultdict[tuple[str, str, str], int](int) for _ in range(3))
        segments = {OVERHEAD: "(protocol)", POOL: "(pool)"} | {name: name for name in self._federation.layout.names}
        for each in self._federation.ledger.totals():
            silo = "(all)" if len(silos) > MOST_SILOS else each.silo if each.silo in silos else "(unknown)"
            segment = segments.get(each.segment, "(other)")
            wire[silo, segment, each.direction] += each.wire
            again[silo, "", each.direction] += each.retransmitted
            if each.segment != OVERHEAD:
                raw["", segment, each.direction] += each.raw
        crossed = CounterMetricFamily(
            f"{_P}_wire_bytes",
            "Bytes that crossed the network, everything included; (protocol) are those that carry no weights.",
            labels=["silo", "segment", "direction"],
        )
        for key, value in sorted(wire.items()):
            # What gRPC has taken and the kernel not sent yet is counted as the protocol's debt: it must not run back.
            self._sent[key] = max(value, self._sent.get(key, 0))
            crossed.add_metric(key, self._sent[key])
        repeated = CounterMetricFamily(
            f"{_P}_retransmitted_bytes", "Payload bytes that crossed more than once.", labels=["silo", "direction"]
        )
        for (silo, _, direction), value in sorted(again.items()):
            repeated.add_metric([silo, direction], value)
        plain = CounterMetricFamily(
            f"{_P}_raw_bytes",
            "Bytes that the transfers' float32 values would have taken without plan and codec.",
            labels=["segment", "direction"],
        )
        for (_, segment, direction), value in sorted(raw.items()):
            plain.add_metric([segment, direction], value)
        yield from (crossed, repeated, plain)

    def _quality(self, silos: list[str]) -> Iterator[Metric]:
        value = GaugeMetricFamily(
            f"{_P}_quality", "The newest measured number of a model.", labels=["model", "metric", "against"]
        )
        when = GaugeMetricFamily(f"{_P}_quality_round", "The round that it was measured after.", labels=["model"])
        for of in [GLOBAL, *silos]:
            readings = self._federation.ledger.newest_quality(of)
            for each in readings:
                if each.measured.metric in MEASURED and each.measured.against in AGAINST:
                    value.add_metric(
                        [of or "(global)", each.measured.metric, each.measured.against], each.measured.value
                    )
            if readings:
                when.add_metric([of or "(global)"], readings[0].round)
        yield from (value, when)

    def _queues(self) -> Iterator[Metric]:
        federation = self._federation
        rejected = CounterMetricFamily(
            f"{_P}_rejected_updates", "Updates that were rejected and averaged in no round.", labels=["silo"]
        )
        counts = federation.journal.rejected()
        for silo in federation.roster.silos():
            rejected.add_metric([silo.name], counts.get(silo.name, 0))
        yield rejected
        waiting = sum(1 for _ in (federation.folder / "measuring").glob("round-*"))
        yield GaugeMetricFamily(f"{_P}_measuring_rounds", "Rounds whose model waits to be measured.", waiting)
        yield GaugeMetricFamily(
            f"{_P}_spool_bytes",
            "Bytes of updates on the disk that wait for their round's end.",
            _size(federation.folder),
        )


def _size(folder: Path) -> int:
    total = 0
    for path in (folder / "spool").glob("round-*/*"):
        try:
            total += path.stat().st_size
        except OSError:  # the round has just ended
            continue
    return total
