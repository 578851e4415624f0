"""The budget of a running federation: what each silo may spend in a round, and whether it still can.

Between the federation and the pure plan in federator/budget.py: gathers what that needs to know (links, held versions,
sizes of what is published), and watches the ledger while transfers run, for a link that breaks makes bytes cross twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, RoundClosed
from feddiff.core.sections import BudgetConfig
from feddiff.core.segments import Layout
from feddiff.core.spool import Manifest
from feddiff.core.transfer import Standing
from feddiff.federator.budget import Member, crossing, ladder, least, plan_budget
from feddiff.federator.journal import Round
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
"""Whose protocol bytes say what the next round's may be: their median, for in one of them the operator paused."""

log = logging.getLogger("feddiff.federator")


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
        self._reserve = (16 << 10) + (1 << 10) * len(layout.names)
        self._largest = max(sum(each) for each in self.lacks({}, dict.fromkeys(layout.names, 0)).values())
        self._promised = max(2 * self._needed, self._largest if config.initial != "seed" else 0)
        """Bytes of a silo and round, both directions, without which the rules could not be kept."""

    def check(self) -> None:
        """Raises ConfigError for a budget with which no round could ever do what it must."""
        budget, silos = self._budget, self._config.rounds.participants
        allowance = self.allowance("", 1, budget.bytes_per_silo or (budget.bytes_per_round or 0) // silos)
        cost = self._needed * (allowance.down + allowance.up)
        what = f"to refresh {len(self._layout.names)} segments within {budget.refresh} rounds as {budget.codecs[-1]}"
        largest = allowance.cost(self._largest, 0)
        if self._config.initial != "seed" and largest > cost:
            cost, what = largest, f'to send the largest initial segment (initial = "{self._config.initial}")'
        if cost <= allowance.limit:
            if largest > allowance.limit:
                log.warning(
                    "no silo can afford to fetch the largest segment whole, %s: one whose own initial model is another,"
                    " or that is away until the differences it missed are larger than that, cannot come back",
                    amount(self._largest),
                )
            return
        if budget.deadline is not None:
            wanted = f"deadline = {math.ceil(cost / (1 - KEPT_BACK))} at {budget.link_mbit} Mbit/s"
        elif budget.bytes_per_silo is not None:
            wanted = f"bytes_per_silo = {math.ceil(cost + allowance.reserve)}"
        else:
            wanted = f"bytes_per_round = {math.ceil(cost + allowance.reserve) * silos} for {silos} silos"
        raise ConfigError(f"the budget is too small {what}: at least {wanted} would do")

    def allowance(self, silo: str, round: int, total: int) -> Allowance:
        """What a silo may spend in a round; ``total``: its bytes, if bytes are what is limited."""
        budget = self._budget
        if budget.deadline is not None and budget.link_mbit is not None:
            assumed = budget.link_mbit * 125_000
            down = self._links.taken_for(silo, "down", round, assumed)
            up = self._links.taken_for(silo, "up", round, assumed)
            kept = KEPT_BACK * budget.deadline
            return Allowance(budget.deadline - kept, kept, "seconds", 1 / down, 1 / up)
        # However much was said: half of it is for the weights, and what the rules promise must stay possible.
        reserve = min(self._protocol(silo, round), total // 2, total - self._promised)
        reserve = max(self._reserve, reserve)
        return Allowance(max(total - reserve, 0), reserve)

    def _protocol(self, silo: str, round: int) -> int:
        """Bytes that the protocol may cost a silo in a round, by what it did cost."""
        seen = self._ledger.protocol(silo, max(round - ROUNDS, 2))  # the first round's has the joining in it
        return 3 * median_low(seen) // 2 if seen else 0

    def _totals(self, behind: Mapping[str, int], round: int, rounds: Sequence[Round]) -> dict[str, int]:
        """The bytes of each silo that a round serves, of those that lack so many; the longest not served first."""
        whole = self._budget.bytes_per_round
        if whole is None:
            return dict.fromkeys(behind, self._budget.bytes_per_silo or 0)
        turns: dict[str, list[int]] = {silo: [] for silo in behind}
        for number, each in ((past.round, each) for past in rounds for each in past.plan.assignments):
            if each.silo in turns and each.spending is not None and each.spending.allowance.limit > 0:
                turns[each.silo].insert(0, number)
        order = sorted(behind, key=lambda silo: (turns[silo], behind[silo], silo))
        costs = [self._protocol(silo, round) for silo in order]
        for count in range(len(order), 0, -1):
            share = (whole - sum(costs[count:])) // count
            if count <= self._config.rounds.needed:  # they get what they need: ``check`` has seen that it is there
                share = max(share, self._promised + self._reserve)
            elif share < self._promised + max(self._reserve, *costs[:count]):
                continue
            return dict.fromkeys(order[:count], share)
        return {}

    def lacks(self, held: Mapping[str, int], current: Mapping[str, int]) -> dict[str, list[int]]:
        """Bytes on the wire, at most, of the transfers that bring each segment that is not held as it is now."""
        found: dict[str, list[int]] = {}
        for each in self._versions.routes(held, current):
            found.setdefault(each.segment, []).append(self.bytes([each]))
        return found

    def bytes(self, manifests: Sequence[Manifest]) -> int:
        """Bytes on the wire, at most, of published transfers."""
        return sum(crossing(self._versions.payload(each), each.chunks) for each in manifests)

    def plan(
        self,
        round: int,
        held: Mapping[str, Mapping[str, int]],
        current: Mapping[str, int],
        rounds: Sequence[Round],
        waited: int = 0,
    ) -> Plan:
        """The plan of a round, after those, for the silos that hold these versions.

        ``waited``: how many rounds' time has passed without one; what was measured is older by so many.
        """
        lacks = {silo: self.lacks(versions, current) for silo, versions in held.items()}
        behind = {silo: sum(map(sum, each.values())) for silo, each in lacks.items()}
        totals = self._totals(behind, round + waited, rounds)
        turn = f"waits for its turn: bytes_per_round serves {len(totals)} of {len(held)} silos in a round"
        members = [
            Member(silo, self.allowance(silo, round + waited, totals[silo]), lacks[silo])
            if silo in totals
            else Member(silo, Allowance(0.0), lacks[silo], turn)
            for silo in held
        ]
        past, quorum = [each.plan.open for each in rounds if each.silos], self._config.rounds.needed
        return plan_budget(round, members, self._rungs, self._budget.refresh, past, quorum)

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
