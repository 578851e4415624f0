"""One slice on its way from a scanner's file to the model's size, and what one file gives.

What silo/dicom.py and silo/nifti.py have in common: they yield slices; silo/decoder.py fits them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.silo.window import U8

MAX_PIXELS = 1 << 26
"""Of one slice."""
MAX_VOLUME_BYTES = 1 << 31
"""Of one file, uncompressed."""
AIR_HU, DARK = -500.0, 12
"""Below these is air: Hounsfield units of CT, and of 255 for anything else."""
NO_LABEL, OTHER_LABEL = -1, -2
"""Where a file's attribute says nothing, and where it says something else than a class."""


@dataclass(frozen=True)
class Slice:
    """Pixels, (H, W) or (H, W, 3)."""

    pixels: U8
    aspect: float = 1.0
    """A pixel's height by its width."""
    content: float = 1.0
    """The share of it that is not air."""


@dataclass(frozen=True)
class Decoding:
    """How every file is decoded; with the file's bytes it settles what comes out."""

    size: int
    channels: int
    window: str
    plane: str
    content: float
    keyword: str = ""
    """The DICOM attribute that is the label, and the classes that it may be."""
    classes: tuple[str, ...] = ()

    def table(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, table: dict[str, Any]) -> Decoding:
        return cls(**{**table, "classes": tuple(table["classes"])})


@dataclass(frozen=True)
class Decoded:
    """What a file is, and its slices. UIDs are keyed digests: who has not the key learns nothing of them."""

    kind: str
    slices: Iterator[Slice]
    label: int = NO_LABEL
    series: str = ""
    study: str = ""
    position: float = 0.0
    """Along the series' axis."""


def aspect(high: float, wide: float) -> float:
    """A pixel's height by its width, from its sides; 1 if they make no sense."""
    with np.errstate(all="ignore"):
        found = float(np.float64(high) / np.float64(wide))
    return found if 0.02 <= found <= 50 else 1.0


def not_air(values: npt.NDArray[Any], pixels: U8, hounsfield: bool) -> float:
    """The share of a slice that is not air."""
    return float(np.mean(values > AIR_HU) if hounsfield else np.mean(pixels > DARK))
