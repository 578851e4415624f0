"""What the next round would be, if it opened now: who is taken of those that are here, and what of the model moves.

Between ``rounds``, which says that a round opens and who is here, and the journal, which keeps the plan.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from feddiff.federator.planner import Plan, plan_round
from feddiff.federator.sampling import sample

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation


def forecast(federation: Federation, silos: Sequence[str], number: int | None = None) -> Plan:
    """The plan of the next round, or the one of this number, if it opened now with these silos, which are here."""
    config, number = federation.config, number or federation.upcoming
    held = {name: federation.presence[name].held for name in silos}
    asked = federation.purse is not None or config.rounds.sampled is not None
    rounds = federation.journal.rounds() if asked else []
    if federation.purse is None:
        sizes = {silo.name: silo.samples for silo in federation.roster.silos()}
        taken = sample(config, number, {name: sizes.get(name, 1) for name in silos}, rounds)
        newcomers = [name for name in taken.silos if not held[name]]  # what was lost comes alone: ``Federation._due``
        assert config.plan != "budget"
        plan = plan_round(
            config.plan, number, taken.silos, federation.layout, config.seed, newcomers, federation.sharing
        )
        return replace(plan, reason=f"{plan.reason}; {taken.reason}")
    plan = federation.purse.plan(number, held, federation.current, rounds)
    if plan.idle:  # so is every other, for nothing is measured between rounds: time must give them another chance
        waited = int((time.monotonic() - federation.since) / config.rounds.grace)
        plan = federation.purse.plan(number, held, federation.current, rounds, waited)
    return plan
