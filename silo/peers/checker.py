"""Averaging samples of another silo's results again, to find out one that lies (federator/checking.py).

All that goes in is fetched from the owner and must have the checksums that the senders told the federator; so an owner
can neither make up what it was sent nor give one result to the checker and another to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig
from feddiff.core.fold import BadUpdate, Contribution
from feddiff.core.peers import Sample, sampled
from feddiff.core.ranges import digest
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Transfer, committed
from feddiff.core.store import WeightsReader, WeightsWriter
from feddiff.silo.local import held_file
from feddiff.silo.peers.averaging import average, loses


class Checker:
    """Of one silo; ``state`` is its state folder."""

    def __init__(self, state: Path, folder: Path, config: FederationConfig) -> None:
        self._state, self._folder, self._config = state, folder, config

    def wanted(self, sample: Sample, round: int) -> list[tuple[Manifest, bytes]]:
        """What is to be fetched from the owner, and the digest that each must have."""
        with WeightsReader(held_file(self._state, sample.result.segment, sample.base)) as reader:
            size = reader.size(sample.result.segment)
        pieces = sampled(sample, self._config.codec, size, round)
        return [(manifest, digest(manifest, [check])) for manifest, check in pieces]

    def finding(self, sample: Sample, pieces: Sequence[tuple[Manifest, bytes]]) -> str:
        """What is wrong with a sample whose pieces were fetched; empty if nothing is."""
        for manifest, known in pieces:
            if committed(self._folder, manifest) != known:
                return f"it does not give {manifest.transfer} as it was told of"
        if loses(self._config, sample.result) != bool(sample.lost):
            return f"it tells of {'a' if sample.lost else 'no'} loss, of the codec {sample.result.codec}"
        manifests = [manifest for manifest, _ in pieces]
        try:
            return self._compare(sample, manifests)
        except BadUpdate as error:
            return f"it averaged what cannot be averaged: {error.silo}, {error.reason}"

    def _compare(self, sample: Sample, manifests: Sequence[Manifest]) -> str:
        inputs, (theirs, *losses) = manifests[: len(sample.inputs)], manifests[len(sample.inputs) :]
        segment, chunk = sample.result.segment, sample.chunk
        before, after = self._folder / "before.safetensors", self._folder / "after.safetensors"
        if sample.before:
            values = _values(losses[0], self._folder, None)
            with WeightsWriter(before, {segment: values.size}, digested=False) as writer:
                writer.write(segment, 0, values)
                writer.commit()
        mine = self._folder / "mine"
        mine.mkdir(exist_ok=True)
        with ExitStack() as files:
            base = files.enter_context(WeightsReader(held_file(self._state, segment, sample.base)))
            contributions = [
                Contribution(
                    each.silo, each.weight, files.enter_context(closing(Transfer(manifest.path(self._folder))))
                )
                for each, manifest in zip(sample.inputs, inputs, strict=True)
            ]
            known = before if sample.before else None
            average(self._config, theirs, contributions, base, mine, known, after)
            previous = None if theirs.absolute else base.read(segment, theirs.start, theirs.elements)
            if not _same(_values(theirs, mine, previous), _values(theirs, self._folder, previous)):
                return f"chunk {chunk} of {segment} is not the average of what was sent"
        if sample.lost:
            with WeightsReader(after) as reader:
                if not _same(reader.read(segment), _values(losses[-1], self._folder, None)):
                    return f"what encoding chunk {chunk} of {segment} lost is not what it says"
        return ""


def _values(manifest: Manifest, folder: Path, base: F32 | None) -> F32:
    """The values of a transfer of one chunk."""
    with closing(Transfer(manifest.path(folder))) as transfer:
        payload = next(transfer.chunks())[1]
    return CODECS[manifest.codec].decode(payload, manifest.elements, base)


def _same(mine: F32, theirs: F32) -> bool:
    """Whether these are the same bits."""
    return bool(np.array_equal(mine.view(np.uint32), theirs.view(np.uint32)))
