"""Grids of samples that silos send of their own models: ``grids/round-0005/hospital-a.png`` in the federator's folder.

A silo may send anything and a person will open it, so a picture is kept only if it is a plain PNG to the last byte: no
texts, profiles or animations, no more pixels than it says, and not many.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from feddiff.core.errors import ProtocolError
from feddiff.core.store import write_atomic
from feddiff.core.wire import MAX_GRID_SIDE

_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}
"""PNG's colour types that a model's samples can have: grey, RGB."""
_STEP = 1 << 16


def path(folder: Path, round: int, silo: str) -> Path:
    """Where the grid of a silo's model after a round is, if there is one."""
    return folder / "grids" / f"round-{round:04}" / f"{silo}.png"


def keep(folder: Path, round: int, silo: str, picture: bytes) -> Path:
    """Keep a grid that ``check`` lets pass, in place of an earlier one."""
    place = path(folder, round, silo)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, picture)
    return place


def check(picture: bytes) -> None:
    """Raises ProtocolError unless it is one grey or RGB picture of 8 bits (PNG, third edition, sections 5 and 11)."""
    try:
        chunks = list(_chunks(picture))
        kinds = [kind for kind, _ in chunks]
        pixels = [data for kind, data in chunks if kind == b"IDAT"]
        if not pixels or kinds != [b"IHDR", *[b"IDAT"] * len(pixels), b"IEND"]:
            raise ValueError("it holds other chunks than a picture's")
        width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
        if not (1 <= width <= MAX_GRID_SIDE and 1 <= height <= MAX_GRID_SIDE):
            raise ValueError(f"it has {width}x{height} pixels; at most {MAX_GRID_SIDE} each way")
        if depth != 8 or colour not in _CHANNELS or any(methods):
            raise ValueError("it is not of 8 bits, grey or RGB, not interlaced")
        if _inflated(b"".join(pixels)) != height * (1 + width * _CHANNELS[colour]):
            raise ValueError("its pixels are not as many as it says")
    except (ValueError, struct.error, zlib.error) as error:
        raise ProtocolError(f"the grid is no picture that is kept: {error}") from None


def _chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each. Raises ValueError, struct.error."""
    if not picture.startswith(_MAGIC):
        raise ValueError("it is no PNG")
    at = len(_MAGIC)
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        (checksum,) = struct.unpack_from(">I", picture, at + 8 + length)
        data = picture[at + 8 : at + 8 + length]
        if zlib.crc32(kind + data) != checksum:
            raise ValueError("a checksum in it is wrong")
        yield kind, data
        at += 12 + length


def _inflated(data: bytes) -> int:
    """Bytes that a whole zlib stream unpacks to, none of which is kept. Raises ValueError, zlib.error."""
    stream, size, most = zlib.decompressobj(), 0, MAX_GRID_SIDE * (1 + 3 * MAX_GRID_SIDE)
    while data and not stream.eof:
        size += len(stream.decompress(data, _STEP))
        data = stream.unconsumed_tail
        if size > most:
            raise ValueError("its pixels are too many")
    if not stream.eof or stream.unused_data:
        raise ValueError("its pixels are cut short, or something follows them")
    return size
