"""The budget of a running federation: what each silo may spend in a round, and whether it still can.

Between the federation and the pure plan in federator/budget.py: gathers what that needs to know (links, held versions,
sizes of what is published), and watches the ledger while transfers run, for a link that breaks makes bytes cross twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, RoundClosed
from feddiff.core.sections import BudgetConfig
from feddiff.core.segments import Layout
from feddiff.core.spool import Manifest
from feddiff.core.transfer import Standing
from feddiff.federator.budget import Member, crossing, ladder, least, plan_budget
from feddiff.federator.ledger import Direction, Ledger
from feddiff.federator.links import Links
from feddiff.federator.measure import amount
from feddiff.federator.planner import Allowance, Assignment, Plan, Spending
from feddiff.federator.versions import Versions, bound

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

KEPT_BACK = 0.05
"""Of a deadline: no link is as steady as its median."""
ROUNDS = 4
"""Whose protocol bytes say what the next round's may be."""


def afford(
    federation: Federation, silo: str, direction: Direction, wanted: Sequence[Manifest], at: Sequence[Standing]
) -> None:
    """Leave a silo out of the round that would overspend, for its transfers broke off. Raises RoundClosed."""
    with federation.changed:
        assignment, number = federation.assignment(silo), federation.open_round()
        if federation.purse is None or assignment is None or assignment.spending is None or number is None:
            return
        why = federation.purse.overdrawn(number, silo, assignment.spending, direction, wanted, at)
        if why:
            federation.reject(silo, why)
            raise RoundClosed(f"round {number} goes on without {silo}: {why}")


class Purse:
    """What there is to spend, by the rules ``budget``."""

    def __init__(
        self,
        config: FederationConfig,
        budget: BudgetConfig,
        layout: Layout,
        versions: Versions,
        ledger: Ledger,
        links: Links,
    ) -> None:
        self._config, self._budget, self._layout = config, budget, layout
        self._versions, self._ledger, self._links = versions, ledger, links
        self._rungs = ladder(layout, budget.codecs, config.codec.chunk_elements)
        self._needed = least(self._rungs[budget.codecs[-1]], budget.refresh)

    def check(self) -> None:
        """Raises ConfigError for a budget with which no round could ever do what it must."""
        budget, silos = self._budget, self._config.rounds.participants
        allowance = self.allowance("", 1, silos)
        cost = self._needed * (allowance.down + allowance.up)
        what = f"to refresh {len(self._layout.names)} segments within {budget.refresh} rounds as {budget.codecs[-1]}"
        if self._config.initial == "send":
            largest = max(self.lacks({}, dict.fromkeys(self._layout.names, 0)).values())
            if allowance.cost(largest, 0) > cost:
                cost, what = allowance.cost(largest, 0), 'to send the largest initial segment (initial = "send")'
        if cost <= allowance.limit:
            return
        if budget.deadline is not None:
            wanted = f"deadline = {math.ceil(cost / (1 - KEPT_BACK))} at {budget.link_mbit} Mbit/s"
        elif budget.bytes_per_silo is not None:
            wanted = f"bytes_per_silo = {math.ceil(cost + allowance.reserve)}"
        else:
            wanted = f"bytes_per_round = {math.ceil(cost + allowance.reserve) * silos} for {silos} silos"
        raise ConfigError(f"the budget is too small {what}: at least {wanted} would do")

    def allowance(self, silo: str, round: int, silos: int) -> Allowance:
        """What one of so many silos may spend in a round."""
        budget = self._budget
        if budget.deadline is not None and budget.link_mbit is not None:
            assumed = budget.link_mbit * 125_000
            down = self._links.taken_for(silo, "down", round, assumed)
            up = self._links.taken_for(silo, "up", round, assumed)
            kept = KEPT_BACK * budget.deadline
            return Allowance(budget.deadline - kept, kept, "seconds", 1 / down, 1 / up)
        total = budget.bytes_per_silo or (budget.bytes_per_round or 0) // max(silos, 1)
        seen = self._ledger.protocol(silo, max(round - ROUNDS, 2))  # the first round's has the joining in it
        reserve = max((16 << 10) + (1 << 10) * len(self._layout.names), seen + seen // 2)
        return Allowance(max(total - reserve, 0), reserve)

    def lacks(self, held: Mapping[str, int], current: Mapping[str, int]) -> dict[str, int]:
        """Bytes on the wire, at most, that bring each segment that is not held as it is now."""
        found: dict[str, int] = {}
        for each in self._versions.routes(held, current):
            found[each.segment] = found.get(each.segment, 0) + self.bytes([each])
        return found

    def bytes(self, manifests: Sequence[Manifest]) -> int:
        """Bytes on the wire, at most, of published transfers."""
        return sum(crossing(self._versions.payload(each), each.chunks) for each in manifests)

    def plan(
        self,
        round: int,
        held: Mapping[str, Mapping[str, int]],
        current: Mapping[str, int],
        past: Sequence[Sequence[str]],
    ) -> Plan:
        """The plan of a round for the silos that hold these versions; ``past`` as for ``plan_budget``."""
        lacks = {silo: self.lacks(versions, current) for silo, versions in held.items()}
        served = sorted(held, key=lambda silo: (sum(lacks[silo].values()), silo))
        if self._budget.bytes_per_round is not None:  # more silos than it can serve: some get a whole share each
            reserve = max(self.allowance(silo, round, 1).reserve for silo in held)
            served = served[: max(int(self._budget.bytes_per_round / (2 * self._needed + reserve)), 1)]
        members = [
            Member(
                silo,
                self.allowance(silo, round, len(served)) if silo in served else Allowance(0.0),
                lacks[silo],
            )
            for silo in held
        ]
        return plan_budget(round, members, self._rungs, self._budget.refresh, past)

    def covers(self, assignment: Assignment, down: Sequence[Manifest]) -> bool:
        """Whether these downlink transfers are within what was planned for a silo."""
        return assignment.spending is not None and self.bytes(down) <= assignment.spending.down

    def overdrawn(
        self,
        round: int,
        silo: str,
        spending: Spending,
        direction: Direction,
        manifests: Sequence[Manifest],
        standing: Sequence[Standing],
    ) -> str:
        """Why a silo cannot send or fetch the rest of its transfers without overspending; empty if it can."""
        spent, left = self._ledger.spent(round, silo), 0
        for manifest, at in zip(manifests, standing, strict=True):
            chunks = 0 if at.committed else manifest.chunks - at.chunks
            whole = self._versions.payload(manifest) if direction == "down" else bound(manifest)
            left += crossing(whole * chunks // manifest.chunks, chunks) if chunks > 0 else 0
        spent[direction] += left
        if direction == "down":
            spent["up"] += spending.up
        if spending.allowance.cost(spent["down"], spent["up"]) <= spending.allowance.limit:
            return ""
        return f"its transfers broke off, and {amount(left)} more would overspend its budget"
