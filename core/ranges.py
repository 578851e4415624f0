"""Ranges of a segment's chunks: what a silo owns of a round, and how they travel.

In a federation of peers (docs/peer.md) each silo averages some ranges. A range of a transfer is a transfer of its own:
the same chunks with the same checksums, a manifest that says where it starts, and a digest over both. So a sender cuts
it out of the file that it has, and whoever knows the checksums of a whole knows the digest of each range.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from feddiff.core.errors import ProtocolError
from feddiff.core.spool import Manifest, Transfer

CHECKSUM_BYTES = 16


class Encoded(Protocol):
    """What a sender reads from: a transfer's file, or a range of its chunks."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def payload_bytes(self) -> int: ...
    def chunks(self, first: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(index, payload, checksum) from chunk ``first`` on, each checked."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, order=True)
class Range:
    """Chunks ``first`` up to ``end`` (not included) of a segment. Raises ProtocolError."""

    segment: str
    first: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end:
            raise ProtocolError(f"{self.segment:.80}: {self.first} to {self.end} is no range of chunks")

    def __str__(self) -> str:
        return f"{self.segment}[{self.first}:{self.end}]"

    @property
    def chunks(self) -> int:
        return self.end - self.first

    def of(self, manifest: Manifest, mark: str = "") -> Manifest:
        """The manifest of this range of a transfer, which is of the whole segment or of a range around this one.

        ``mark`` tells it from others of its name. Raises ProtocolError.
        """
        around = range_of(manifest)
        if self.segment != around.segment or self.first < around.first or self.end > around.end:
            raise ProtocolError(f"{self} is not in {manifest.transfer}, which has {around}")
        start = self.first * manifest.chunk_elements
        return replace(
            manifest,
            transfer=f"{manifest.transfer}.{self.first}-{self.end}{f'.{mark}' if mark else ''}",
            elements=min(self.end * manifest.chunk_elements, manifest.start + manifest.elements) - start,
            start=start,
        )


def range_of(manifest: Manifest) -> Range:
    """Which chunks of the segment a transfer holds."""
    first = manifest.start // manifest.chunk_elements
    return Range(manifest.segment, first, first + manifest.chunks)


def digest(manifest: Manifest, checksums: Sequence[bytes]) -> bytes:
    """What both ends of a transfer must agree on (core/spool.py), by the checksums of its chunks."""
    found = hashlib.sha256(manifest.canonical())
    for each in checksums:
        found.update(each)
    return found.digest()


def split(packed: bytes, chunks: int) -> list[bytes]:
    """Checksums as they travel, side by side. Raises ProtocolError unless they are so many."""
    if len(packed) != CHECKSUM_BYTES * chunks:
        raise ProtocolError(f"{len(packed)} bytes of checksums for {chunks} chunks")
    return [packed[at : at + CHECKSUM_BYTES] for at in range(0, len(packed), CHECKSUM_BYTES)]


def checksums(transfer: Transfer) -> bytes:
    """Of all chunks of a transfer's file, side by side. Raises StoreError if it is damaged."""
    return b"".join(check for _, _, check in transfer.heads(transfer.manifest.chunks))


class Cut:
    """A range of a transfer's file, as a transfer. Closing it closes the file."""

    def __init__(self, transfer: Transfer, range: Range, mark: str = "") -> None:
        """Raises ProtocolError for a range that it does not hold, StoreError if it is damaged."""
        self._transfer, self.manifest = transfer, range.of(transfer.manifest, mark)
        self._first = range.first - range_of(transfer.manifest).first
        heads = list(transfer.heads(self._first + range.chunks))[self._first :]
        self.digest = digest(self.manifest, [check for _, _, check in heads])
        self.payload_bytes = sum(length for _, length, _ in heads)

    def chunks(self, first: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(index, payload, checksum) from chunk ``first`` of the range on, each checked."""
        wanted = self.manifest.chunks - first
        for index, payload, check in islice(self._transfer.chunks(self._first + first), wanted):
            yield index - self._first, payload, check

    def close(self) -> None:
        self._transfer.close()
