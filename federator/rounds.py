"""When a round opens and closes: one pure function of what is known and the time.

    waiting ──open──► collecting ──fold──► (published) ──► waiting … ──finish──► finished
       ▲ paused: no round opens

The round number and the published weights advance together in one transaction of the journal, so after any crash the
state is exactly "waiting" or "collecting" again, and this function decides anew from what is on disk. Every decision
says why, in words that ``status`` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from feddiff.core.sections import RoundsConfig

Action = Literal["wait", "open", "fold", "finish"]


@dataclass(frozen=True)
class Planned:
    """A silo of the open round. ``progress_at``: when it last showed any sign of work."""

    committed: bool
    progress_at: float
    rejected: str | None = None
    reports: bool = True
    """Whether an update of it is planned; if not, it is ``committed`` when it holds what was planned for it."""
    works: bool = True
    """Whether anything is planned for it."""


@dataclass(frozen=True)
class View:
    """What the federator knows. Times are seconds of one clock, the one of ``now``."""

    round: int
    """The open round, or the next to open; from 1."""
    collecting: bool
    since: float
    """When the round opened, or when the wait for the next began."""
    reachable: frozenset[str]
    """Silos heard from lately that may be planned."""
    expected: frozenset[str] = frozenset()
    """Silos whose updates made the last round; one that takes all who are here should not start without them."""
    planned: Mapping[str, Planned] = field(default_factory=dict)
    quorum_since: float | None = None
    paused: bool = False
    stopping: bool = False
    idle: str = ""
    """Why a round that opened now would have nothing for anybody."""
    barred: frozenset[str] = frozenset()
    """Silos that the filter keeps out of this round (federator/verdicts.py); neither reachable nor expected."""


@dataclass(frozen=True)
class Decision:
    """What to do now, and why. ``silos``: who is here (open), of whom the round takes all or a sample; or whose updates
    to average (fold)."""

    action: Action
    reason: str
    silos: tuple[str, ...] = ()


def decide(now: float, view: View, rules: RoundsConfig) -> Decision:
    """The next step of the federation."""
    decision = _collecting(now, view, rules) if view.collecting else _waiting(now, view, rules)
    if decision.action == "open" and view.idle:
        return Decision("wait", f"round {view.round} would have nothing for anybody: {view.idle}")
    return decision


def _waiting(now: float, view: View, rules: RoundsConfig) -> Decision:
    if view.round > rules.count:
        return Decision("finish", f"all {rules.count} rounds are done")
    if view.stopping:
        return Decision("finish", f"stopped by the operator before round {view.round}")
    if view.paused:
        return Decision("wait", f"paused by the operator before round {view.round}")
    silos = tuple(sorted(view.reachable))
    if view.round == 1:
        if len(silos) < rules.participants:
            return Decision("wait", f"round 1 starts with {rules.participants} silos; {_named(silos)}")
        return Decision("open", f"{len(silos)} silos are here", silos)
    # A sample can do without any silo that it might have taken, as long as there are enough others.
    enough = rules.sampled is not None and len(silos) >= rules.sampled
    missing = frozenset() if enough else view.expected - view.reachable
    if len(silos) < rules.needed:
        return Decision("wait", f"round {view.round} needs {rules.needed} silos; {_named(silos)}{_barred(view)}")
    if missing and now - view.since < rules.grace:
        left = rules.grace - (now - view.since)
        return Decision("wait", f"giving {_names(missing)} {left:.0f} s to come back before round {view.round}")
    if missing:
        return Decision("open", f"without {_names(missing)}, silent for over {rules.grace:.0f} s", silos)
    return Decision("open", f"{len(silos)} silos are here{_barred(view)}", silos)


def _collecting(now: float, view: View, rules: RoundsConfig) -> Decision:
    planned = {name: silo for name, silo in view.planned.items() if silo.reports}
    if view.planned and not planned:
        return _catching_up(now, view, rules)
    done = tuple(sorted(name for name, silo in planned.items() if silo.committed and not silo.rejected))
    pending = {name: s for name, s in planned.items() if not s.committed and not s.rejected}
    lively = [name for name, silo in pending.items() if now - silo.progress_at < rules.deadline]
    needed = rules.needed
    if len(planned) < needed:  # one was evicted at the very moment in which the round opened
        return Decision("fold", f"{len(planned)} of {needed} needed silos are planned: the round ends without a change")
    if not pending and len(done) >= needed:
        return Decision("fold", f"all {len(done)} updates are in", done)
    if not pending:
        return Decision("fold", f"{len(done)} of {needed} needed updates can be used: the round ends without a change")
    if len(done) < needed:
        if lively:
            return Decision("wait", f"{len(done)} of {len(planned)} updates are in; {_names(lively)} at work")
        return Decision(
            "wait",
            f"{len(done)} of {needed} needed updates are in and {_names(pending)} silent for over"
            f" {rules.deadline:.0f} s; waiting for them to come back",
        )
    if not lively:
        return Decision(
            "fold", f"quorum {needed} is in; {_names(pending)} silent for over {rules.deadline:.0f} s", done
        )
    waited = now - (view.quorum_since if view.quorum_since is not None else now)
    if waited >= rules.grace:
        return Decision("fold", f"quorum {needed} is in; {_names(pending)} late by over {rules.grace:.0f} s", done)
    return Decision("wait", f"quorum {needed} is in; giving {_names(lively)} {rules.grace - waited:.0f} s more")


def _catching_up(now: float, view: View, rules: RoundsConfig) -> Decision:
    """Of a round in which nobody reports: it lasts until all have what it brings them, or are silent."""
    pending = {name: silo for name, silo in view.planned.items() if not silo.committed and not silo.rejected}
    lively = [name for name, silo in pending.items() if now - silo.progress_at < rules.deadline]
    if lively:
        return Decision("wait", f"nobody reports in round {view.round}; {_names(lively)} being brought up to date")
    if not any(silo.works for silo in view.planned.values()) and now - view.since < rules.grace:
        left = rules.grace - (now - view.since)
        return Decision("wait", f"round {view.round} has nothing for anybody; the next is planned in {left:.0f} s")
    return Decision("fold", "nobody was to report: the round ends without a change")


def _barred(view: View) -> str:
    """What a round that waits for silos, or opens without some, says of those that it may not take."""
    return f"; filtered out: {_names(view.barred)} (`status` says why, `reinstate` lifts it)" if view.barred else ""


def _names(silos: Iterable[str]) -> str:
    listed = sorted(silos)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _named(silos: tuple[str, ...]) -> str:
    return f"{len(silos)} here: {_names(silos)}" if silos else "none is here yet"
