"""What the daemon looks at before it acts, gathered from the running federation."""

from __future__ import annotations

from dataclasses import replace

from feddiff.federator.federation import Federation
from feddiff.federator.forecast import forecast
from feddiff.federator.rounds import Planned, View, decide


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
                has = all(held.get(name) == version for name, version in each.targets(federation.current).items())
                done = each.silo in federation.committed if each.up else has
                planned[each.silo] = Planned(done, progress, why, bool(each.up), bool(each.up or each.down))
            usable = federation.committed - rejected.keys() - federation.evicted
            if len(usable) >= federation.config.rounds.needed and federation.quorum_since is None:
                federation.quorum_since = now
        barred = federation.verdicts.out(federation.upcoming).keys()
        view = View(
            round=federation.upcoming,
            collecting=collecting,
            since=federation.since,
            reachable=frozenset(federation.reachable(now) - barred),
            expected=frozenset(() if current is None else current.silos) - federation.evicted - barred,
            barred=frozenset(barred),
            planned=planned,
            quorum_since=federation.quorum_since,
            paused=federation.journal.fact("paused") == "yes",
            stopping=federation.journal.fact("stopping") == "yes",
        )
        next_step = decide(now, view, federation.config.rounds)
        if next_step.action == "open" and federation.purse is not None:
            plan = forecast(federation, next_step.silos)
            view = replace(view, idle=plan.reason if plan.idle else "")
        return view


def untold(federation: Federation, now: float) -> set[str]:
    """Silos of the last round, and those that are here, that have yet to hear that it is over."""
    last = {each.silo for each in federation.round.plan.assignments} if federation.round is not None else set()
    wanted = (last | federation.reachable(now)) - federation.evicted
    return {silo for silo in wanted if federation.journal.fact(f"told {silo}") is None}


def left_out(federation: Federation, silo: str) -> str:
    """Why the open round did not take this silo, where rounds take a sample; else empty."""
    current = federation.round
    if federation.config.rounds.sampled is None or current is None or federation.open_round() is None:
        return ""
    return "" if federation.assignment(silo) else f"not in round {current.round}: {current.plan.reason}"


def told_finished(federation: Federation, silo: str) -> None:
    """This silo knows that it is over."""
    with federation.changed:
        federation.journal.note(f"told {silo}", "finished")
        federation.changed.notify_all()
