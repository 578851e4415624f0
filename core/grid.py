"""Many images as one picture: what people see of a model.

Last station of what a network draws (core/network.py), in reports, sweeps and under ``sample`` of both commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError


def grid(images: npt.NDArray[np.uint8], columns: int, scale: int = 1) -> Image.Image:
    """One picture of many: uint8 (N, H, W, 1 or 3), row by row, each enlarged ``scale``-fold, unsmoothed.

    The gap is one black pixel. Raises ConfigError for arguments that cannot be.
    """
    if images.ndim != 4 or not len(images) or images.shape[3] not in (1, 3) or columns < 1 or scale < 1:
        raise ConfigError(f"no grid of images of shape {images.shape} in {columns} columns at scale {scale}")
    count, height, width, channels = (int(length) for length in images.shape)
    height, width, columns = height * scale, width * scale, min(columns, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8)
    for index, image in enumerate(images.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def draw(
    config: FederationConfig,
    state: Mapping[str, npt.NDArray[Any]],
    out: Path,
    count: int,
    steps: int,
    seed: int,
    scale: int,
    guidance: float | None = None,
    labels: Sequence[int] | None = None,
) -> None:
    """Sample a grid of images into a picture file. Raises ConfigError for a name that cannot be one, at once."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp") or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the name of a picture in a folder that exists was expected, e.g. grid.png")
    if count < 1 or scale < 1:
        raise ConfigError(f"--count and --scale must be at least 1 (got {count} and {scale})")
    from feddiff.core import network

    images = network.of(config).sample(config, state, count, steps=steps, seed=seed, labels=labels, guidance=guidance)
    grid(images, config.columns(count), scale).save(out)
