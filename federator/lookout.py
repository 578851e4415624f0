"""What the daemon looks at before it acts, gathered from the running federation."""

from __future__ import annotations

from feddiff.federator.federation import Federation
from feddiff.federator.rounds import Planned, View


def look(federation: Federation, now: float) -> View:
    """The state of things at ``now``, of ``time.monotonic``, for ``rounds.decide``."""
    with federation.changed:
        current = federation.round
        collecting = federation.open_round() is not None
        planned = {}
        if collecting and current is not None:
            rejected = federation.journal.rejections(current.round)
            for each in current.plan.assignments:
                known = federation.presence.get(each.silo)
                progress = max(federation.since, known.progress_at) if known else federation.since
                why = "evicted" if each.silo in federation.evicted else rejected.get(each.silo)
                held = known.held if known else {}
                has = all(held.get(name) == federation.current[name] for name in each.down)
                done = each.silo in federation.committed if each.up else has
                planned[each.silo] = Planned(done, progress, why, bool(each.up), bool(each.up or each.down))
            usable = federation.committed - rejected.keys() - federation.evicted
            needed = min(federation.config.rounds.needed, max(len(current.plan.reporting), 1))
            if len(usable) >= needed and federation.quorum_since is None:
                federation.quorum_since = now
        return View(
            round=1 if current is None else current.round + (0 if collecting else 1),
            collecting=collecting,
            since=federation.since,
            reachable=frozenset(federation.reachable(now)),
            expected=frozenset(() if current is None else current.silos) - federation.evicted,
            planned=planned,
            quorum_since=federation.quorum_since,
            paused=federation.journal.fact("paused") == "yes",
            stopping=federation.journal.fact("stopping") == "yes",
        )


def untold(federation: Federation, now: float) -> set[str]:
    """Silos of the last round, and those that are here, that have yet to hear that it is over."""
    last = {each.silo for each in federation.round.plan.assignments} if federation.round is not None else set()
    wanted = (last | federation.reachable(now)) - federation.evicted
    return {silo for silo in wanted if federation.journal.fact(f"told {silo}") is None}
