"""Says who averages which chunks in a federation of peers, and why.

Pure functions: the same round is planned again, to the chunk, after a crash. All chunks that a round reports lie on a
line, in the order of the layout, and each owner gets a stretch of it as long as its link is fast: so there are few
ranges, and all owners are done at about the same time. An owner keeps its ranges from round to round, for with them it
keeps what their encoding lost; they are dealt anew when that has become unfair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from feddiff.core.errors import NotSelected
from feddiff.core.ranges import Range

UNFAIR = 1.25
"""Ranges are dealt anew when the slowest owner takes this much longer than if all were dealt by their links."""


@dataclass(frozen=True)
class Ownership:
    """Who owns which range: each reported chunk is in exactly one."""

    owners: Mapping[Range, str]
    reason: str


def own(chunks: Mapping[str, int], rates: Mapping[str, float], before: Mapping[Range, str] | None = None) -> Ownership:
    """Deal the chunks of segments among silos with links of these rates (above 0, any unit).

    ``before``: the last round's. Raises NotSelected if there is nobody.
    """
    if not rates:
        raise NotSelected("no silo can own a range")
    before = before or {}
    if set(before.values()) == rates.keys() and _covers(before, chunks) and _slowest(before, rates) <= UNFAIR:
        return Ownership(before, f"{_words(before)}, as before")
    dealt = deal([Range(name, 0, count) for name, count in chunks.items()], rates)
    return Ownership(dealt, _words(dealt))


def reassign(owners: Mapping[Range, str], rates: Mapping[str, float]) -> Ownership:
    """Give the ranges of whoever is not in ``rates`` to those who are; the others keep theirs. Raises NotSelected."""
    if not rates:
        raise NotSelected("no silo is left that can own a range")
    orphans = [each for each, owner in owners.items() if owner not in rates]
    gone = sorted({owners[each] for each in orphans})
    kept = {each: owner for each, owner in owners.items() if owner in rates}
    dealt = dict(sorted({**kept, **deal(orphans, rates)}.items()))
    return Ownership(dealt, f"{_words(dealt)}; those of {', '.join(gone)} go to others")


def deal(ranges: Sequence[Range], rates: Mapping[str, float]) -> dict[Range, str]:
    """Cut ranges so that each silo, in order of their names, gets a stretch of chunks in proportion to its rate."""
    total, speed = sum(each.chunks for each in ranges), sum(rates.values())
    ends: list[tuple[int, str]] = []
    sofar = 0.0
    for silo in sorted(rates):
        sofar += rates[silo]
        ends.append((round(total * sofar / speed), silo))
    dealt: dict[Range, str] = {}
    place, turn = 0, 0
    for each in ranges:
        at = each.first
        while at < each.end:
            while place >= ends[turn][0]:
                turn += 1
            count = min(each.end - at, ends[turn][0] - place)
            dealt[Range(each.segment, at, at + count)] = ends[turn][1]
            at, place = at + count, place + count
    return dealt


def usable(willing: Collection[str], cut: Collection[frozenset[str]]) -> set[str]:
    """Those that every silo reaches: an owner deals with all."""
    return {silo for silo in willing if not any(silo in pair for pair in cut)}


def _covers(owners: Mapping[Range, str], chunks: Mapping[str, int]) -> bool:
    ends = dict.fromkeys(chunks, 0)
    for each in sorted(owners):
        if ends.get(each.segment) != each.first:
            return False
        ends[each.segment] = each.end
    return ends == dict(chunks)


def _slowest(owners: Mapping[Range, str], rates: Mapping[str, float]) -> float:
    """The longest that an owner takes, as a multiple of what all would if dealt by their links."""
    ideal = sum(each.chunks for each in owners) / sum(rates.values())
    loads = dict.fromkeys(rates, 0)
    for each, owner in owners.items():
        loads[owner] += each.chunks
    # A chunk is the smallest piece: of few, the deal cannot be fair.
    return max(max(loads[silo] - 1, 0) / rates[silo] for silo in rates) / ideal


def _words(owners: Mapping[Range, str]) -> str:
    loads: dict[str, int] = {}
    for each, owner in owners.items():
        loads[owner] = loads.get(owner, 0) + each.chunks
    return "owners: " + ", ".join(f"{silo} {count}" for silo, count in sorted(loads.items())) + " chunks"
