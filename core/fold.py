"""Averaging: updates of one segment in, the next version out, a chunk at a time.

Whoever folds, the federator or a silo that owns a range of chunks, runs this. Memory holds one chunk of each kind,
whatever the number of silos and the size of the model. Silos are taken in sorted order and summed in float64, so the
result has the same bits whatever the order in which updates arrived.

    w_{v+1} = sum_k c_k w_k / sum_k c_k        over the silos that reported this segment (McMahan et al. 2017, eq. 1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from feddiff.core.codec import CODECS
from feddiff.core.errors import FedDiffError, NotFinite, UpdateRejected
from feddiff.core.feedback import Feedback, encode
from feddiff.core.outer import Outer
from feddiff.core.ranges import Encoded
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, checksum
from feddiff.core.store import WeightsReader, WeightsWriter


@dataclass(frozen=True)
class Weight:
    """What a silo's update counts, beside the others', and why."""

    value: float
    reason: str


@dataclass(frozen=True)
class Contribution:
    """One silo's committed update of the segment. ``weight`` is c_k, above 0 (federator/weighting.py)."""

    silo: str
    weight: float
    transfer: Encoded


class BadUpdate(UpdateRejected):
    """One silo's update cannot be averaged."""

    def __init__(self, silo: str, reason: str) -> None:
        super().__init__(f"{silo}: {reason}")
        self.silo, self.reason = silo, reason


def fold(
    contributions: Sequence[Contribution],
    base: WeightsReader,
    into: WeightsWriter | None,
    out: Spool,
    outer: Outer | None = None,
    feedback: Feedback | None = None,
) -> None:
    """Write the segment's next version, and the transfer that brings it to the silos.

    That is the weighted mean, or ``outer``'s step towards it. ``out.manifest`` says how it is encoded (a delta from
    ``base``, or absolute). What is published is what a silo decodes, bit for bit, also when the codec loses something;
    ``feedback`` carries that loss to the next round. A range (core/ranges.py) is folded of transfers of this range:
    ``base`` is of the whole segment, all else counts from the range's start. Raises BadUpdate, naming the silo, before
    anything is visible: for an update that is not finite, cannot be decoded, or moves the mean beyond the codec.
    """
    manifest = out.manifest
    ordered = sorted(contributions, key=lambda each: each.silo)
    total = sum(each.weight for each in ordered)
    streams = [each.transfer.chunks() for each in ordered]
    for index in range(manifest.chunks):
        start, count = index * manifest.chunk_elements, manifest.count(index)
        previous = base.read(manifest.segment, manifest.start + start, count)
        mean = np.zeros(count, np.float64)
        for each, stream in zip(ordered, streams, strict=True):
            mean += each.weight * _decode(each, stream, count, previous).astype(np.float64)
        mean /= total
        try:
            stepped = mean if outer is None else outer.step(start, previous, mean)
            values, reference = stepped.astype(np.float32), None if manifest.absolute else previous
            payload, published = encode(CODECS[manifest.codec], values, reference, start, feedback)
            out.append(index, payload, checksum(payload))
            if into is not None:
                into.write(manifest.segment, start, published)
        except NotFinite as error:
            silo = _heaviest(ordered, index, count, previous)
            raise BadUpdate(silo, f"{manifest.segment} moves the mean beyond {manifest.codec}: {error}") from None


def _heaviest(contributions: Sequence[Contribution], index: int, count: int, previous: F32) -> str:
    """The silo whose update moves a chunk's mean furthest."""

    def push(each: Contribution) -> float:
        values = _decode(each, each.transfer.chunks(index), count, previous).astype(np.float64)
        return each.weight * float(np.abs(values - previous).max())

    return max(contributions, key=push).silo


def _decode(each: Contribution, stream: Iterator[tuple[int, bytes, bytes]], count: int, previous: F32) -> F32:
    manifest: Manifest = each.transfer.manifest
    try:
        _, payload, _ = next(stream)
        return CODECS[manifest.codec].decode(payload, count, None if manifest.absolute else previous)
    except NotFinite as error:
        raise BadUpdate(each.silo, f"{manifest.segment} holds NaN or infinity: {error}") from None
    except FedDiffError as error:
        raise BadUpdate(each.silo, f"{manifest.segment} cannot be decoded: {error}") from None
