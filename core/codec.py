"""Turns a chunk of weights into few bytes and back, without trusting the bytes.

Third noun of the way of the data: a segment's vector is cut into chunks, each encoded here on its own, as
it is or as a delta from the version that both ends hold; it knows no rounds, silos or messages.

Every codec ends the same way: its bytes become one zstd frame (RFC 8878) that states its content size, which is
checked against the size that the receiver expects before anything is allocated. Words are split into byte planes (the
bytes of equal significance side by side, as in Blosc's shuffle filter), least significant first; they are taken apart
by shifts, so the bytes are the same on every machine.

    fp32  lossless, bit for bit. A delta is the difference of the bit patterns modulo 2^32, zigzag mapped:
          unlike a float difference it can be undone exactly, and near values still give small numbers.
    fp16  the value, or its difference from the base, rounded to IEEE 754 half precision, ties to even
    bf16  the same, rounded to bfloat16 (the upper half of a float32), ties to even
    int8, int4, int2      whole multiples of a step, of 8 bits a value, or of about 4 or 2 once zstd has coded them
    topk, topk3, topk10   the 1, 3 or 10 % that are largest, the rest zero (core/quantize.py has both, and their errors)

A further lossy codec is a ``narrow``, a ``widen`` and a ``size`` for ``_lossy``, and a place in ``CODECS``. What one
round's int* or topk* loses, error feedback adds to the next (core/feedback.py); topk* must not go without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from feddiff.core import quantize
from feddiff.core.errors import ConfigError, DigestMismatch, NotFinite, ProtocolError, TooLarge, WrongShape
from feddiff.core.segments import F32

UINT8 = "uint8"
"""What a manifest says whose chunks are frames of bytes, not of weights (core/pool.py)."""
LEVEL = 1
"""Of zstd. Up to 9, none makes the byte planes of weights smaller; they cost up to five times the time."""

_U8: TypeAlias = npt.NDArray[np.uint8]
_U16: TypeAlias = npt.NDArray[np.uint16]
_U32: TypeAlias = npt.NDArray[np.uint32]
_INFINITY = 0x7F800000
"""Bits of float32 infinity: no finite number's magnitude has as many."""


@dataclass(frozen=True)
class Codec:
    """One way to encode chunks; stateless, safe in any thread."""

    name: str
    lossless: bool
    encode: Callable[[F32, F32 | None], bytes]
    """``encode(values, base)``: values of shape (n,) as bytes; base None, or (n,): encode the change from it.

    Raises NotFinite, with the first index, for NaN, infinity or what the codec cannot hold, and WrongShape if
    the base is not of the values' shape.
    """
    decode: Callable[[bytes, int, F32 | None], F32]
    """``decode(payload, count, base)``: a new float32 vector of shape (count,), absolute even with a base.

    Raises TooLarge for a payload over ``payload_bound(count)``, DigestMismatch for one that is damaged,
    ProtocolError for one that is whole but holds something else, NotFinite if the result holds NaN or
    infinity, WrongShape if the base does not have ``count`` elements.
    """
    settle: Callable[[F32, F32 | None], tuple[bytes, F32]]
    """``encode``, and what ``decode`` makes of its payload at the other end, bit for bit, without unpacking it."""
    bound: Callable[[int], int]
    """Bytes that no payload of ``encode`` exceeds, by the count of values; a plan counts on it."""


def _framed(size: int) -> int:
    """Bytes that zstd makes of ``size`` at most (ZSTD_COMPRESSBOUND in zstd.h)."""
    return size + (size >> 8) + max((128 << 10) - size, 0) // (2 << 10)


def payload_bound(count: int) -> int:
    """Bytes that no encoded chunk of ``count`` elements exceeds; a receiver refuses more.

    Four bytes an element, what zstd may add (ZSTD_COMPRESSBOUND: 1/256, and 64 bytes for small inputs), and
    a few bytes for the scales of a codec that quantises in blocks.
    """
    return 4 * count + count // 64 + 128


def _fp32_encode(values: F32, base: F32 | None) -> bytes:
    values = _checked(values, base)
    words = values.view(np.uint32)
    if base is not None:
        words = words - np.ascontiguousarray(base).view(np.uint32)
        signs = words.view(np.int32) >> 31
        words <<= np.uint32(1)
        words ^= signs.view(np.uint32)
    return pack(_planes(words))


def _fp32_decode(payload: bytes, count: int, base: F32 | None) -> F32:
    _check_base(count, base)
    words: _U32 = _words(unpack(payload, count, 4 * count), count, np.uint32)
    if base is not None:
        signs = words & np.uint32(1)
        np.negative(signs, out=signs)
        words >>= np.uint32(1)
        words ^= signs
        words += np.ascontiguousarray(base).view(np.uint32)
    values = words.view(np.float32)
    _refuse(values, _INFINITY, "decodes to NaN or infinity")
    return values


def _fp32_settle(values: F32, base: F32 | None) -> tuple[bytes, F32]:
    return _fp32_encode(values, base), values


def _lossy(
    name: str,
    size: Callable[[int], int],
    narrow: Callable[[F32, float], _U8],
    widen: Callable[[_U8, int], F32],
    rate: float = math.inf,
) -> Codec:
    """A codec that rounds a value, or its float32 difference from the base.

    ``narrow`` makes ``size(count)`` bytes of ``count`` > 0 finite values, ``widen`` a new vector of such bytes. A
    frame of more than ``rate`` bits a value, and 64 bytes, is made anew with wider steps until it has no more.
    """

    def bound(count: int) -> int:
        worst = _framed(size(count)) if count else 0
        return worst if math.isinf(rate) else min(math.ceil(rate * count / 8) + 64, worst)

    def settled(values: F32, base: F32 | None) -> tuple[bytes, _U8]:
        values = _checked(values, base)
        if base is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values - base
            _refuse(values, _INFINITY, "is too far from its base for float32; send absolute values")
        wider = 1.0
        body = narrow(values, wider) if values.size else np.empty(0, np.uint8)
        while len(payload := pack(body)) > bound(values.size):
            wider *= 1.25
            body = narrow(values, wider)
        return payload, body

    def widened(body: _U8, count: int, base: F32 | None) -> F32:
        values = widen(body, count) if count else np.empty(0, np.float32)
        if base is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values += base
        _refuse(values, _INFINITY, "decodes to NaN or infinity")
        return values

    def encode(values: F32, base: F32 | None) -> bytes:
        return settled(values, base)[0]

    def decode(payload: bytes, count: int, base: F32 | None) -> F32:
        _check_base(count, base)
        return widened(unpack(payload, count, size(count)), count, base)

    def settle(values: F32, base: F32 | None) -> tuple[bytes, F32]:
        payload, body = settled(values, base)
        return payload, widened(body, values.size, base)

    return Codec(name, False, encode, decode, settle, bound)


def _fp16_narrow(values: F32, _: float) -> _U8:
    _refuse(values, 0x477FE001, "is beyond fp16, which ends at 65504; use the codec bf16")
    return _planes(values.astype(np.float16).view(np.uint16))


def _fp16_widen(planes: _U8, count: int) -> F32:
    words: _U16 = _words(planes, count, np.uint16)
    return words.view(np.float16).astype(np.float32)


def _bf16_narrow(values: F32, _: float) -> _U8:
    # From half a step above the largest bfloat16, rounding would carry into infinity's exponent.
    _refuse(values, 0x7F7F8000, "is beyond bf16, which ends at 3.3895e38; use the codec fp32")
    words = values.view(np.uint32)
    rounded = words >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += words
    rounded += np.uint32(0x7FFF)
    rounded >>= np.uint32(16)
    return _planes(rounded.astype(np.uint16))


def _bf16_widen(planes: _U8, count: int) -> F32:
    words: _U32 = _words(planes, count, np.uint32)
    words <<= np.uint32(16)
    return words.view(np.float32)


def _checked(values: F32, base: F32 | None) -> F32:
    """What every codec asks of its input; returns the values, contiguous."""
    _check_vector(values, values.size)
    _check_base(values.size, base)
    values = np.ascontiguousarray(values)
    _refuse(values, _INFINITY, "is NaN or infinite")
    return values


def _check_base(count: int, base: F32 | None) -> None:
    if base is not None:
        _check_vector(base, count)


def _check_vector(vector: F32, count: int) -> None:
    """Raise WrongShape unless the bits of ``vector`` are those of ``count`` float32 values."""
    if vector.shape != (count,) or vector.dtype != np.float32:
        raise WrongShape(f"a vector is {vector.dtype} of shape {vector.shape}; this chunk needs float32 of ({count},)")


def _refuse(values: F32, limit: int, problem: str) -> None:
    """Raise NotFinite if the bits of a value's magnitude are ``limit`` or more; NaN's always are."""
    magnitudes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if magnitudes.size and magnitudes.max() >= limit:
        bad = np.flatnonzero(magnitudes >= limit)
        raise NotFinite(f"element {bad[0]} ({values[bad[0]]}) {problem}; {bad.size} of {values.size} are like this")


def _planes(words: npt.NDArray[Any]) -> _U8:
    """Unsigned words of w bytes, shape (n,), as byte planes of shape (w * n,), least significant first."""
    planes = np.empty((words.itemsize, words.size), np.uint8)
    for index, plane in enumerate(planes):
        np.right_shift(words, 8 * index, out=plane, casting="unsafe")
    return planes.reshape(-1)


def _words(planes: _U8, count: int, dtype: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    """Undo ``_planes``: a new vector of ``count`` words, which may be wider than there are planes."""
    words = np.zeros(count, dtype)
    for plane in planes.reshape(-1, count)[::-1] if count else ():
        words <<= dtype(8)
        words |= plane
    return words


def pack(body: _U8) -> bytes:
    """Bytes, uint8 of shape (n,), as one zstd frame; nothing for nothing."""
    # A new compressor for each call: they are cheap, and must not be shared between threads.
    zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
    return zstd.compress(body.data) if body.size else b""


def unpack(payload: bytes, count: int, size: int) -> _U8:
    """The ``size`` bytes that were packed of ``count`` elements, read-only. Allocates no more, whatever is claimed.

    Raises TooLarge, ProtocolError, DigestMismatch.
    """
    if len(payload) > payload_bound(count):
        raise TooLarge(f"{len(payload)} bytes for {count} elements; at most {payload_bound(count)} are read")
    if not count:
        if payload:
            raise ProtocolError(f"{len(payload)} bytes for a chunk without elements")
        return np.empty(0, np.uint8)
    try:
        stated = zstandard.get_frame_parameters(payload).content_size
        if stated != size:
            raise ProtocolError(f"the frame states {stated} bytes of content; {count} elements have {size}")
        body = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DigestMismatch(
            f"{len(payload)} bytes are not one zstd frame ({error}); ask for the chunk again"
        ) from None
    return np.frombuffer(body, np.uint8)


def _registry(*codecs: Codec) -> Mapping[str, Codec]:
    """Codecs by name, in order. Raises ConfigError at import for a name that a manifest could not carry."""
    known: dict[str, Codec] = {}
    for codec in codecs:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", codec.name) or codec.name in known:
            raise ConfigError(f"{codec.name!r} cannot be a codec's name: it is malformed or taken")
        known[codec.name] = codec
    return MappingProxyType(known)


CODECS: Mapping[str, Codec] = _registry(
    Codec("fp32", True, _fp32_encode, _fp32_decode, _fp32_settle, lambda count: _framed(4 * count) if count else 0),
    _lossy("fp16", lambda count: 2 * count, _fp16_narrow, _fp16_widen),
    _lossy("bf16", lambda count: 2 * count, _bf16_narrow, _bf16_widen),
    *(_lossy(name, each.size, each.narrow, each.widen, each.rate) for name, each in quantize.QUANTISERS.items()),
)
"""All codecs there are. The registry is closed: a manifest that names another is refused."""
