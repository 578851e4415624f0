"""What the page shows of a running federation, as plain data: everything that changes while one looks at it.

federation (memory) + history (disk, each round once) ──snapshot──► JSON for the viewers (federator/broadcast.py).
Texts of silos are data here, and text on the page; nothing is HTML on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from feddiff.core import wire
from feddiff.federator import eta, orders
from feddiff.federator.database import Database
from feddiff.federator.eta import Estimate
from feddiff.federator.federation import Federation
from feddiff.federator.history import WAYS, History, Spent
from feddiff.federator.outlook import Outlook
from feddiff.federator.standing import Standing, standings

ORDERS = 8
"""Of the operators', the newest that are shown."""
QUIET_S = 30.0
"""A silo that was silent for longer is said to be: idle ones are heard every 25 s."""


class Live:
    """One federation, looked at again and again; ``database``: a connection of the page's own."""

    def __init__(self, federation: Federation, database: Database) -> None:
        self._federation, self._database = federation, database
        database.define(orders.SCHEMA)
        self.history, self._outlook = History(database, federation.layout), Outlook(federation)

    def snapshot(self, now: float, clock: float) -> dict[str, Any]:
        """At ``now``, Unix seconds, and ``clock``, of ``time.monotonic``. The same as before if nothing has changed."""
        self.history.update()
        federation, history, config = self._federation, self.history, self._federation.config
        silos = standings(federation, clock)
        current, number = federation.round, federation.open_round()
        paused, stopping = (federation.journal.fact(key) == "yes" for key in ("paused", "stopping"))
        shown = number if number is not None else current.round if current is not None else 0
        spent = history.chapters[shown].spent if shown in history.chapters else {}
        opened = current.opened_at if current is not None and number is not None else None
        ends, over = self._ends(opened, now, silos, paused, stopping)
        return {
            "federation": config.name,
            "policy": config.plan,
            "codec": "by the plan" if config.budget else f"{config.codec.down} down, {config.codec.up} up",
            "rules": config.digest[:16],
            "software": wire.SOFTWARE,
            "parameters": federation.layout.size,
            "segments": list(federation.layout.names),
            "phase": "finished" if federation.finished else federation.phase,
            "reason": federation.decision.reason,
            "round": shown,
            "rounds": config.rounds.count,
            "opened": opened,
            "paused": paused,
            "stopping": stopping,
            "ends": vars(ends),
            "over": vars(over),
            "plan": current.plan.reason if current is not None else "",
            "silos": [self._row(each, spent.get(each.name, Spent())) for each in silos],
            "other": {way: history.wire.get(("", way), 0) for way in WAYS},
            "next": self._outlook.tell(),
            "fronts": history.fronts,
            "orders": [vars(each) for each in orders.given(self._database, ORDERS)],
        }

    def _ends(
        self, opened: float | None, now: float, silos: Sequence[Standing], paused: bool, stopping: bool
    ) -> tuple[Estimate, Estimate]:
        """Of the round, and of the federation."""
        federation = self._federation
        if federation.finished:
            return Estimate(None, ""), Estimate(None, "finished")
        if opened is None:
            why = "paused by an operator" if paused else "no round is open"
            return Estimate(None, why), Estimate(None, why)
        whole, between = self.history.durations(eta.LAST)
        pending = [each for each in silos if each.planned and each.up]
        slowest = min(pending, key=lambda each: each.done, default=None)
        ends = eta.round_end(opened, now, whole, slowest.done if slowest else 0.0, slowest.name if slowest else "")
        if paused:
            return ends, Estimate(None, "paused by an operator after this round")
        left = 0 if stopping else federation.config.rounds.count - federation.upcoming
        return ends, eta.all_rounds(ends, now, left, between, whole)

    def _row(self, each: Standing, spent: Spent) -> dict[str, Any]:
        history, name = self.history, each.name
        rates = {way: history.rate(name, way) for way in WAYS}
        loss = history.losses.get(name)
        # To 5 s, so that the page does not change with every second of silence.
        silent = None if math.isnan(each.silent_s) or each.silent_s < QUIET_S else 5 * int(each.silent_s / 5)
        return {
            "name": name,
            "enrolled": each.enrolled,
            "reachable": each.reachable,
            "planned": each.planned,
            "training": each.training,
            "committed": each.committed,
            "phase": each.phase,
            "step": each.step,
            "steps": each.steps,
            "silent": silent,
            "out": each.out,
            "note": each.note,
            "plan": each.assignment.reason if each.assignment else "",
            "up": list(each.up),
            "samples": each.silo.samples,
            "labels": dict(each.silo.labels),
            "device": each.silo.device,
            "software": each.silo.software,
            "now": dict(spent.wire),
            "wire": {way: history.wire.get((name, way), 0) for way in WAYS},
            "mbit": {way: None if rate is None else round(rate.mbit_s, 3) for way, rate in rates.items()},
            "loss": None if loss is None else loss[1],
            "loss_round": None if loss is None else loss[0],
        }
