"""Labelled images in one file, a .zip of images or NumPy arrays, become a folder ``LABEL/IMAGE``.

Before the way of the data: bench/dataset.py knows folders only. Archives come from the net, so each is taken for
hostile: nothing is written outside the new folder, nothing but images is, counts and sizes are bounded before they size
anything, and nothing is unpickled. A folder is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError, FedDiffError
from feddiff.core.images import FORMATS

KINDS = (".zip", ".npz", ".npy")
MOST_IMAGES = 1 << 21
LARGEST_IMAGE = 1 << 28
"""Bytes of one file in an archive."""
LARGEST_SUM = 1 << 37
"""Bytes of all that is unpacked."""
MOST_PIXELS = 1 << 26
_BLOCK = 1 << 20


@contextlib.contextmanager
def opened(path: Path, near: Path, by_silo: bool = False) -> Iterator[Path]:
    """A folder of images as it is, or an archive, unpacked beside ``near`` for as long as the block runs."""
    if path.suffix.lower() not in KINDS or path.is_dir():
        yield path
        return
    beside = next(folder for folder in near.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=beside) as place:
        yield unpack(path, Path(place), by_silo)


def unpack(path: Path, into: Path, by_silo: bool = False) -> Path:
    """The folder in ``into`` that holds an archive's images, made at the first time; a folder is given back as it is.

    A .zip holds ``LABEL/IMAGE`` (``by_silo``: ``SILO/LABEL/IMAGE``), perhaps in one folder more. A .npz holds
    ``images`` (N x H x W, or N x H x W x 1 or 3, uint8) and perhaps ``labels`` (N, whole numbers or names); a .npy the
    images, with their labels in ``NAME.labels.npy`` beside ``NAME.npy``. Raises DataError.
    """
    kind = path.suffix.lower()
    if kind not in KINDS or path.is_dir():
        return path
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if by_silo and kind != ".zip":
        raise DataError(f"{path}: arrays say nothing of silos; split folders needs SILO/LABEL/IMAGE")
    beside = path.with_name(f"{path.stem}.labels.npy") if kind == ".npy" else path
    labels = beside if beside.is_file() else None
    digest = _digest(path, labels if kind == ".npy" else None)
    home = into / f"{path.stem}-{digest[:16]}"
    if not home.exists():
        with appearing(home) as half:
            try:
                if kind == ".zip":
                    _unzip(path, half, by_silo)
                elif kind == ".npy":
                    _write(_array(path), None if labels is None else _array(labels), half)
                else:
                    _unzip_arrays(path, half)
            except FedDiffError as error:
                raise DataError(f"{path}: {error}") from None
            except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
                raise DataError(f"{path} is damaged, or no {kind[1:]} archive: {error}") from None
    return home


@contextlib.contextmanager
def appearing(home: Path) -> Iterator[Path]:
    """A folder that is there whole or not at all."""
    half = home.with_name(f".{home.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        yield half
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    half.rename(home)


def _digest(*files: Path | None) -> str:
    digest = hashlib.sha256()
    for path in filter(None, files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _unzip(path: Path, out: Path, by_silo: bool) -> None:
    """Write an archive's images; a single folder around all of them is left out."""
    with zipfile.ZipFile(path) as archive:
        members = [(_inside(info), info) for info in archive.infolist() if _is_image(info)]
        _check([info for _, info in members], out, LARGEST_IMAGE)
        around = {place.parts[0] for place, _ in members}
        deep = min((len(place.parts) for place, _ in members), default=0) > 2 + by_silo
        for place, info in members:
            _extract(archive, info, out.joinpath(*place.parts[1 if deep and len(around) == 1 else 0 :]))


def _is_image(info: zipfile.ZipInfo) -> bool:
    place = PurePosixPath(info.filename)
    hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in place.parts)
    return not info.is_dir() and not hidden and place.suffix.lower() in FORMATS


def _inside(info: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member lies in its archive. Raises DataError for a place outside it, and for what is no file."""
    place = PurePosixPath(info.filename)
    if place.is_absolute() or ".." in place.parts or "\\" in info.filename:
        raise DataError(f"{info.filename!r:.80} would lie outside the folder")
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise DataError(f"{info.filename!r:.80} is a link or no file")
    if info.flag_bits & 1:
        raise DataError(f"{info.filename!r:.80} is encrypted")
    return place


def _check(members: list[zipfile.ZipInfo], out: Path, largest: int) -> None:
    """Raises DataError for too much, or more than the disk has room for."""
    whole = sum(each.file_size for each in members)
    if len(members) > MOST_IMAGES or max((each.file_size for each in members), default=0) > largest:
        raise DataError(f"{len(members)} files are too many, or one of them has more than {largest} bytes")
    if whole > min(LARGEST_SUM, shutil.disk_usage(out).free):
        raise DataError(f"{whole} bytes are too much, or more than there is room for")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write one member, which ends where the archive says, or is refused."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK)  # zipfile gives no more than file_size
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{info.filename!r:.80} is there twice") from None


def _unzip_arrays(path: Path, out: Path) -> None:
    """The arrays of a .npz, through files: an array is mapped there, and believed as far as its file is long."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=out.parent) as place:
        found: dict[str, npt.NDArray[Any]] = {}
        for name in ("images", "labels"):
            if f"{name}.npy" in archive.namelist():
                info = archive.getinfo(f"{name}.npy")
                _check([info], out, LARGEST_SUM)
                _extract(archive, info, Path(place) / f"{name}.npy")
                found[name] = _array(Path(place) / f"{name}.npy")
        if "images" not in found:
            raise DataError("there is no array 'images'")
        _write(found["images"], found.get("labels"), out)


def _array(path: Path) -> npt.NDArray[Any]:
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _write(images: npt.NDArray[Any], labels: npt.NDArray[Any] | None, out: Path) -> None:
    """Each image as ``LABEL/NUMBER.png``; without labels as ``NUMBER.png``. Raises DataError for other arrays."""
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"images must be uint8 of N x H x W, or N x H x W x 1 or 3 (got {images.dtype} of {images.shape})"
        )
    count, height, width = images.shape[:3]
    if not 1 <= count <= MOST_IMAGES or not 1 <= height * width <= MOST_PIXELS:
        raise DataError(f"{count} images of {height} x {width} are none or too many")
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "uiU"):
        raise DataError(
            f"labels must be {count} whole numbers or names (got {labels.dtype} of {labels.shape}); "
            "there is one for each image"
        )
    digits = len(str(count - 1))
    folders = {label: _folder(str(label), out) for label in ([] if labels is None else np.unique(labels).tolist())}
    for number, pixels in enumerate(images):
        folder = out if labels is None else folders[labels[number].item()]
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
        picture.save(folder / f"{number:0{digits}}.png", compress_level=1)


def _folder(label: str, out: Path) -> Path:
    """A label's new folder. Raises DataError for a name that is none."""
    if not label or label.startswith(".") or "/" in label or "\\" in label or "\0" in label or len(label) > 100:
        raise DataError(f"label {label!r:.80} cannot be the name of a folder")
    (out / label).mkdir()
    return out / label
