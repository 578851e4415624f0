"""A folder of image files becomes one array of the model's size.

Before the way of the data: what a silo reads here it trains on, and it never leaves the silo; a federator reads its
reference images in the same way. The files come out of scanners, exports and other people's scripts, so each is taken
for hostile: only four parsers of Pillow are reachable, a .npy header is believed only as far as the file is long, no
pickle is ever read. What cannot be used is skipped and counted; the reasons, which end up in logs, are words of this
module and hold nothing out of a file.

The folder's shape is the labelling: with ``data.classes``, the first folder below it is an image's label.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from feddiff.core import notify
from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
MAX_SLICES = 1 << 20
"""Images in one .npy file: slices of one pixel, each grown to the model's size, must not become terabytes."""

logger = logging.getLogger(__name__)
# At level DEBUG Pillow logs the tags of a TIFF, a patient's name among them.
logging.getLogger("PIL").setLevel(logging.INFO)


@dataclass(frozen=True)
class Images:
    """What can be trained on, in the order of its files' relative paths."""

    pixels: npt.NDArray[np.uint8]
    """(N, C, S, S): the model's channels and size."""
    labels: npt.NDArray[np.int64] | None
    """(N,), places in ``data.classes``, -1 for an image outside all label folders; None without classes."""
    counts: dict[str, int]
    """Images by label; "" for those without one."""
    skipped: tuple[tuple[Path, str], ...]
    """Files (and linked folders) that could not be used, relative to the folder, each with the reason."""


def read_images(folder: Path, config: FederationConfig) -> Images:
    """Read every image below ``folder``.

    PNG, JPEG, TIFF (the first page) and BMP of any size and mode; transparency lies over black. A .npy file
    holds one image (H x W, or H x W x 1 or 3) or a stack of them (N x H x W with the last axis not 1, 3 or 4,
    or N x H x W x 1 or 3). uint16 is divided by 257, floats within [0, 1] are multiplied by 255, all other
    numbers are stretched from the file's own minimum and maximum. Images are cut to their central square,
    then resized (Lanczos down, bicubic up). Files of other kinds, hidden ones and linked folders are not
    read.

    Raises DataError, saying what to do, if there is no such folder or not one usable image in it.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; name the folder that holds the images")
    size, channels = int(config.model["sample_size"]), int(config.model["in_channels"])
    pixels, labels, skipped = bytearray(), list[int](), list[tuple[Path, str]]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's may quote a file's metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path, closed in _files(folder):
            notify.alive()
            try:
                if closed:
                    raise DataError(closed)
                label = _label(path, config)
                read = [_fit(image, size, channels) for image in _read(folder / path)]
            except DataError as error:
                skipped.append((path, str(error)))
            except Exception as error:  # parsers raise anything when the bytes are hostile
                skipped.append((path, f"cannot be read ({type(error).__name__})"))
            else:
                pixels += b"".join(read)
                labels += [label] * len(read)
    if skipped:
        logger.warning("%s: %d files cannot be used: %s", folder, len(skipped), _some(skipped, 5))
    if not labels:
        raise DataError(_nothing(folder, config, skipped))
    names = {-1: "", **dict(enumerate(config.data.classes))}
    return Images(
        pixels=np.frombuffer(pixels, np.uint8).reshape(-1, channels, size, size),
        labels=np.array(labels, np.int64) if config.data.classes else None,
        counts={names[label]: count for label, count in sorted(Counter(labels).items())},
        skipped=tuple(skipped),
    )


def _files(folder: Path) -> list[tuple[Path, str]]:
    """Relative paths of what may be an image, in order; with the reason not to open one, or ""."""
    found: list[tuple[Path, str]] = []

    def unlisted(error: OSError) -> None:
        found.append((Path(error.filename).relative_to(folder), f"cannot be listed ({type(error).__name__})"))

    for place, folders, files in os.walk(folder, onerror=unlisted):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (here / name for name in folders):
            if path.is_symlink():
                found.append((path.relative_to(folder), "is a link to a folder; put the folder itself there"))
        for path in (here / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in (*FORMATS, ".npy"):
                found.append((path.relative_to(folder), _closed(path)))
    return sorted(found, key=lambda entry: entry[0].as_posix())


def _closed(path: Path) -> str:
    """Why a file must not be opened, or "". To open a pipe is to wait for ever."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "is not a regular file"
    except OSError as error:
        return f"cannot be read ({type(error).__name__})"


def _label(path: Path, config: FederationConfig) -> int:
    """An image's place in ``data.classes``, or -1, of which a model with a null class learns, too. Raises DataError."""
    classes = config.data.classes
    if classes and len(path.parts) > 1:
        if path.parts[0] not in classes:
            raise DataError("is in a folder that is not one of data.classes")
        return classes.index(path.parts[0])
    if config.conditional and config.null_class is None:
        raise DataError("is not in the folder of a class")
    return -1


def _read(path: Path) -> Iterator[Image.Image]:
    """The images of one file, mode L or RGB."""
    if path.suffix.lower() == ".npy":
        yield from _read_array(path)
        return
    with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
        if image.mode.startswith(("I", "F")):
            grey = np.asarray(image)
            yield Image.fromarray(_bytes(grey, *_range(grey)))
        elif image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
            opaque.alpha_composite(image.convert("RGBA"))
            yield opaque.convert("RGB")
        else:
            yield image.convert("L" if image.mode in ("1", "L") else "RGB")


def _read_array(path: Path) -> Iterator[Image.Image]:
    """The images of a .npy file, which is mapped, not loaded."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise DataError("is a .npy file of a version other than 1 or 2")
        start, present = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DataError("does not hold whole numbers or floats")
    if min(shape, default=0) < 1 or math.prod(shape) * dtype.itemsize > present - start:
        raise DataError("is empty or shorter than its header says")
    array = np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
    if array.ndim == 2:
        stack = array[None, ..., None]
    elif array.ndim == 3 and shape[2] in (1, 3):
        stack = array[None]
    elif array.ndim == 3 and shape[2] != 4:
        stack = array[..., None]
    elif array.ndim == 4 and shape[3] in (1, 3):
        stack = array
    else:
        raise DataError("does not have the shape of an image or of a stack of images")
    if len(stack) > MAX_SLICES or stack.shape[1] * stack.shape[2] > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise DataError("holds too many images or too large ones")
    low, high = _range(array)
    for picture in stack:
        values = _bytes(picture, low, high)
        yield Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """The values that become black and white. Raises DataError for values that are not finite."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(values.dtype).max)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("holds NaN or infinity")
    return (0.0, 1.0) if values.dtype.kind in "bf" and low >= 0 and high <= 1 else (low, high)


def _bytes(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """``low`` to ``high`` become 0 to 255; all is black if they are the same."""
    # Halved before subtracting: the span of two float64 may be too large for a float64.
    span = (high / 2 - low / 2) or 1.0
    return np.round((values.astype(np.float64) / 2 - low / 2) / span * 255).astype(np.uint8)


def _fit(image: Image.Image, size: int, channels: int) -> bytes:
    """The central square at the model's size, C order of (C, S, S)."""
    # Cut before resizing: a strip of one pixel by millions would grow beyond all memory.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC)
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels)
    return pixels.transpose(2, 0, 1).tobytes()


def _nothing(folder: Path, config: FederationConfig, skipped: list[tuple[Path, str]]) -> str:
    classes = config.data.classes
    where = f"into one folder for each class ({', '.join(classes)})" if classes else "there"
    message = f"{folder} holds no usable image; put PNG, JPEG, TIFF, BMP or .npy files {where}"
    # No names here: an error's text may go where the images' names must not.
    reasons = Counter(reason for _, reason in skipped).most_common(3)
    return f"{message}; skipped: {'; '.join(f'{n} x {reason}' for reason, n in reasons)}" if skipped else message


def _some(skipped: list[tuple[Path, str]], limit: int) -> str:
    """The first few in one line; repr() keeps a line break in a file's name from forging a log entry."""
    named = "; ".join(f"{path.as_posix()!r} {reason}" for path, reason in skipped[:limit])
    return named + (f"; and {len(skipped) - limit} more" if len(skipped) > limit else "")
