"""What the decision about the rounds looks at, gathered from the running federation."""

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
                planned[each.silo] = Planned(each.silo in federation.committed, progress, why)
            usable = federation.committed - rejected.keys() - federation.evicted
            if len(usable) >= federation.config.rounds.needed and federation.quorum_since is None:
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
