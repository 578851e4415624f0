"""Weights on disk: safetensors files that are read and written piece by piece.

A model may be larger than memory, so nothing here loads a file whole unless asked: readers ``pread`` a range of one
vector, writers fill a temporary file that becomes visible by one rename, after fsync. Format: safetensors (8-byte
little-endian header length, JSON header, raw little-endian data), one float32 vector for each segment.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from feddiff.core.errors import StoreError, WrongShape
from feddiff.core.segments import F32

MAX_HEADER_BYTES = 1 << 20
DIGEST = "sha256"
"""Metadata of a file of one vector that was written in order: SHA-256 of its bytes, hexadecimal."""
_UNKNOWN = "-" * 64


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_at(file: int, data: bytes | memoryview, position: int) -> int:
    """Write all of it from a position on; returns the position after it."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, position)
        view, position = view[done:], position + done
    return position


def make_visible(file: int, temporary: Path, path: Path, durable: bool = True) -> None:
    """The durable step of every large file: fsync, rename, fsync of the folder. Not ``durable``: the rename alone."""
    if durable:
        os.fsync(file)
    temporary.rename(path)
    if durable:
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a small file durably: temporary file, fsync, rename, fsync of the folder. Raises StoreError."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL, 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(handle, mode)
                os.fsync(handle)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


class WeightsReader:
    """Named float32 vectors of one file. Ranges may be read from several threads.

    Raises StoreError for a file that is missing, cut short or not of this form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        try:
            self._offsets, self.metadata = self._header(os.fstat(self._file).st_size)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            os.close(self._file)
            raise StoreError(f"{path} is not a weights file: {error}") from None

    def _header(self, file_bytes: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes):
            raise ValueError(f"header of {length} bytes")
        header = json.loads(os.pread(self._file, length, 8))
        metadata = header.pop("__metadata__", {})
        offsets = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if entry["dtype"] != "F32" or end - start != 4 * entry["shape"][0] or not 0 <= start <= end:
                raise ValueError(f"{name} is not a float32 vector")
            if 8 + length + end > file_bytes:
                raise ValueError(f"{name} is cut short")
            offsets[name] = (8 + length + start, (end - start) // 4)
        return offsets, metadata

    @property
    def digest(self) -> str:
        """SHA-256 of the one vector's bytes, hexadecimal; empty if it is not known."""
        return str(self.metadata.get(DIGEST, _UNKNOWN)).strip("-")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._offsets)

    def size(self, name: str) -> int:
        """Values in a vector."""
        return self._place(name)[1]

    def read(self, name: str, start: int = 0, count: int | None = None) -> F32:
        """``count`` values from ``start`` on; the whole rest if not given."""
        offset, size = self._place(name)
        count = size - start if count is None else count
        if start < 0 or count < 0 or start + count > size:
            raise WrongShape(f"{name} in {self.path} has {size} values; {start}..{start + count} were asked for")
        values = np.empty(count, np.float32)
        view, position = values.data.cast("B"), offset + 4 * start
        while view:
            got = os.preadv(self._file, [view], position)
            if not got:
                raise StoreError(f"{self.path} is cut short")
            view, position = view[got:], position + got
        return values

    def _place(self, name: str) -> tuple[int, int]:
        try:
            return self._offsets[name]
        except KeyError:
            raise StoreError(f"{self.path} has no segment {name!r}") from None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()


class WeightsWriter:
    """A weights file in the making; it exists under its name only after ``commit``."""

    def __init__(
        self, path: Path, sizes: Mapping[str, int], metadata: Mapping[str, str] | None = None, digested: bool = True
    ) -> None:
        """``digested``: a file of one vector says the SHA-256 of its bytes, which costs a quarter of the writing."""
        self.path = path
        self._temporary = path.with_name(f".{path.name}.part")
        self._digesting = digested and len(sizes) == 1
        told = dict(metadata or {}) | ({DIGEST: _UNKNOWN} if self._digesting else {})
        header: dict[str, object] = {"__metadata__": told} if told else {}
        self._digest, self._digested = hashlib.sha256(), 0
        offset = 0
        self._places: dict[str, tuple[int, int]] = {}
        for name, size in sizes.items():
            header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [offset, offset + 4 * size]}
            self._places[name] = (offset, size)
            offset += 4 * size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header, self._data_start = text, 8 + len(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.pwrite(self._file, len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(self._file, self._data_start + offset)

    def write(self, name: str, start: int, values: F32) -> None:
        """Put values at their place; float32, little-endian."""
        offset, size = self._places[name]
        if start < 0 or start + values.size > size:
            raise WrongShape(f"{name} has {size} values; {start}..{start + values.size} were written")
        view = np.ascontiguousarray(values, "<f4").data.cast("B")
        position = self._data_start + offset + 4 * start
        if self._digesting and start == self._digested:
            self._digest.update(view)
            self._digested += values.size
        write_at(self._file, view, position)

    def commit(self) -> Path:
        """Make the file durable and visible."""
        if self._digesting and self._digested == next(iter(self._places.values()))[1]:
            known = self._header.replace(_UNKNOWN.encode(), self._digest.hexdigest().encode(), 1)
            os.pwrite(self._file, known, 8)
        make_visible(self._file, self._temporary, self.path)
        self._close()
        return self.path

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def abandon(self) -> None:
        """Remove what was written; after ``commit`` it does nothing."""
        if self._file >= 0:
            self._close()
            self._temporary.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.abandon()


def save(path: Path, vectors: Mapping[str, F32], metadata: Mapping[str, str] | None = None) -> Path:
    """Write vectors that are in memory, durably and at once."""
    with WeightsWriter(path, {name: vector.size for name, vector in vectors.items()}, metadata) as writer:
        for name, vector in vectors.items():
            writer.write(name, 0, vector)
        return writer.commit()
