"""Cuts a network into segments: named, ordered slices of its parameters.

First noun of the way of the data: a segment is what a plan assigns, a codec encodes, a transfer carries,
the fold averages and the ledger counts. Names are hierarchical, so that a plan can speak of ``decoder`` or
of ``decoder.3``. The parts of a diffusers ``UNet2DModel`` are FedDiffuse's (de Goede, Cox, Decouchant, arXiv
2406.12575): the encoder has the time embedding, the decoder the output. Per-block time projections stay with their
block. A DCGAN (core/dcgan.py) has two segments, each a part.

    encoder.in   conv_in, time_proj, time_embedding, class_embedding
    encoder.<i>  down_blocks.<i>
    bottleneck   mid_block
    decoder.<i>  up_blocks.<i>
    decoder.out  conv_norm_out, conv_out

    generator, discriminator

The cut is by name alone, so it needs no torch; it refuses a name that it does not know, because a parameter
in no segment would silently never be exchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ConfigError, StoreError, WrongShape

F32: TypeAlias = npt.NDArray[np.float32]
Part = Literal["encoder", "bottleneck", "decoder", "generator", "discriminator"]
UNET: tuple[Part, ...] = ("encoder", "bottleneck", "decoder")
PARTS: tuple[Part, ...] = (*UNET, "generator", "discriminator")

_SINGLE = {
    "conv_in": "encoder.in",
    "time_proj": "encoder.in",
    "time_embedding": "encoder.in",
    "class_embedding": "encoder.in",
    "mid_block": "bottleneck",
    "conv_norm_out": "decoder.out",
    "conv_out": "decoder.out",
    "generator": "generator",
    "discriminator": "discriminator",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(0|[1-9][0-9]{0,3})\.")


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model and its place in its segment's vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """In float32 elements from the segment's start."""

    @property
    def size(self) -> int:
        """Elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Segment:
    """Parameters that travel together as one flat float32 vector, without gaps."""

    name: str
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def part(self) -> Part:
        """Which part of the network it belongs to."""
        return cast(Part, self.name.partition(".")[0])

    def gather(self, state: Mapping[str, npt.NDArray[Any]]) -> F32:
        """Copy this segment's tensors out of a model's state into one new vector, float32 of shape (size,).

        Tensors of other segments are passed over. Raises WrongShape for one that is missing or of another
        shape.
        """
        vector = np.empty(self.size, np.float32)
        for parameter, view in zip(self.parameters, self.scatter(vector).values(), strict=True):
            tensor = state.get(parameter.name)
            if tensor is None:
                raise WrongShape(f"segment {self.name}: parameter {parameter.name} is missing")
            if tensor.shape != parameter.shape:
                raise WrongShape(
                    f"segment {self.name}: parameter {parameter.name} has shape {tensor.shape}, not {parameter.shape}"
                )
            view[...] = tensor
        return vector

    def scatter(self, vector: F32) -> dict[str, F32]:
        """The segment's tensors by name, as views into ``vector`` of shape (size,): nothing is copied.

        Raises WrongShape if the vector is not of this segment's size.
        """
        if vector.shape != (self.size,):
            raise WrongShape(f"segment {self.name}: a vector of shape {vector.shape}, not ({self.size},)")
        return {
            parameter.name: vector[parameter.offset : parameter.offset + parameter.size].reshape(parameter.shape)
            for parameter in self.parameters
        }


@dataclass(frozen=True)
class Layout:
    """All segments of one model: encoder.in, encoder.0 …, bottleneck, decoder.0 …, decoder.out; or a DCGAN's two."""

    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Elements of the whole model."""
        return sum(segment.size for segment in self.segments)

    @property
    def names(self) -> tuple[str, ...]:
        """The segments' names, in order."""
        return tuple(segment.name for segment in self.segments)

    def __getitem__(self, name: str) -> Segment:
        """The segment of exactly this name. Raises ConfigError, naming the known ones."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise ConfigError(f"there is no segment {name!r}; known: {', '.join(self.names)}")

    def select(self, *patterns: str) -> tuple[str, ...]:
        """Names of the segments that any pattern means, in layout order, each once.

        ``all`` means every segment, ``decoder`` everything in it, ``decoder.3`` that one. Raises ConfigError,
        naming the known ones, for a pattern that means none.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            meant = {name for name in self.names if pattern == "all" or f"{name}.".startswith(f"{pattern}.")}
            if not meant:
                parts = (part for part in PARTS if any(segment.part == part for segment in self.segments))
                known = dict.fromkeys(("all", *parts, *self.names))
                raise ConfigError(f"no segment is meant by {pattern!r}; known: {', '.join(known)}")
            chosen |= meant
        return tuple(name for name in self.names if name in chosen)

    def to_json(self) -> str:
        """Canonical JSON: ``[[segment, [[parameter, [length, …]], …]], …]``, no spaces; order is meaning."""
        rows = [[s.name, [[p.name, list(p.shape)] for p in s.parameters]] for s in self.segments]
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The layout that ``to_json`` wrote. Raises StoreError for anything else, also another cut."""
        try:
            layout = cut((name, shape) for _, parameters in json.loads(text) for name, shape in parameters)
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise StoreError(f"the stored layout cannot be read: {error}") from None
        if layout.to_json() != text:
            raise StoreError(
                "the stored layout is not how this software cuts the model; use the software that wrote it"
            )
        return layout

    def gather(self, state: Mapping[str, npt.NDArray[Any]]) -> dict[str, F32]:
        """Every segment's vector by name, copied out of a model's state. Raises WrongShape."""
        return {segment.name: segment.gather(state) for segment in self.segments}

    def scatter(self, vectors: Mapping[str, F32]) -> dict[str, F32]:
        """Every parameter by name, as views into the segments' vectors. Raises WrongShape."""
        state: dict[str, F32] = {}
        for segment in self.segments:
            state |= segment.scatter(vectors[segment.name])
        return state

    @property
    def digest(self) -> str:
        """SHA-256 of ``to_json()``, hexadecimal: unless it is equal at both ends, their segments differ."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def cut(parameters: Iterable[tuple[str, Sequence[int]]]) -> Layout:
    """Put every parameter of a ``UNet2DModel`` or a ``DCGAN`` into exactly one segment, in the order given within each.

    ``parameters`` are names and shapes as in ``state_dict()``, statistics included. Raises ConfigError for a name that
    is unknown or comes twice, and for a shape that is none.
    """
    members: dict[str, list[Parameter]] = {}
    ends: dict[str, int] = {}
    seen: set[str] = set()
    for name, dimensions in parameters:
        segment, shape = _segment_of(name), tuple(dimensions)
        if name in seen:
            raise ConfigError(f"the model has two parameters named {name!r}")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ConfigError(f"parameter {name!r} cannot have shape {shape}")
        seen.add(name)
        parameter = Parameter(name, shape, ends.get(segment, 0))
        members.setdefault(segment, []).append(parameter)
        ends[segment] = parameter.offset + parameter.size
    return Layout(tuple(Segment(name, tuple(members[name])) for name in sorted(members, key=_place)))


def _segment_of(parameter: str) -> str:
    """The name of the segment that a parameter belongs to. Raises ConfigError."""
    block = _BLOCK.match(parameter)
    if block:
        return f"{'encoder' if block[1] == 'down' else 'decoder'}.{block[2]}"
    segment = _SINGLE.get(parameter.partition(".")[0])
    if segment is None:
        raise ConfigError(
            f"parameter {parameter!r} is in no segment; the model must be a diffusers UNet2DModel or a DCGAN"
        )
    return segment


def _place(segment: str) -> tuple[int, float]:
    """Sort key of the layout's order."""
    part, _, level = segment.partition(".")
    depth = {"in": -1.0, "out": math.inf, "": 0.0}
    return PARTS.index(cast(Part, part)), depth[level] if level in depth else float(level)
