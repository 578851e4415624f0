"""How fast each silo's link is, by its own transfers.

Between the ledger and the plan ``budget``. Up: bytes and time of the updates as they came in. Down: the time in which
the kernel had bytes on their way to the silo (federator/traffic.py); gRPC takes megabytes in no time, whatever the
link. All of it is in the ledger, so a federator knows its silos' links again after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from feddiff.federator.ledger import Direction, Ledger

LEAST = 64 << 10
"""Bytes in a round from which on they say something about a link."""
ROUNDS = 3
"""The median of so many rounds counts: a single bad one does not."""


@dataclass(frozen=True)
class Rate:
    """Bytes a second, and the newest round that it was measured in."""

    bytes_s: float
    round: int

    @property
    def mbit_s(self) -> float:
        return self.bytes_s * 8e-6


def estimate(flows: Sequence[tuple[int, int, float]]) -> Rate | None:
    """What (round, bytes, seconds) of a silo's newest rounds that say something, newest first, say of its link."""
    return Rate(median(size / took for _, size, took in flows), flows[0][0]) if flows else None


class Links:
    """The measured rates."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def rate(self, silo: str, direction: Direction) -> Rate | None:
        """What was measured in the newest rounds that say something; None if none does."""
        return estimate(self._ledger.flows(silo, direction, LEAST, ROUNDS))

    def taken_for(self, silo: str, direction: Direction, round: int, assumed: float) -> float:
        """Bytes a second to count on in a round; ``assumed`` if nothing is known.

        A silo that is too slow to take part is not measured any more, and might be for good although its link has
        recovered: from the third round without a measurement on, it is taken for twice as fast with each, up to what
        is assumed of links.
        """
        found = self.rate(silo, direction)
        if found is None:
            return assumed
        unknown = max(round - found.round - ROUNDS, 0)
        return max(found.bytes_s, min(found.bytes_s * 2.0 ** min(unknown, 64), assumed))
