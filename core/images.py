"""A folder of image files becomes one array of the model's size.

Before the way of the data: what a silo reads here it trains on, and it never leaves the silo; a federator reads its
reference images in the same way. The files come out of scanners, exports and other people's scripts, so each is taken
for hostile: only four parsers of Pillow are reachable, a .npy header is believed only as far as the file is long, no
pickle is ever read. What cannot be used is skipped and counted; the reasons, which end up in logs, are words of this
module and hold nothing out of a file.

The folder's shape is the labelling: with ``data.classes``, the first folder below it is an image's label.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import mmap
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from feddiff.core import notify
from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
ACCEPTED = "PNG, JPEG, TIFF, BMP or .npy files"
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
    kinds: dict[str, int] = field(default_factory=dict)
    """Images by kind, e.g. PNG."""


class Album:
    """Images in the making: what was read of a folder so far, and what was left out."""

    def __init__(self, folder: Path, config: FederationConfig, accepted: str = ACCEPTED) -> None:
        """``accepted``: what a person is told to put there if there is nothing; ``where`` may be set to say how."""
        classes = ", ".join(config.data.classes)
        self.where = f"into one folder for each class ({classes})" if classes else "there"
        self._folder, self._config, self._accepted = folder, config, accepted
        self._pixels, self._labels, self._kinds = bytearray(), list[int](), Counter[str]()
        self._skipped: list[tuple[Path, str]] = []

    def add(self, kind: str, label: int, pixels: bytes, images: int) -> None:
        """Put in ``images`` of a label (a place in ``data.classes`` or -1), as ``fit`` gives them."""
        notify.alive()
        self._pixels += pixels
        self._labels += [label] * images
        self._kinds[kind] += images

    def skip(self, path: Path, reason: str) -> None:
        """Leave a file out, for a reason that holds nothing out of the file."""
        notify.alive()
        self._skipped.append((path, reason))

    def images(self) -> Images:
        """All of it. Raises DataError if there is none."""
        config, skipped = self._config, self._skipped
        if skipped:
            logger.warning("%s: %d files cannot be used: %s", self._folder, len(skipped), _some(skipped, 5))
        if not self._labels:
            raise DataError(_nothing(self._folder, skipped, f"put {self._accepted} {self.where}"))
        size, channels = shape(config)
        names = {-1: "", **dict(enumerate(config.data.classes))}
        return Images(
            pixels=np.frombuffer(self._pixels, np.uint8).reshape(-1, channels, size, size),
            labels=np.array(self._labels, np.int64) if config.data.classes else None,
            counts={names[label]: count for label, count in sorted(Counter(self._labels).items())},
            skipped=tuple(skipped),
            kinds=dict(self._kinds),
        )


def shape(config: FederationConfig) -> tuple[int, int]:
    """(pixels along a side, channels) of the model's images."""
    return int(config.model["sample_size"]), int(config.model["in_channels"])


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
    size, channels = shape(config)
    album = Album(folder, config)
    with quiet():
        for path, closed in files(folder, is_plain):
            try:
                if closed:
                    raise DataError(closed)
                label = folder_label(path.parts[:-1], config)
                with (folder / path).open("rb") as file:
                    read = [fit(image, size, channels) for image in pictures(file, path.suffix)]
            except DataError as error:
                album.skip(path, str(error))
            except Exception as error:  # parsers raise anything when the bytes are hostile
                album.skip(path, f"cannot be read ({type(error).__name__})")
            else:
                album.add(kind(path.suffix), label, b"".join(read), len(read))
    return album.images()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of Pillow's, which may quote a file's metadata; but its decompression bombs are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def is_plain(path: PurePath) -> bool:
    """Whether a file is one of those that ``read_images`` reads, by its name."""
    return path.suffix.lower() in (*FORMATS, ".npy")


def kind(suffix: str) -> str:
    """What a plain file is called in an inventory."""
    return FORMATS.get(suffix.lower(), "NumPy")


def files(folder: Path, wanted: Callable[[Path], bool]) -> list[tuple[Path, str]]:
    """Relative paths of all files that are ``wanted``, in order; with the reason not to open one, or "".

    Hidden files and folders are passed over, links to folders not followed. Raises DataError if it is no folder.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; name the folder that holds the images")
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
            if wanted(path):
                found.append((path.relative_to(folder), _closed(path)))
    return sorted(found, key=lambda entry: entry[0].as_posix())


def _closed(path: Path) -> str:
    """Why a file must not be opened, or "". To open a pipe is to wait for ever."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "is not a regular file"
    except OSError as error:
        return f"cannot be read ({type(error).__name__})"


def folder_label(folders: Sequence[str], config: FederationConfig) -> int:
    """The place in ``data.classes`` of an image in these nested folders, or -1, of which a model with a null class
    learns, too. Raises DataError."""
    classes = config.data.classes
    if classes and folders:
        if folders[0] not in classes:
            raise DataError("is in a folder that is not one of data.classes")
        return classes.index(folders[0])
    if config.conditional and config.null_class is None:
        raise DataError("is not in the folder of a class")
    return -1


def pictures(file: BinaryIO, suffix: str) -> Iterator[Image.Image]:
    """The images of one plain file, mode L or RGB. Raises DataError, and anything if the bytes are hostile."""
    if suffix.lower() == ".npy":
        if isinstance(file, io.BytesIO):
            yield from _read_array(file.getbuffer())
        else:
            yield from _read_array(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return
    with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
        if image.mode.startswith(("I", "F")):
            grey = np.asarray(image)
            yield Image.fromarray(_bytes(grey, *_range(grey)))
        elif image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
            opaque.alpha_composite(image.convert("RGBA"))
            yield opaque.convert("RGB")
        else:
            yield image.convert("L" if image.mode in ("1", "L") else "RGB")


def _read_array(content: mmap.mmap | memoryview) -> Iterator[Image.Image]:
    """The images of a .npy file, which is mapped, not loaded."""
    file = io.BytesIO(content[: 1 << 16])
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError("is a .npy file of a version other than 1 or 2")
    start, present = file.tell(), len(content)
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DataError("does not hold whole numbers or floats")
    if min(shape, default=0) < 1 or math.prod(shape) * dtype.itemsize > present - start:
        raise DataError("is empty or shorter than its header says")
    array = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")
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


def fit(image: Image.Image, size: int, channels: int, aspect: float = 1.0) -> bytes:
    """The central square at the model's size, C order of (C, S, S). ``aspect``: a pixel's height by its width."""
    # Cut before resizing: a strip of one pixel by millions would grow beyond all memory.
    side = min(image.width, image.height * aspect)
    wide, high = (max(round(length), 1) for length in (side, side / aspect))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    square = image.crop((left, top, left + wide, top + high))
    if (wide, high) != (size, size):
        square = square.resize((size, size), Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC)
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels)
    return pixels.transpose(2, 0, 1).tobytes()


def _nothing(folder: Path, skipped: Sequence[tuple[Path, str]], remedy: str) -> str:
    # No names here: an error's text may go where the images' names must not.
    reasons = Counter(reason for _, reason in skipped).most_common(3)
    if reasons and "PermissionError" in reasons[0][0]:
        remedy = "let the user that runs this read it"
    message = f"{folder} holds no usable image; {remedy}"
    return f"{message}; skipped: {'; '.join(f'{n} x {reason}' for reason, n in reasons)}" if skipped else message


def _some(skipped: list[tuple[Path, str]], limit: int) -> str:
    """The first few in one line; repr() keeps a line break in a file's name from forging a log entry."""
    named = "; ".join(f"{path.as_posix()!r} {reason}" for path, reason in skipped[:limit])
    return named + (f"; and {len(skipped) - limit} more" if len(skipped) > limit else "")
