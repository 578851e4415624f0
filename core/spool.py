"""A transfer as a file: manifest, chunks, seal.

The sender keeps a transfer as a file of encoded chunks, the receiver builds the same file (core/transfer.py), and it
can be passed on as it lies. A file in the making is a log of self-checking records, so "how far are you" after a crash
is answered by reading it: a torn tail fails its checksum and is cut off. Nothing is visible before ``commit``.

    file    = magic, manifest, chunk 0, chunk 1, … , seal
    record  = index u32, length u32, checksum 16 bytes, payload           (little-endian)
    digest  = SHA-256(manifest bytes, checksum 0, checksum 1, …)          what both ends must agree on to commit
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from feddiff.core.codec import CODECS, UINT8, payload_bound
from feddiff.core.errors import DigestMismatch, FedDiffError, OffsetMismatch, ProtocolError, StoreError, TooLarge
from feddiff.core.store import make_visible, write_at

MAX_CHUNK_ELEMENTS = 1 << 20
MAX_CHUNKS = 1 << 24
_MAGIC = b"FDT1"
_RECORD = struct.Struct("<II16s")
_SEAL = 0xFFFFFFFF
POOL = "pool"
"""In place of a segment: public images (core/pool.py), uint8, which count as no parameters."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}")


def checksum(payload: bytes) -> bytes:
    """The first 16 bytes of SHA-256 (FIPS 180-4)."""
    return hashlib.sha256(payload).digest()[:16]


@dataclass(frozen=True)
class Manifest:
    """What a transfer holds; the fields are those of ``transfer.proto``. Raises ProtocolError or TooLarge."""

    transfer: str
    segment: str
    base_version: int
    version: int
    codec: str
    elements: int
    chunk_elements: int
    start: int = 0
    """The first value of the segment that it holds: above 0 only of a range (core/ranges.py)."""

    def __post_init__(self) -> None:
        for what in (self.transfer, self.segment):
            if not _NAME.fullmatch(what):
                raise ProtocolError(f"{what!r:.80} cannot name a transfer or a segment")
        if self.codec not in CODECS and not self.public:
            raise ProtocolError(f"there is no codec {self.codec!r:.40}; known: {', '.join(CODECS)}")
        if not -1 <= self.base_version < self.version:
            raise ProtocolError(f"{self.transfer}: version {self.version} cannot follow {self.base_version}")
        if not 1 <= self.chunk_elements <= MAX_CHUNK_ELEMENTS:
            raise TooLarge(f"{self.transfer}: {self.chunk_elements} values in a chunk, not 1..{MAX_CHUNK_ELEMENTS}")
        if self.elements < 1 or self.chunks > MAX_CHUNKS:
            raise TooLarge(f"{self.transfer}: {self.elements} values in {self.chunks} chunks")
        if self.start < 0 or self.start % self.chunk_elements:
            raise ProtocolError(f"{self.transfer}: no chunk begins at value {self.start}")

    @property
    def chunks(self) -> int:
        return -(-self.elements // self.chunk_elements)

    def count(self, index: int) -> int:
        """Values in one chunk: ``chunk_elements``, fewer in the last."""
        return min(self.chunk_elements, self.elements - index * self.chunk_elements)

    @property
    def absolute(self) -> bool:
        return self.base_version < 0

    @property
    def public(self) -> bool:
        """Whether it holds images of the pool: values are bytes."""
        return (self.segment, self.codec) == (POOL, UINT8)

    @property
    def parameters(self) -> int:
        """Weights that it holds."""
        return 0 if self.public else self.elements

    @property
    def raw(self) -> int:
        """Bytes of its values before encoding."""
        return self.elements if self.public else 4 * self.elements

    def path(self, folder: Path) -> Path:
        """Where the transfer lies in a folder once it is committed."""
        return folder / f"{self.transfer}.transfer"

    def canonical(self) -> bytes:
        """What its digest and its file begin with; whole segments do not mention that they start at 0."""
        fields = {name: value for name, value in asdict(self).items() if name != "start" or value}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


class Spool:
    """A transfer in the making. Opening it again after a crash finds every chunk that was whole.

    ``fresh`` throws those away. Not ``durable``: what a power cut tears is found by its checksums, and comes again.
    Not for two writers at a time: whoever opens one sees to that.
    """

    def __init__(self, path: Path, manifest: Manifest, fresh: bool = False, durable: bool = True) -> None:
        self.path, self.manifest, self._durable = path, manifest, durable
        self._part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0), 0o644)
        text = manifest.canonical()
        self._digest = hashlib.sha256(text)
        self.chunks = 0
        self.payload_bytes = 0
        header = _MAGIC + _RECORD.pack(0, len(text), checksum(text)) + text
        if os.pread(self._file, len(header), 0) == header:
            self._recover(len(header))
        else:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, header, 0)
            self._end = len(header)

    def _recover(self, position: int) -> None:
        for record in _records(self._file, position, self.manifest):
            if record.index == _SEAL:
                break
            self._count(record.checksum, len(record.payload))
            position = record.end
        os.ftruncate(self._file, position)
        self._end = position

    def _count(self, check: bytes, length: int) -> None:
        self._digest.update(check)
        self.chunks += 1
        self.payload_bytes += length

    def append(self, index: int, payload: bytes, check: bytes) -> bool:
        """Keep the next chunk; False if it is there already.

        Raises OffsetMismatch for a gap, TooLarge for a payload over its bound, DigestMismatch for a wrong checksum.
        """
        if index < self.chunks:
            return False
        if index > self.chunks or index >= self.manifest.chunks:
            raise OffsetMismatch(f"{self.manifest.transfer}: chunk {index} came where {self.chunks} was due")
        bound = payload_bound(self.manifest.count(index))
        if len(payload) > bound:
            raise TooLarge(f"{self.manifest.transfer}: chunk {index} has {len(payload)} bytes; at most {bound} can be")
        if checksum(payload) != check:
            raise DigestMismatch(f"{self.manifest.transfer}: chunk {index} does not match its checksum")
        header = _RECORD.pack(index, len(payload), check)
        self._end = write_at(self._file, payload, write_at(self._file, header, self._end))
        self._count(check, len(payload))
        return True

    def digest(self) -> bytes:
        """SHA-256 of the manifest and the checksums of the chunks so far."""
        return self._digest.digest()

    def commit(self, digest: bytes) -> Path:
        """Seal the file and make it visible under its name, durably. Raises DigestMismatch, OffsetMismatch."""
        if self.chunks != self.manifest.chunks:
            raise OffsetMismatch(
                f"{self.manifest.transfer}: commit after {self.chunks} of {self.manifest.chunks} chunks"
            )
        if digest != self.digest():
            raise DigestMismatch(f"{self.manifest.transfer}: sent {digest.hex()[:16]}, got {self.digest().hex()[:16]}")
        write_at(self._file, _RECORD.pack(_SEAL, len(digest), checksum(digest)) + digest, self._end)
        make_visible(self._file, self._part, self.path, self._durable)
        self.close()
        return self.path

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Transfer:
    """A committed transfer, read from its file. Raises StoreError if the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        try:
            size = os.fstat(self._file).st_size
            head = os.pread(self._file, 4 + _RECORD.size, 0)
            _, length, check = _RECORD.unpack(head[4:])
            text = os.pread(self._file, min(length, 1 << 16), len(head))
            if head[:4] != _MAGIC or checksum(text) != check:
                raise ValueError("bad header")
            self.manifest = Manifest(**json.loads(text))
            self._start = len(head) + length
            seal = os.pread(self._file, _RECORD.size + 32, size - _RECORD.size - 32)
            index, _, check = _RECORD.unpack(seal[: _RECORD.size])
            self.digest = seal[_RECORD.size :]
            if index != _SEAL or checksum(self.digest) != check:
                raise ValueError("no seal")
            self.payload_bytes = size - self._start - (self.manifest.chunks + 1) * _RECORD.size - 32
        except (ValueError, TypeError, struct.error, OSError, FedDiffError) as error:
            self.close()
            raise StoreError(f"{path} is not a committed transfer: {error}") from None

    def heads(self, count: int) -> Iterator[tuple[int, int, bytes]]:
        """(position, payload bytes, checksum) of the first ``count`` chunks, unchecked."""
        position = self._start
        for index in range(count):
            head = os.pread(self._file, _RECORD.size, position)
            if len(head) < _RECORD.size or _RECORD.unpack(head)[0] != index:
                raise StoreError(f"{self.path}: a chunk before {count} is damaged")
            _, length, check = _RECORD.unpack(head)
            yield position, length, check
            position += _RECORD.size + length

    def chunks(self, first: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(index, payload, checksum) from chunk ``first`` on, each checked."""
        position = self._start
        for place, length, _ in self.heads(first):
            position = place + _RECORD.size + length
        due = first
        for record in _records(self._file, position, self.manifest, due):
            if record.index == _SEAL:
                break
            yield record.index, record.payload, record.checksum
            due += 1
        if due < self.manifest.chunks:
            raise StoreError(f"{self.path}: chunk {due} is damaged")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def committed(folder: Path, manifest: Manifest) -> bytes:
    """The digest of a committed transfer, or nothing. A file of other content under its name is removed."""
    place = manifest.path(folder)
    if not place.exists():
        return b""
    try:
        transfer = Transfer(place)
    except StoreError:
        place.unlink()
        return b""
    transfer.close()
    if transfer.manifest != manifest:
        place.unlink()
        return b""
    return transfer.digest


@dataclass(frozen=True)
class _Record:
    index: int
    payload: bytes
    checksum: bytes
    end: int


def _records(file: int, position: int, manifest: Manifest, due: int = 0) -> Iterator[_Record]:
    """Whole records from a position on; stops at the first that is torn, wrong or out of order."""
    while True:
        head = os.pread(file, _RECORD.size, position)
        if len(head) < _RECORD.size:
            return
        index, length, check = _RECORD.unpack(head)
        bound = 32 if index == _SEAL else payload_bound(manifest.count(due)) if due < manifest.chunks else -1
        if length > bound or index not in (due, _SEAL):
            return
        payload = os.pread(file, length, position + _RECORD.size)
        if len(payload) < length or checksum(payload) != check:
            return
        position += _RECORD.size + length
        yield _Record(index, payload, check, position)
        due += 1
