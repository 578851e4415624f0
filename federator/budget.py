"""The plan ``budget``: segments, codecs and silos of a round, so that no silo's allowance is overspent.

A published version is encoded once for all, and every silo holds the federator's very bits: a version that a silo
does not fetch now it must fetch later. So the downlink is planned for the whole federation. In each round a run of
segments is *open*: all silos report these and only these, and only these get a new version, which everybody fetches
in the next round. The runs follow each other around the layout as around a ring.

    round r    down: what round r-1 opened, as round r-1 chose      up: what round r opens, each silo in its own codec

A silo can afford ``limit / (price down + price up)`` bytes each way. The least of these bounds what a round opens. The
codec of its publication is the finest that still brings every segment its next version within ``refresh`` rounds of
the last; coarser ones open longer runs, so continuing with the same or a coarser one never comes too late. What the
silo's allowance leaves after its downlink, the size of which is known, buys the finest codec up; the publication's own
always fits. Sizes are bounds that the codecs keep (``Codec.bound``), never guesses.

A pure function, like federator/planner.py: the same arguments, the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from feddiff.core.codec import CODECS
from feddiff.core.segments import Layout
from feddiff.federator.measure import amount
from feddiff.federator.planner import Allowance, Assignment, Plan, Spending

Sizes = Mapping[str, int]
"""Bytes on the wire by segment, in layout order."""


@dataclass(frozen=True)
class Member:
    """A silo as the plan sees it."""

    silo: str
    allowance: Allowance
    lacks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Bytes on the wire, at most, of the transfers that bring each segment that it does not hold, in their order."""
    waits: str = ""
    """Why this round has nothing for it."""

    @property
    def behind(self) -> int:
        """Bytes on the wire, at most, that bring all that it lacks."""
        return sum(sum(transfers) for transfers in self.lacks.values())


def crossing(payload: int, chunks: int) -> int:
    """Bytes on the wire of a transfer, at most: framing adds 31 bytes to 16 KiB, and to a chunk less than 128."""
    return payload + payload // 500 + 128 * (chunks + 2)


def ladder(layout: Layout, codecs: Sequence[str], chunk_elements: int) -> dict[str, Sizes]:
    """What each segment can cost at most in each codec, one way."""

    def size(codec: str, elements: int) -> int:
        whole, rest = divmod(elements, chunk_elements)
        payload = whole * CODECS[codec].bound(chunk_elements) + CODECS[codec].bound(rest)
        return crossing(payload, whole + bool(rest))

    rungs: dict[str, Sizes] = {}
    coarser: Sizes = {}
    for codec in reversed(codecs):
        # A finer codec is never smaller, not even for a handful of values.
        coarser = {each.name: max(size(codec, each.size), coarser.get(each.name, 0)) for each in layout.segments}
        rungs[codec] = coarser
    return dict(reversed(rungs.items()))


def least(sizes: Sizes, refresh: int) -> int:
    """Bytes each way with which any ``refresh`` rounds in a row open every segment, wherever they begin."""
    names = tuple(sizes)
    rings = [names[start:] + names[:start] for start in range(len(names))]
    enough, short = sum(sizes.values()), max(sizes.values()) - 1
    while enough - short > 1:
        middle = (enough + short) // 2
        if max(len(_runs(ring, sizes, middle)) for ring in rings) <= refresh:
            enough = middle
        else:
            short = middle
    return enough


def plan_budget(
    round: int,
    members: Sequence[Member],
    rungs: Mapping[str, Sizes],
    refresh: int,
    past: Sequence[Sequence[str]],
    quorum: int = 1,
) -> Plan:
    """The plan of a round, counted from 1. ``rungs`` are finest first; ``past``: what each round that published opened.

    While allowances stay as they are, every segment is open at least once in any ``refresh`` rounds that publish. A
    silo that cannot afford that does not report, nor does one that still lacks too much; both are brought up to date
    as far as their allowances go. If fewer than ``quorum`` can afford it, the refresh is as quick as those allow that
    can afford any one segment; if fewer than that can report, nobody does.
    """
    names, coarsest = tuple(next(iter(rungs.values()))), tuple(rungs)[-1]
    served = [each for each in members if not each.waits]
    needed, what = least(rungs[coarsest], refresh), f"every segment within {refresh} rounds"
    fit = [each for each in served if each.allowance.each_way >= needed]
    if len(fit) < quorum:
        needed, what = max(rungs[coarsest].values()), "the largest segment"
        fit = [each for each in served if each.allowance.each_way >= needed]
    narrowest = min(fit, key=lambda each: (each.allowance.each_way, each.silo), default=None)
    way = None if narrowest is None else _way(rungs, narrowest.allowance.each_way, refresh, past)
    opened = way.runs[0] if way else ()
    able = {each.silo: codec for each in fit if (codec := _afford(each, rungs, opened))}
    few = f"{len(able)} of {len(members)} silos could report, and the quorum is {quorum}"
    assignments = []
    for each in sorted(members, key=lambda each: each.silo):
        chosen = able.get(each.silo)
        if chosen is None or len(able) < quorum:
            late = f"sits out: {what} takes {amount(needed)} each way" if each not in fit else ""
            assignments.append(_behind(each, names, f"does not report: {few}" if chosen else late))
            continue
        spending = Spending(each.allowance, each.behind, sum(rungs[chosen][name] for name in opened))
        reason = f"reports as {chosen}: {each.allowance.words(spending.down, spending.up)}"
        up = tuple(name for name in names if name in opened)
        assignments.append(Assignment(each.silo, names, up, (), reason, chosen, spending))
    if way is None or narrowest is None:
        summary = f"budget: no silo can afford the largest segment, {amount(needed)} each way"
        return Plan(round, "budget", tuple(assignments), summary)
    if not able:
        return Plan(round, "budget", tuple(assignments), "budget: nobody holds enough to report yet")
    if len(able) < quorum:
        return Plan(round, "budget", tuple(assignments), f"budget: {few}: nobody does")
    summary = (
        f"budget: {len(able)} of {len(members)} silos report {_words(opened, len(names))}, published as {way.codec};"
        f" once around takes {len(way.runs)} rounds of {amount(narrowest.allowance.each_way)} each way, which is what"
        f" {narrowest.silo} can afford{f'; a segment comes {way.late} rounds late' if way.late else ''}"
    )
    return Plan(round, "budget", tuple(assignments), summary, opened, way.codec)


@dataclass(frozen=True)
class _Way:
    """Once around the ring: what each round from this one on opens."""

    codec: str
    runs: Sequence[tuple[str, ...]]
    late: int
    """Rounds by which a segment misses its date."""


def _way(rungs: Mapping[str, Sizes], capacity: float, refresh: int, past: Sequence[Sequence[str]]) -> _Way:
    """With the finest codec that keeps every segment's date; else with the coarsest, which must fit."""
    names = tuple(next(iter(rungs.values())))
    begin = names.index(past[-1][-1]) + 1 if past else 0
    ring = names[begin:] + names[:begin]
    last = {name: turn for turn, opened in enumerate(past, start=1) for name in opened}
    turn = len(past) + 1
    found = []
    for codec, sizes in rungs.items():
        if max(sizes.values()) <= capacity:
            runs = _runs(ring, sizes, capacity)
            dates = (turn + wait - last.get(name, 0) - refresh for wait, run in enumerate(runs) for name in run)
            found.append(_Way(codec, runs, max(0, *dates)))
    return next((way for way in found if not way.late), found[-1])


def _runs(ring: Sequence[str], sizes: Sizes, capacity: float) -> list[tuple[str, ...]]:
    """The ring cut into runs, each as long as the capacity allows. No segment may be larger than that."""
    runs: list[list[str]] = []
    room = 0.0
    for name in ring:
        if not runs or sizes[name] > room:
            runs.append([])
            room = capacity
        runs[-1].append(name)
        room -= sizes[name]
    return [tuple(run) for run in runs]


def _afford(member: Member, rungs: Mapping[str, Sizes], opened: Sequence[str]) -> str | None:
    """The finest codec in which a silo can report what is open after fetching all that it lacks."""
    for codec, sizes in rungs.items():
        if member.allowance.cost(member.behind, sum(sizes[name] for name in opened)) <= member.allowance.limit:
            return codec
    return None


def _behind(member: Member, names: Sequence[str], why: str) -> Assignment:
    """The part of a silo that does not report: as much as its allowance brings, what lacks most first.

    Of several differences in a row as many as it can afford; the others follow in later rounds.
    """
    allowance, lacks = member.allowance, member.lacks
    if member.waits:
        return Assignment(member.silo, (), (), (), member.waits, spending=Spending(allowance, 0, 0))
    left, down = dict.fromkeys(names, 0) | {name: len(lacks[name]) for name in lacks}, 0
    for name in sorted(lacks, key=lambda name: (-sum(lacks[name]), names.index(name))):
        for size in lacks[name]:
            if allowance.cost(down + size, 0) > allowance.limit:
                break
            left[name] -= 1
            down += size
    chosen = tuple(name for name in names if left[name] < len(lacks.get(name, ())))
    short = {name: left[name] for name in chosen if left[name]}
    reason = why or f"catches up, {len(chosen) - len(short)} of {len(lacks)} segments that it lacks in this round"
    if short and not why:
        reason += f" and {len(short)} a part of the way"
    too_large = [name for name in names if name in lacks and allowance.cost(max(lacks[name]), 0) > allowance.limit]
    if too_large:
        reason += f"; cannot catch up: {too_large[0]} alone takes {amount(max(lacks[too_large[0]]))}"
    reason = f"{reason}: {allowance.words(down, 0)}"
    return Assignment(member.silo, chosen, (), (), reason, spending=Spending(allowance, down, 0), short=short)


def _words(opened: Sequence[str], count: int) -> str:
    if len(opened) == count:
        return "all segments"
    return f"{', '.join(opened)} ({len(opened)} of {count} segments)"
