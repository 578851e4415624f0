"""What each round cost and brought, each read from disk once, for a page that people leave open for days.

Between the database and federator/live.py. It reads with a connection of its own, so the federation never waits for
it (SQLite's WAL: readers do not block the writer); the ledger is asked by round, which is how its key begins, and
never as a whole. The newest rounds change until the next but one has begun, and late measurements come to older ones:
those are read again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from feddiff.core.segments import Layout
from feddiff.federator.appraisal import front, rows
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal, Round
from feddiff.federator.ledger import Direction, Ledger
from feddiff.federator.links import LEAST, ROUNDS, Rate, estimate
from feddiff.federator.measure import mean

LATE = 16
"""Rounds back to which measurements may still come; more than wait for it (federator/gauging.py)."""
CURVES = 12
"""Silos whose losses are told by round; of more only the mean."""
WAYS: tuple[Direction, Direction] = ("down", "up")
HIGHER = frozenset({"precision", "recall", "inception_score", "authentic"})
"""Metrics that are good when large; all others are when small."""


@dataclass
class Spent:
    """Bytes of a silo in a round, and what says something of its link."""

    wire: dict[Direction, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    flow: dict[Direction, tuple[int, float]] = field(default_factory=dict)
    """Bytes of transfers, seconds."""


@dataclass
class Chapter:
    """A round, or what was before the first (0), as the page is told it."""

    told: dict[str, Any]
    """JSON."""
    spent: Mapping[str, Spent]
    losses: Mapping[str, float]
    seconds: float
    """From its opening to its close; NaN while it is open."""
    closed: float
    version: int = 0
    """Of the history, when it changed last."""


class History:
    """All rounds so far. ``version`` grows with every change."""

    def __init__(self, database: Database, layout: Layout) -> None:
        self._database, self._layout = database, layout
        self._journal, self._ledger = Journal(database), Ledger(database)
        self._seen: int | None = None
        self._settled = -1
        self._counts: dict[int, int] = {}
        self.chapters: dict[int, Chapter] = {}
        self.version = 0
        self.wire: dict[tuple[str, Direction], int] = {}
        """Bytes of each silo in all rounds; "" is of connections that are nobody's."""
        self.losses: dict[str, tuple[int, float]] = {}
        """The newest that each silo told, and its round."""
        self._rates: dict[tuple[str, Direction], Rate | None] = {}
        self._closed = False
        self.fronts: dict[str, list[int]] = {}
        """Metric → the rounds that no other beats, in bytes so far and this number."""

    def update(self) -> None:
        """Read what is new; nothing if no other connection has written."""
        seen = int(self._database.rows("PRAGMA data_version")[0][0])
        if seen == self._seen:
            return
        self._seen = seen
        last = self._journal.last()
        newest = last.round if last is not None else 0
        counted = self._ledger.counted(max(newest - LATE, 0))
        again = {number for number, count in counted.items() if self._counts.get(number) != count}
        self._counts |= counted
        for number in sorted(again | set(range(self._settled + 1, newest + 1))):
            self._read(number)
        self._settled = max(self._settled, newest - 2)
        if self._closed:
            self._closed = False
            self._rates.clear()
            self._mark()

    def since(self, version: int) -> list[dict[str, Any]]:
        """Rounds that have changed after this version, in order."""
        return [each.told for _, each in sorted(self.chapters.items()) if each.version > version]

    def rate(self, silo: str, direction: Direction) -> Rate | None:
        """Of a silo's link, as federator/links.py estimates it, when a round closed last."""
        if (silo, direction) not in self._rates:
            flows: list[tuple[int, int, float]] = []
            for number in sorted(self.chapters, reverse=True):
                size, took = self.chapters[number].spent.get(silo, Spent()).flow.get(direction, (0, 0.0))
                if size >= LEAST and took > 0 and len(flows) < ROUNDS:
                    flows.append((number, size, took))
            self._rates[silo, direction] = estimate(flows)
        return self._rates[silo, direction]

    def _read(self, number: int) -> None:
        round = self._journal.get(number)
        spent: dict[str, Spent] = {}
        retransmitted = 0
        for silo, direction, wire, size, took, again in self._ledger.flows_of(number):
            one = spent.setdefault(silo, Spent())
            one.wire[direction] = wire
            one.flow[direction] = (size, took)
            retransmitted += again
        losses = {
            silo: values["loss"]
            for silo, values in self._journal.metrics(number).get(number, {}).items()
            if "loss" in values
        }
        told: dict[str, Any] = {
            "round": number,
            "down": sum(each.wire["down"] for each in spent.values()),
            "up": sum(each.wire["up"] for each in spent.values()),
            "retransmitted": retransmitted,
            "quality": self._quality(number),
        }
        seconds = closed = math.nan
        if round is not None:
            told |= self._told(round, losses)
            if round.closed_at is not None:
                closed, seconds = round.closed_at, round.closed_at - round.opened_at
        old = self.chapters.get(number)
        if old is not None and old.told == told and old.spent == spent and old.losses == losses:
            return
        self.version += 1
        self.chapters[number] = Chapter(told, spent, losses, seconds, closed, self.version)
        for silo, direction in ((silo, way) for silo in spent for way in WAYS):
            before = old.spent[silo].wire[direction] if old is not None and silo in old.spent else 0
            known = self.wire.get((silo, direction), 0)
            self.wire[silo, direction] = known + spent[silo].wire[direction] - before
        for silo, loss in losses.items():
            if number >= self.losses.get(silo, (0, 0.0))[0]:
                self.losses[silo] = (number, loss)
        self._closed |= old is None or any(old.told.get(key) != told.get(key) for key in ("quality", "closed"))

    def _told(self, round: Round, losses: Mapping[str, float]) -> dict[str, Any]:
        inside = {silo: loss for silo, loss in losses.items() if silo in round.silos or round.closed_at is None}
        loss = mean(inside, round.weights)
        return {
            "opened": round.opened_at,
            "closed": round.closed_at,
            "silos": len(round.silos),
            "planned": len(round.plan.assignments),
            "plan": round.plan.reason,
            "raw": 8 * self._layout.size * len(round.plan.assignments),
            "loss": None if math.isnan(loss) else loss,
            "losses": dict(inside) if len(inside) <= CURVES else {},
        }

    def _quality(self, number: int) -> list[dict[str, Any]]:
        """Of the global model, and the mean of silos' own."""
        return [
            {
                "model": row.model,
                "silos": row.silos,
                "basis": row.basis,
                "key": "|".join((row.model, *row.comparable)),
                "values": {name: value for name, value in row.values.items() if math.isfinite(value)},
                "cautions": sorted({text for name in row.values for text in row.cautions.get(name, ())}),
            }
            for row in rows(self._ledger.quality(number), together=True)
        ]

    def _mark(self) -> None:
        """Find the fronts anew: of each metric, the newest model and basis that it was measured with."""
        points: dict[str, dict[str, list[tuple[float, float, int]]]] = {}
        sent = 0.0
        for number, each in sorted(self.chapters.items()):
            sent += each.told["down"] + each.told["up"]
            if each.told.get("loss") is not None and each.told.get("closed") is not None:
                points.setdefault("loss", {}).setdefault("", []).append((sent, each.told["loss"], number))
            for row in each.told["quality"]:
                for name, value in row["values"].items():
                    of = points.setdefault(name, {})
                    of.setdefault(row["key"], []).append((sent, -value if name in HIGHER else value, number))
        self.fronts = {}
        for name, bases in points.items():
            newest = max(bases.values(), key=lambda found: found[-1][2])
            self.fronts[name] = [newest[at][2] for at in front([(x, y) for x, y, _ in newest])]

    def durations(self, count: int) -> tuple[list[float], list[float]]:
        """Of the last rounds: seconds from opening to close, and from close to close; oldest first."""
        done = [each for _, each in sorted(self.chapters.items()) if not math.isnan(each.closed)]
        between = [one.closed - before.closed for before, one in pairwise(done)]
        return [each.seconds for each in done[-count:]], between[-count:]
