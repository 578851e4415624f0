"""Vectors of float32 in few bits a value, and back: the mathematics of the quantised codecs.

core/codec.py subtracts the base before and adds it after, compresses the bytes made here and checks them; nothing here
knows of other chunks, bases or zstd. Made for changes of weights, which in a block of a few hundred look Gaussian.

``Uniform`` rounds to whole multiples of a step that each block of 256 values gets to itself. The steps are equal on
purpose, not tables of levels as in NF4 or Lloyd-Max: an entropy coder follows (zstd's Huffman stage), and behind one
the uniform quantiser is within a quarter of a bit of the best there is (Gish & Pierce, IEEE Trans. Inf. Theory 14,
1968). It also never clips, so its error has a bound. At NF4's size, 8.2 times less than float32, its error on real
changes of weights is 7.8 %, NF4's 9.3 %; turning the blocks by a random Hadamard matrix first gained nothing.

``Largest`` keeps the largest few of all values and their places (Aji & Heafield, arXiv 1704.05021).

What is decoded is the same bits on every machine: one product of two float32 numbers a value, and steps that are exact.
Both want error feedback around them: what one round loses, the next adds to what it sends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ProtocolError
from feddiff.core.segments import F32

_U8: TypeAlias = npt.NDArray[np.uint8]

BLOCK = 256
"""Values that share a step. 128 to 512 measure alike; smaller blocks spend more on steps than they save."""

_LARGEST = np.finfo(np.float32).max
_LEAST = np.float32(2.0**-126)
"""No step is finer, so that none is ever denormal: some machines take those for zero."""

_WIDEST = 3e38
"""Far enough below float32's largest number for a step to be rounded up."""

_BYTES = np.arange(256)
_FRACTIONS = np.ldexp((9.0 + (_BYTES & 7)) / 16, (_BYTES >> 3) - 31)
"""Steps as fractions of the top step: 5 bits of exponent and 3 of mantissa, ascending from 9/16 * 2^-31 to 1."""

_ESCAPE = 255


@dataclass(frozen=True)
class Uniform:
    """Whole multiples of a step, -levels..levels of them.

    A block of peak p (its largest magnitude) and root mean square r needs a step of s = max(p / levels, rms * r). It
    gets the next one up among top * (9..16)/16 * 2^(0..-31), where ``top`` is the vector's largest s rounded up to
    bfloat16; never less than 2^-126. Hence for every value

        |error| <= step / 2,   step <= max(9/8 s, top * 2^-31, 2^-126)     (and a float32 rounding: 2^-24 of the value)

    The bytes: values as two's complement (levels up to 7: two to a byte, low half first), then each block's step as an
    index into the fractions, then top (bfloat16, little-endian). Zeros are zero bytes.
    """

    rms: float
    """The step in root mean squares, which sets the rate: log2(4.13 / rms) bits for Gaussian values. 0: as fine as
    ``levels`` allow."""
    levels: int
    """7 or 127."""

    def size(self, count: int) -> int:
        """Bytes for ``count`` values, at least one."""
        return (count if self.levels > 7 else -(-count // 2)) + -(-count // BLOCK) + 2

    @property
    def rate(self) -> float:
        """Bits a value that zstd may make of this; core/codec.py sees to it. Infinite: as many as there are.

        Of all whole numbers with a given mean square, Gaussian ones have the most entropy; 0.18 bits more are for
        Huffman codes that are not perfect and for the blocks' steps.
        """
        return math.log2(4.13 / self.rms) + 0.18 if self.rms else math.inf

    def narrow(self, values: F32, wider: float = 1.0) -> _U8:
        """``size(n)`` bytes of n finite values, at least one; with steps ``wider`` than they need to be."""
        blocks = _blocks(values.size)
        blocks.reshape(-1)[: values.size] = values
        needed = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)).astype(np.float64) / self.levels
        if self.rms:
            filled = np.full(len(blocks), BLOCK)
            filled[-1] = values.size - BLOCK * (len(blocks) - 1)
            wide = blocks.astype(np.float64)  # float32 would overflow, or lose what is small
            needed = np.maximum(needed, self.rms * np.sqrt(np.einsum("ij,ij->i", wide, wide) / filled))
        needed = np.maximum(needed, np.minimum(needed * wider, _WIDEST))
        # Rounded up, and coarsely: machines differ in the last bit of a sum, and top should not.
        word = (int(np.float32(max(needed.max(), _LEAST)).view(np.uint32)) + 0xFFFF) >> 16
        chosen = np.searchsorted(_FRACTIONS, needed / float(_top(word))).astype(np.uint8)
        blocks /= _steps(word, chosen)
        quantised = np.rint(blocks, out=blocks).reshape(-1)[: values.size].astype(np.int8).view(np.uint8)
        packed = quantised if self.levels > 7 else _pair(quantised)
        return np.concatenate((packed, chosen, np.array((word & 0xFF, word >> 8), np.uint8)))

    def widen(self, body: _U8, count: int) -> F32:
        """A new vector of ``count`` values, at least one, all finite. Raises ProtocolError for an infinite step."""
        blocks = _blocks(count)
        word = int(body[-2]) | int(body[-1]) << 8
        if word >= 0x7F80:
            raise ProtocolError(f"the top step has the bits {word:#06x}, which is no finite positive bfloat16")
        packed, chosen = np.split(body[:-2], [-len(blocks)])
        values = blocks.reshape(-1)[:count]
        values[:] = (packed if self.levels > 7 else _unpair(packed, count)).view(np.int8)
        with np.errstate(over="ignore"):
            blocks *= _steps(word, chosen)
        # Half a step beyond float32's largest number is infinity; so is what a hostile sender makes.
        return np.clip(values, -_LARGEST, _LARGEST, out=values)


@dataclass(frozen=True)
class Largest:
    """The ``percent`` largest magnitudes of a vector (at least one value), and zero for all others.

    Among equals the first ones are kept. The error of a value that is dropped is the value: at most the smallest
    magnitude that is kept. The kept are a vector of their own, quantised by ``values`` with its bounds.

    The bytes: for each kept value the zeros before it, one byte; 255 stands for 255 zeros without a value behind, and
    unused bytes at the end are 255. Gaps are nearly geometric, so Huffman codes of them come close to the entropy of
    the choice. Then the bytes of ``values``.
    """

    percent: int
    values: Uniform

    def kept(self, count: int) -> int:
        """How many of ``count`` values are sent."""
        return -(-count * self.percent // 100)

    def _gaps(self, count: int) -> int:
        """Bytes that hold the gaps, whatever they are: together they cannot have more than count // 255 escapes."""
        return self.kept(count) + count // _ESCAPE

    def size(self, count: int) -> int:
        """Bytes for ``count`` values, at least one."""
        return self._gaps(count) + self.values.size(self.kept(count))

    @property
    def rate(self) -> float:
        """As of ``Uniform``."""
        return math.inf

    def narrow(self, values: F32, wider: float = 1.0) -> _U8:
        """``size(n)`` bytes of n finite values, at least one; with steps ``wider`` than they need to be."""
        kept = self.kept(values.size)
        magnitudes = np.abs(values)
        smallest = np.partition(magnitudes, values.size - kept)[values.size - kept]
        above = magnitudes > smallest
        equal = np.flatnonzero(magnitudes == smallest)
        above[equal[: kept - np.count_nonzero(above)]] = True
        places = np.flatnonzero(above)
        escapes, rest = np.divmod(np.diff(places, prepend=-1) - 1, _ESCAPE)
        gaps = np.full(self._gaps(values.size), _ESCAPE, np.uint8)
        gaps[np.arange(kept) + np.cumsum(escapes)] = rest
        return np.concatenate((gaps, self.values.narrow(values[places], wider)))

    def widen(self, body: _U8, count: int) -> F32:
        """A new vector of ``count`` values, at least one, all finite. Raises ProtocolError for places outside it."""
        kept = self.kept(count)
        gaps, rest = np.split(body, [self._gaps(count)])
        ends = gaps != _ESCAPE
        places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(np.count_nonzero(ends))
        if len(places) != kept or places[-1] >= count:
            raise ProtocolError(f"{len(places)} places of values, up to {places[-1:]}; {kept} below {count} are due")
        values = np.zeros(count, np.float32)
        values[places] = self.values.widen(rest, kept)
        return values


def _blocks(count: int) -> npt.NDArray[np.float32]:
    """Zeros for ``count`` values: whole blocks, one in a row."""
    return np.zeros((-(-count // BLOCK), BLOCK), np.float32)


def _top(word: int) -> np.float32:
    return max(np.array([word << 16], np.uint32).view(np.float32)[0], _LEAST)


def _steps(word: int, chosen: npt.NDArray[Any]) -> F32:
    """Each block's step, float32 of shape (blocks, 1)."""
    steps: F32 = _top(word) * _FRACTIONS.astype(np.float32)[chosen]
    return np.maximum(steps, _LEAST)[:, np.newaxis]


def _pair(values: _U8) -> _U8:
    """Two values' low four bits to a byte, the first in its low half."""
    halves = values & np.uint8(15)
    packed = halves[::2].copy()
    packed[: values.size // 2] |= halves[1::2] << np.uint8(4)
    return packed


def _unpair(packed: _U8, count: int) -> _U8:
    """Undo ``_pair``: ``count`` values, their sign extended to eight bits."""
    halves = np.empty(2 * packed.size, np.uint8)
    halves[::2], halves[1::2] = packed & np.uint8(15), packed >> np.uint8(4)
    halves ^= np.uint8(8)
    halves -= np.uint8(8)
    return halves[:count]


_FEW = Uniform(rms=0.5, levels=7)

QUANTISERS: Mapping[str, Uniform | Largest] = {
    "int8": Uniform(rms=0, levels=127),
    "int4": Uniform(rms=0.23, levels=127),
    "int2": Uniform(rms=0.9, levels=7),
    "topk": Largest(1, _FEW),
    "topk3": Largest(3, _FEW),
    "topk10": Largest(10, _FEW),
}
"""By codec. `make bench-codec`: after zstd, real changes of weights are 4.2, 7.7, 15, 300, 130 and 47 times smaller;
a round's relative error is 0.7, 7, 27, 96, 90 and 75 %."""
