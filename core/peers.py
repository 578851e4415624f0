"""What silos and the federator agree on where silos average ranges for each other (docs/peer.md).

Nouns and names only: who owns which range, what an owner is to do, and how the transfers between silos are called.
The federator makes them (federator/exchange.py), the silo acts on them (silo/peers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from feddiff.core.manifests import update
from feddiff.core.ranges import Range, range_of
from feddiff.core.sections import CodecConfig
from feddiff.core.spool import Manifest

Kind = Literal["update", "result", "other"]
KINDS: tuple[Kind, ...] = ("update", "result", "other")
MARK = 12
"""Hexadecimal digits by which results of different inputs have different names."""


@dataclass(frozen=True)
class Source:
    """Where a transfer of a task comes from. ``silo``: empty for the federator; ``digest``: empty if not known."""

    silo: str
    digest: bytes = b""


@dataclass(frozen=True)
class Dealings:
    """What a round's task says of other silos."""

    revision: int
    """Of the ownership: it rises whenever a range gets another owner."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[Range, str] = field(default_factory=dict)
    """Who gets which range of what is to be reported."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """By the name of a transfer that comes down."""


@dataclass(frozen=True)
class Accept:
    """A range that a silo owns. ``elements``: values in the whole segment; ``base``: the version that all start at."""

    range: Range
    elements: int
    base: int
    senders: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    """One silo's update of a range. ``digest``: of the range's transfer; of a sample: the chunk's checksum."""

    silo: str
    weight: float
    digest: bytes


@dataclass(frozen=True)
class Carry:
    """Who has what encoding these chunks lost the last time."""

    range: Range
    silo: str


@dataclass(frozen=True)
class Folding:
    """A range to be averaged now. ``result``: the manifest of its publication; chunks in no carry have lost nothing."""

    result: Manifest
    base: int
    inputs: tuple[Input, ...]
    carries: tuple[Carry, ...] = ()


@dataclass(frozen=True)
class Result:
    """What an owner says came out: payload checksums of the range's chunks, and of what encoding them lost."""

    transfer: str
    checksums: bytes
    lost: bytes
    encoded: int


@dataclass(frozen=True)
class Sample:
    """One chunk of another's result, to be averaged again. Checksums are empty where nothing was lost."""

    owner: str
    result: Manifest
    base: int
    chunk: int
    inputs: tuple[Input, ...]
    before: bytes
    checksum: bytes
    lost: bytes

    @property
    def range(self) -> Range:
        return Range(self.result.segment, self.chunk, self.chunk + 1)


@dataclass(frozen=True)
class Duty:
    """What a silo is to do for others. ``addresses``: of all silos of the round; empty for one that does not listen."""

    id: str = ""
    round: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict)
    accepts: tuple[Accept, ...] = ()
    folds: tuple[Folding, ...] = ()
    samples: tuple[Sample, ...] = ()
    keeps: tuple[Manifest, ...] = ()
    grants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Declared:
    """A whole update as its silo has encoded it. ``checksums``: of its chunks, side by side."""

    manifest: Manifest
    checksums: bytes
    encoded: int


@dataclass(frozen=True)
class Tallied:
    """What went from one silo to another, as one of them counted it. Sizes in bytes, ``parameters`` in values."""

    source: str
    target: str
    segment: str
    kind: Kind
    parameters: int = 0
    encoded: int = 0
    wire: int = 0
    seconds: float = 0.0


def lost(codec: CodecConfig, segment: str, size: int, version: int) -> Manifest:
    """The transfer of what encoding a whole segment's publication lost."""
    return Manifest(f"lost.{segment}.{version}", segment, -1, version, "fp32", size, codec.chunk_elements)


def owned(codec: CodecConfig, round: int, silo: str, accept: Accept) -> Manifest:
    """The transfer of a silo's update of an owned range."""
    whole = update(codec, round, silo, accept.range.segment, accept.elements, accept.base)
    return accept.range.of(whole)


def sampled(sample: Sample, codec: CodecConfig, elements: int, round: int) -> list[tuple[Manifest, bytes]]:
    """What a checker fetches of an owner for a sample, each of one chunk with the checksum that it must have.

    The inputs in their order, then the result, then what was lost there before and after, where anything was.
    """
    around, segment = range_of(sample.result), sample.result.segment
    accept = Accept(around, elements, sample.base, ())
    found = [(sample.range.of(owned(codec, round, each.silo, accept)), each.digest) for each in sample.inputs]
    found.append((sample.range.of(sample.result), sample.checksum))
    for version, check in ((sample.base, sample.before), (sample.base + 1, sample.lost)):
        if check:
            found.append((sample.range.of(lost(codec, segment, elements, version)), check))
    return found


def mark(inputs: Sequence[Input], carries: Sequence[Carry]) -> str:
    """Tells the results of these inputs from those of others: a stale piece never ends up among new ones."""
    told = [
        [[each.silo, each.weight, each.digest.hex()] for each in inputs],
        [[each.range.first, each.range.end] for each in carries],
    ]
    return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()[:MARK]


def kind_of(manifest: Manifest) -> Kind:
    """What a fetched transfer is for the ledger: a version, or what only a check or a next owner needs."""
    ranges = manifest.transfer.removeprefix(f"down.{manifest.segment}.").split(".")
    return "result" if manifest.transfer.startswith("down.") and len(ranges) < 4 else "other"
