"""What is true of each silo now: four truths that are told apart, what it does, and what the open round wants of it.

Between the federation, which its threads share, and whoever shows it: the operator's ``status`` and the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from feddiff.federator.federation import Federation
from feddiff.federator.lookout import left_out
from feddiff.federator.planner import Assignment
from feddiff.federator.roster import Silo


@dataclass(frozen=True)
class Standing:
    """One silo. ``phase``, ``step`` and ``steps``: what it told of its work last."""

    silo: Silo
    enrolled: bool
    reachable: bool
    """Heard from within the reachability window."""
    planned: bool
    """Has work in the open round."""
    training: bool
    """Reports progress from inside the training."""
    committed: bool
    phase: str
    step: int
    steps: int
    silent_s: float
    """Seconds since it was last heard; NaN if it was not."""
    out: bool
    """Whether the filter keeps it out, until an operator takes it back or its time is over."""
    note: str
    """Why it is evicted, rejected, filtered out, not in the round, or averages nothing for others; else empty."""
    assignment: Assignment | None
    """Its part in the newest round, open or closed."""
    up: tuple[str, ...]
    """Segments that it reports in the open round."""

    @property
    def name(self) -> str:
        return self.silo.name

    @property
    def done(self) -> float:
        """The share of the open round's work that is behind it, from 0 to 1; fetching and sending are not known."""
        if self.committed:
            return 1.0
        return min(self.step / self.steps, 1.0) if self.training and self.steps else 0.0


def standings(federation: Federation, now: float) -> list[Standing]:
    """Of all silos that ever enrolled, by name. ``now`` of ``time.monotonic``."""
    # The questions to the disk first: the lock is for what is in memory.
    silos, notes = federation.roster.silos(), federation.verdicts.notes(federation.upcoming)
    out = federation.verdicts.out(federation.upcoming)
    last = federation.round
    rejections = federation.journal.rejections(last.round) if last is not None else {}
    with federation.changed:
        current = federation.round
        collecting = current is not None and current.closed_at is None
        assigned = {each.silo: each for each in current.plan.assignments} if current else {}
        reachable = federation.reachable(now)
        found = []
        for silo in silos:
            name, known = silo.name, federation.presence.get(silo.name)
            apart = "not sampled" if name in reachable and left_out(federation, name) else ""
            if federation.exchange is not None and (finding := federation.exchange.near.liar(name)):
                apart = f"owns nothing: {finding}"
            found.append(
                Standing(
                    silo=silo,
                    enrolled=silo.evicted is None,
                    reachable=name in reachable,
                    planned=collecting and name in assigned and name not in rejections,
                    training=known is not None and known.phase == "training" and name in reachable,
                    committed=name in federation.committed,
                    phase=known.phase if known else "",
                    step=known.step if known else 0,
                    steps=known.steps if known else 0,
                    silent_s=now - known.heard_at if known else math.nan,
                    out=name in out,
                    note=silo.evicted or rejections.get(name, "") or notes.get(name, "") or apart,
                    assignment=assigned.get(name),
                    up=assigned[name].up if collecting and name in assigned else (),
                )
            )
    return found
