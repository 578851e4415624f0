"""Finding out an owner that lies: another silo averages some chunks of its result again.

The chunks are drawn after the owner has said what came out, so it cannot know which to get right; what goes in is
proven by the senders' checksums, which the federator has, so it cannot excuse itself by what it was sent either. How
likely a lie in a share s of an owner's chunks is found by n samples: 1 - (1 - s)^n.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from feddiff.core.peers import Sample, sampled
from feddiff.core.sections import CodecConfig


@dataclass
class Check:
    """One owner's. ``tried``: silos that were asked to check and could not."""

    samples: tuple[Sample, ...]
    checker: str = ""
    done: bool = False
    tried: set[str] = field(default_factory=set)


class Checking:
    """The checks of one round's results."""

    def __init__(self) -> None:
        self._chance = random.SystemRandom()
        self.checks: dict[str, Check] = {}

    def begin(self, owner: str, chunks: Sequence[Sample], count: int) -> None:
        """Draw ``count`` of an owner's chunks."""
        drawn = self._chance.sample(list(chunks), min(count, len(chunks)))
        self.checks[owner] = Check(tuple(drawn), done=not drawn)

    def assign(self, there: Collection[str]) -> list[str]:
        """Give each open check to a silo that is there and not its owner. Returns owners that none of them could check.

        A silo that is alone is not checked.
        """
        refused = []
        for owner, each in self.checks.items():
            if each.done or each.checker in there:
                continue
            able = sorted(set(there) - each.tried - {owner})
            each.checker = self._chance.choice(able) if able else ""
            if not able and each.tried:
                refused.append(owner)
            each.done = not able and not each.tried
        return refused

    def of(self, silo: str) -> tuple[Sample, ...]:
        """What a silo is to check."""
        return tuple(s for each in self.checks.values() if each.checker == silo and not each.done for s in each.samples)

    def judged(self, owner: str, checker: str, reachable: bool) -> bool:
        """Whether this was asked of this silo. One that cannot reach the owner is not asked again."""
        check = self.checks.get(owner)
        if check is None or check.done or check.checker != checker:
            return False
        if reachable:
            check.done = True
        else:
            check.tried.add(checker)
            check.checker = ""
        return True

    def waiting(self) -> list[str]:
        """Owners whose results are still being checked."""
        return sorted(owner for owner, each in self.checks.items() if not each.done)

    def grants(self, owner: str, codec: CodecConfig, elements: Mapping[str, int], round: int) -> dict[str, list[str]]:
        """Who may fetch which pieces from an owner: those that its open check is about, and no others."""
        check = self.checks.get(owner)
        if check is None or check.done or not check.checker:
            return {}
        pieces = (sampled(each, codec, elements[each.result.segment], round) for each in check.samples)
        return {check.checker: [manifest.transfer for group in pieces for manifest, _ in group]}
