"""Windows: which values of a scan become black and white.

A scan has twelve bits or more, a picture eight. Between the decoded values (Hounsfield units for CT) and the pixels
that are trained on. All silos should choose alike: the same tissue is then equally bright everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ConfigError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FILE = "file"


@dataclass(frozen=True)
class Window:
    """Center and width, of values after rescaling; ``function`` as in DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard allows it."""
        least = 1.0 if self.function == "LINEAR" else 0.0
        known = self.function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
        sized = self.width >= 1 if least else self.width > 0
        return known and math.isfinite(self.center) and math.isfinite(self.width) and sized

    def apply(self, values: npt.NDArray[Any]) -> U8:
        """Any numbers to 0..255, of the same shape."""
        x = values.astype(np.float32)
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return np.asarray(np.round(255 / (1 + np.exp(-4 * (x - self.center) / self.width))), np.uint8)
        center, width = self.center, self.width
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width < 1e-6:
            return np.where(x > center, 255, 0).astype(np.uint8)
        x -= np.float32(center)
        x *= np.float32(255 / width)
        x += np.float32(127.5)
        # NaN, of a volume that is not filled, is black.
        return np.asarray(np.round(np.clip(np.nan_to_num(x, nan=0.0, posinf=255, neginf=0), 0, 255)), np.uint8)


PRESETS = {
    "lung": Window(-600, 1500),
    "mediastinum": Window(40, 400),
    "brain": Window(40, 80),
    "bone": Window(400, 1800),
}
"""In Hounsfield units, so for CT alone."""
WHOLE_CT = Window(0, 2000, "LINEAR_EXACT")
"""For CT that says no window."""


@dataclass(frozen=True)
class Wanted:
    """What ``--window`` says: a preset, numbers, or None for what the file says."""

    window: Window | None
    hounsfield: bool
    """Whether it is one of CT, so that other modalities go by their files."""

    def of(self, modality: str) -> Window | None:
        """The window that goes before the file's own, if any."""
        return None if self.hounsfield and modality != "CT" else self.window


def parse(text: str) -> Wanted:
    """What was typed. Raises ConfigError."""
    if text == FILE:
        return Wanted(None, False)
    if text in PRESETS:
        return Wanted(PRESETS[text], True)
    try:
        center, width = (float(each) for each in text.split(","))
        window = Window(center, width)
    except ValueError:
        window = Window(math.nan, math.nan)
    if not window.usable:
        raise ConfigError(
            f"--window must be {', '.join(PRESETS)}, file, or CENTER,WIDTH with a width of 1 or more (got {text!r:.40})"
        )
    return Wanted(window, False)


def stretch(values: npt.NDArray[Any]) -> Window:
    """For values that nobody says a window of: the middle 99 percent of them, without extremes that are artefacts."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    if not high > low:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return Window(float(low + high) / 2, max(float(high - low), 1e-6), "LINEAR_EXACT")
