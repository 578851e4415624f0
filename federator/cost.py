"""What rows of the ledger come to.

Between ledger and report: a sum keeps the two directions apart and forgets the rest of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from feddiff.federator.ledger import Entry

K = TypeVar("K", int, str)


@dataclass(frozen=True)
class Cost:
    """Sizes in bytes, ``down`` and ``up`` on the wire, ``seconds`` of transfer; see ``Entry``."""

    raw: int = 0
    encoded: int = 0
    down: int = 0
    up: int = 0
    retransmitted: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Cost:
        """Add rows up."""
        rows = list(entries)
        return cls(
            raw=sum(row.raw for row in rows),
            encoded=sum(row.encoded for row in rows),
            down=sum(row.wire for row in rows if row.direction == "down"),
            up=sum(row.wire for row in rows if row.direction == "up"),
            retransmitted=sum(row.retransmitted for row in rows),
            seconds=sum(row.seconds for row in rows),
        )

    @property
    def wire(self) -> int:
        """Bytes that crossed in both directions."""
        return self.down + self.up


def costs(entries: Iterable[Entry], key: Callable[[Entry], K]) -> dict[K, Cost]:
    """The sums of rows that share a key, in order of the keys."""
    groups: dict[K, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return {name: Cost.of(groups[name]) for name in sorted(groups)}
