"""Who has what encoding a published version lost, where silos average for each other.

A lossy codec's loss is added to the next version's difference (core/feedback.py), by whoever encodes that one: so a
range's next owner fetches it from the last. What went with an owner that is gone is lost: the round is right without
it, but not the one that the federator itself would have published.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from feddiff.core.peers import Carry, Result
from feddiff.core.ranges import CHECKSUM_BYTES, Range, split

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

FACT = "losses"
_NONE = bytes(CHECKSUM_BYTES)


class Carrying:
    """Of one federation: a version of each segment, the owners of its ranges, a checksum for each chunk."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._known: dict[str, tuple[int, dict[Range, str], list[bytes]]] = {}
        for segment, (version, owners, checks) in json.loads(federation.journal.fact(FACT) or "{}").items():
            ranges = {Range(segment, first, end): str(owner) for first, end, owner in owners}
            packed = bytes.fromhex(checks)
            self._known[segment] = (int(version), ranges, split(packed, len(packed) // CHECKSUM_BYTES))

    def carries(self, range: Range, base: int, there: Collection[str]) -> tuple[Carry, ...]:
        """Whom the owner of a range gets what was lost in it from; ``there``: those it reaches, and itself."""
        version, owners, checks = self._known.get(range.segment, (-1, {}, []))
        found = []
        for each, owner in sorted(owners.items()):
            first, end = max(each.first, range.first), min(each.end, range.end)
            if version == base and first < end and owner in there and checks[first] != _NONE:
                found.append(Carry(Range(range.segment, first, end), owner))
        return tuple(found)

    def before(self, segment: str, chunk: int, carries: Collection[Carry]) -> bytes:
        """Checksum of what was lost in a chunk, if a fold with these carries had it; else empty."""
        if not any(each.range.first <= chunk < each.range.end for each in carries):
            return b""
        return self._known[segment][2][chunk]

    def keep(self, versions: Mapping[str, int], results: Mapping[Range, Result], owners: Mapping[Range, str]) -> None:
        """These versions are current now."""
        for segment, version in versions.items():
            mine = sorted(each for each in results if each.segment == segment)
            checks: list[bytes] = []
            for each in mine:
                packed = results[each].lost
                checks += split(packed, each.chunks) if packed else [_NONE] * each.chunks
            self._known.pop(segment, None)
            if any(check != _NONE for check in checks):
                self._known[segment] = (version, {each: owners[each] for each in mine}, checks)
        told = {
            segment: [
                version,
                [[each.first, each.end, owner] for each, owner in ranges.items()],
                b"".join(checks).hex(),
            ]
            for segment, (version, ranges, checks) in self._known.items()
        }
        self._federation.journal.note(FACT, json.dumps(told))
