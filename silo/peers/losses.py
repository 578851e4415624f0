"""What encoding the ranges that a silo owns has lost: kept for the next round, and for who owns them then.

A file for each range of each version (core/feedback.py), counted from the range's start. It travels as float32, whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.errors import NotSelected
from feddiff.core.peers import Folding, lost
from feddiff.core.ranges import Range, range_of
from feddiff.core.sections import CodecConfig
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, WeightsWriter


class Losses:
    """A folder of them."""

    def __init__(self, folder: Path, codec: CodecConfig) -> None:
        self.folder, self._codec = folder, codec
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, piece: Range, version: int) -> Path:
        return self.folder / f"{piece.segment}.{piece.first}-{piece.end}@{version}.safetensors"

    def prune(self, segment: str, base: int) -> None:
        """Forget those of versions before ``base``."""
        for path, _, version in self._files(segment):
            if version < base:
                path.unlink(missing_ok=True)

    def _files(self, segment: str) -> Iterator[tuple[Path, Range, int]]:
        for path in sorted(self.folder.glob(f"{segment}.*@*.safetensors")):
            name, _, version = path.stem.rpartition("@")
            with contextlib.suppress(ValueError):
                first, _, end = name.removeprefix(f"{segment}.").partition("-")
                yield path, Range(segment, int(first), int(end)), int(version)

    def _chunks(self, piece: Range, elements: int, version: int) -> Iterator[tuple[int, F32]]:
        """(chunk, what was lost in it) of a piece, of all files of its version."""
        size = self._codec.chunk_elements
        for path, mine, of in self._files(piece.segment):
            first, end = max(mine.first, piece.first), min(mine.end, piece.end)
            if of != version or first >= end:
                continue
            with WeightsReader(path) as reader:
                for chunk in range(first, end):
                    count = min(size, elements - chunk * size)
                    yield chunk, reader.read(piece.segment, (chunk - mine.first) * size, count)

    def gather(self, piece: Range, elements: int, folding: Folding, silo: str, fetched: Path) -> Path | None:
        """One file of what was lost in a range before: this silo's own, and what others gave. None if nothing was."""
        if not folding.carries:
            return None
        size = self._codec.chunk_elements
        count = min(piece.end * size, elements) - piece.first * size
        place = self.folder / f"before.{piece.segment}.{piece.first}-{piece.end}.safetensors"
        whole = lost(self._codec, piece.segment, elements, folding.base)
        with WeightsWriter(place, {piece.segment: count}, digested=False) as writer:
            for carry in folding.carries:
                due = set(range(carry.range.first, carry.range.end))
                if carry.silo == silo:
                    found = self._chunks(carry.range, elements, folding.base)
                else:
                    found = decoded(carry.range.of(whole), fetched)
                for chunk, values in found:
                    writer.write(piece.segment, (chunk - piece.first) * size, values)
                    due.discard(chunk)
                if due:
                    raise NotSelected(f"what was lost in {carry.range} of version {folding.base} is not here")
            writer.commit()
        return place

    def checksums(self, piece: Range, elements: int, version: int) -> bytes:
        """Of what was lost in each chunk, as it travels, side by side; nothing if nothing was."""
        found = sorted(self._chunks(piece, elements, version), key=lambda each: each[0])
        return b"".join(checksum(CODECS["fp32"].encode(values, None)) for _, values in found)

    def encode(self, manifest: Manifest, elements: int, folder: Path) -> None:
        """Make the transfer of what was lost in a piece. Raises NotSelected."""
        piece = range_of(manifest)
        if piece.of(lost(self._codec, manifest.segment, elements, manifest.version)) != manifest:
            raise NotSelected(f"there is no {manifest.transfer}")
        found = dict(self._chunks(piece, elements, manifest.version))
        with closing(Spool(manifest.path(folder), manifest, fresh=True, durable=False)) as spool:
            for index, chunk in enumerate(range(piece.first, piece.end)):
                if chunk not in found:
                    raise NotSelected(f"what was lost in {piece} of version {manifest.version} is not here")
                payload = CODECS["fp32"].encode(found[chunk], None)
                spool.append(index, payload, checksum(payload))
            spool.commit(spool.digest())


def decoded(manifest: Manifest, folder: Path) -> Iterator[tuple[int, F32]]:
    """(chunk of the segment, values) of a committed absolute transfer."""
    first = range_of(manifest).first
    with closing(Transfer(manifest.path(folder))) as transfer:
        for index, payload, _ in transfer.chunks():
            yield first + index, CODECS[manifest.codec].decode(payload, manifest.count(index), None)
