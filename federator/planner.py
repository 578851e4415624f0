"""Says who exchanges which segments in a round: one assignment for each silo, and why.

Stands at the start of every round: ``rounds`` decides that one opens and with whom, this module decides
what each of them receives and reports, ``federation`` makes tasks of it. A pure function of what it is
given, so that the same round is planned again, to the bit, after a crash or by an auditor.

The policies are FedDiffuse's (de Goede, Cox, Decouchant, arXiv 2406.12575). Every silo trains
the whole network under each; they differ in what is exchanged:

    policy   down, after the whole model once   up, each round                          stays in the silo
    full     everything                         everything                              -
    usplit   everything                         encoder or decoder, the bottleneck      -
                                                rides with one of the two
    ulatdec  bottleneck and decoder             bottleneck and decoder                  encoder
    udec     decoder                            decoder                                 encoder and bottleneck

Less what the rules call personal or frozen (core/sharing.py), under each of them. The plan ``budget`` is made in
federator/budget.py, of the same nouns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from feddiff.core.config import Fixed, Policy
from feddiff.core.errors import StoreError
from feddiff.core.peers import Dealings
from feddiff.core.segments import PARTS, UNET, Layout, Part
from feddiff.core.sharing import SHARED, Sharing, share
from feddiff.core.spool import Manifest
from feddiff.federator.measure import amount


@dataclass(frozen=True)
class Allowance:
    """What a silo's transfers of a round may cost: ``down`` and ``up`` for a byte, together at most ``limit``.

    In bytes both prices are 1; in seconds they are what a byte takes on the silo's link.
    """

    limit: float
    reserve: float = 0.0
    """Kept back besides: for the protocol's own bytes, or for a link that is slower than it was."""
    unit: Literal["bytes", "seconds"] = "bytes"
    down: float = 1.0
    up: float = 1.0

    def cost(self, down: float, up: float) -> float:
        """Of so many bytes down and up."""
        return down * self.down + up * self.up

    @property
    def each_way(self) -> float:
        """Bytes that may come down if as many go up."""
        return self.limit / (self.down + self.up)

    def words(self, down: float, up: float) -> str:
        """What so many bytes cost of what there is."""
        cost = self.cost(down, up)
        if self.unit == "bytes":
            whole = f"{amount(cost + self.reserve)} of {amount(self.limit + self.reserve)}"
            return f"{amount(down)} down, {amount(up)} up and {amount(self.reserve)} for the protocol: {whole}"
        speeds = f"{8e-6 / self.down:.3g} Mbit/s down and {8e-6 / self.up:.3g} up"
        return f"{amount(down)} down and {amount(up)} up at {speeds}: {cost:.1f} s of {self.limit + self.reserve:.1f} s"


@dataclass(frozen=True)
class Spending:
    """A silo's transfers of a round under plan "budget"."""

    allowance: Allowance
    down: int
    up: int
    """Bytes on the wire that its transfers cannot exceed."""


@dataclass(frozen=True)
class Assignment:
    """One silo's share of a round, in names of segments, each in layout order. Who has no ``up`` does not train."""

    silo: str
    down: tuple[str, ...]
    """Those whose published version training starts from; the rest is from the silo's own last training."""
    up: tuple[str, ...]
    """Those that it reports."""
    personal: tuple[str, ...]
    """Those that never leave a silo."""
    reason: str
    codec: str = ""
    """Of what it reports; empty: as the rules say."""
    spending: Spending | None = None
    short: Mapping[str, int] = field(default_factory=dict)
    """By how many versions a segment that comes down stays behind the current one, for more cannot be afforded."""

    def targets(self, current: Mapping[str, int]) -> dict[str, int]:
        """The version of each segment that comes down."""
        return {name: current[name] - self.short.get(name, 0) for name in self.down}


@dataclass(frozen=True)
class Work:
    """An assignment as the silo is told it, in transfers. ``start``: the versions that training starts from."""

    round: int
    down: tuple[Manifest, ...]
    up: tuple[Manifest, ...]
    start: Mapping[str, int]
    personal: tuple[str, ...]
    dealings: Dealings | None = None
    """Where silos average for each other: with whom."""


@dataclass(frozen=True)
class Plan:
    """A round as it is to be: assignments sorted by silo."""

    round: int
    policy: Policy
    assignments: tuple[Assignment, ...]
    reason: str
    open: tuple[str, ...] = ()
    """Under plan "budget": the segments that get a new version, in the order of the rotation."""
    codec: str = ""
    """Of their publication; empty: as the rules say."""

    @property
    def reporting(self) -> tuple[str, ...]:
        """The silos that have something to report."""
        return tuple(each.silo for each in self.assignments if each.up)

    @property
    def idle(self) -> bool:
        """Whether it has nothing for anybody."""
        return not any(each.up or each.down for each in self.assignments)

    def to_json(self) -> str:
        """JSON without spaces, the same for the same plan."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that ``to_json`` wrote. Raises StoreError for anything that is not a plan."""
        try:
            return _JSON.validate_json(text, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the text"
            raise StoreError(f"the stored plan cannot be read: {place}: {problem['msg']}") from None


_JSON = TypeAdapter(Plan)


def plan_round(
    policy: Fixed,
    round: int,
    silos: Collection[str],
    layout: Layout,
    seed: int,
    newcomers: Collection[str] = (),
    sharing: Sharing | None = None,
) -> Plan:
    """Assign the segments of ``layout`` to ``silos`` for a round, counted from 1.

    ``newcomers`` have never received the initial model and get everything down; in round 1 that is
    everybody. ``sharing``: what travels at all; by default what the policy shares. The order in which silos
    are given does not matter. Chance (usplit only) depends on seed, round and silos alone.
    """
    names, new = sorted(set(silos)), set(silos if round == 1 else newcomers)
    sharing, shared = sharing or share(layout, policy), SHARED[policy]
    less = set(layout.names) - set(sharing.shared)
    reported = dict(_split(names, seed, round)) if policy == "usplit" else {}
    assignments = []
    for silo in names:
        parts, reason = reported.get(silo, (shared, f"{_words(shared)}, as every silo"))
        up = tuple(name for name in sharing.shared if layout[name].part in parts)
        if without := [each.name for each in layout.segments if each.part in parts and each.name in less]:
            reason = f"{reason}, without {', '.join(without)}"
        if silo in new:
            reason = f"{reason}; starts from the whole model"
        assignments.append(
            Assignment(
                silo,
                down=layout.names if silo in new else sharing.shared,
                up=up,
                personal=sharing.personal,
                reason=reason,
            )
        )
    whole = len(new.intersection(names))
    summary = f"{policy}: {len(names)} silos, {whole} of them from the whole model"
    return Plan(round, policy, tuple(assignments), summary)


def _split(silos: list[str], seed: int, round: int) -> Iterator[tuple[str, tuple[tuple[Part, ...], str]]]:
    """USPLIT: deal the sorted silos in a fresh order; what each reports, and why.

    Of each pair the first reports the decoder, the second the encoder, and a coin gives the bottleneck to
    one of them. An odd last silo reports the bottleneck and, by a coin, encoder or decoder; a silo alone
    reports everything.
    """
    chance = Random(f"usplit, seed {seed}, round {round}")
    # Not shuffle(): of all methods, only random() is promised to give the same numbers in every Python.
    order = sorted(silos, key=lambda _: chance.random())
    for number, (first, second) in enumerate(zip(order[::2], order[1::2], strict=False), start=1):
        heads = chance.random() < 0.5
        upper: tuple[Part, ...] = ("bottleneck", "decoder") if heads else ("decoder",)
        lower: tuple[Part, ...] = ("encoder",) if heads else ("encoder", "bottleneck")
        yield first, (upper, f"pair {number}: {_words(upper)}; {second} sends {_words(lower)}")
        yield second, (lower, f"pair {number}: {_words(lower)}; {first} sends {_words(upper)}")
    if len(order) == 1:
        yield order[0], (UNET, f"alone: {_words(UNET)}")
    elif len(order) % 2:
        heads = chance.random() < 0.5
        rest: tuple[Part, ...] = ("bottleneck", "decoder") if heads else ("encoder", "bottleneck")
        yield order[-1], (rest, f"without a partner: {_words(rest)}")


def _words(parts: tuple[Part, ...]) -> str:
    return "everything" if parts in (PARTS, UNET) else " and ".join(parts)
