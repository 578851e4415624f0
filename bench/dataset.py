"""The images of a sweep: a folder of labels, an archive, or scikit-learn's digits; some are held out, the others dealt.

Before the way of the data: what is staged here once for a run lies in the run's own folder, so that each federation's
silos get theirs by hard links. A folder is ``LABEL/IMAGE``, or ``SILO/LABEL/IMAGE`` where each folder is a silo.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feddiff.bench.archive import KINDS, appearing, unpack
from feddiff.bench.partition import Labels, Split, named
from feddiff.core.classes import proportional
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.identity import check_name
from feddiff.core.images import FORMATS

BUILT_IN = "digits"
SHUFFLE = 12345
"""Seed of what is held out: the same images for every cell and seed."""


@dataclass(frozen=True)
class Folder:
    """Images of one folder: paths relative to it, sorted."""

    root: Path
    images: tuple[Path, ...]
    silos: tuple[str, ...] = ()
    """Its first folders, if each of them is a silo; else its first folders are the labels."""

    def label(self, image: Path) -> str:
        """The folder below the root, or below the silo's; "" without one."""
        parts = image.parts[1:-1] if self.silos else image.parts[:-1]
        return parts[0] if parts else ""

    def pooled(self, image: Path) -> Path:
        """Where an image of a silo's folder lies when those of all silos are together: LABEL/SILO-IMAGE."""
        return Path(*image.parts[1:-1], f"{image.parts[0]}-{image.name}")

    def labels(self) -> Labels:
        """Numbers of the labels, in order of their names."""
        names = [self.label(image) for image in self.images]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def deal(self, split: Split, silos: int, seed: int, least: int, out: Path) -> dict[str, dict[str, int]]:
        """Link each silo's images to ``out/SILO/LABEL/IMAGE``; returns silo → label → images. Raises ConfigError."""
        if split.kind == "folders":
            if not self.silos:
                raise ConfigError(f"{self.root}: split folders needs SILO/LABEL/IMAGE")
            dealt = {silo: [image for image in self.images if image.parts[0] == silo] for silo in self.silos}
        else:
            parts = split.deal(self.labels(), silos, seed, least)
            dealt = {name: [self.images[at] for at in part] for name, part in zip(named(silos), parts, strict=True)}
        counts: dict[str, dict[str, int]] = {}
        for silo, images in dealt.items():
            counts[silo] = {}
            for image in images:
                link(self.root / image, out / silo / (self.pooled(image) if self.silos else image))
                counts[silo][self.label(image)] = counts[silo].get(self.label(image), 0) + 1
        return counts


@dataclass(frozen=True)
class Dataset:
    """What a run trains on and what it never trains on."""

    digest: str
    """SHA-256 of names and contents, and of which are held out."""
    train: Folder
    test: Path
    """LABEL/IMAGE."""
    pool: Path | None = None
    """LABEL/IMAGE: public images, which silos get from a federator that shares them, or not at all."""


def folder(root: Path, by_silo: bool = False) -> Folder:
    """All images below a folder. Raises DataError without one, ConfigError for a folder that cannot be a silo."""
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder; images are expected in {root}/LABEL/, in an archive ({', '.join(KINDS)}), "
            f"or name the built-in {BUILT_IN!r}"
        )
    found, arrays = [], 0
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place).relative_to(root)
        seen = [here / name for name in files if not name.startswith(".")]
        found += [path for path in seen if path.suffix.lower() in FORMATS]
        arrays += sum(path.suffix.lower() == ".npy" for path in seen)
    if arrays:  # of many images each, maybe, where here one file is one image
        raise DataError(
            f"{root} holds {arrays} .npy files, which silos read, but here cannot be dealt; take them out, or name one"
            " of them as an archive, with its labels beside it"
        )
    if by_silo:
        found = [path for path in found if len(path.parts) > 1]
    if not found:
        raise DataError(f"{root} holds no images ({', '.join(FORMATS)}){' in the folders of silos' if by_silo else ''}")
    silos = tuple(sorted({check_name(path.parts[0]) for path in found})) if by_silo else ()
    return Folder(root, tuple(sorted(found, key=Path.as_posix)), silos)


def stage(
    path: str, test: str | None, held_out: int, limit: int | None, by_silo: bool, into: Path, pool: float = 0
) -> Dataset:
    """Bring a sweep's images into the run's folder, once.

    ``path`` and ``test`` are folders or archives. ``test`` is held out; without it one in ``held_out`` of ``path``'s
    is. ``limit`` is the most of each kind that is used. ``pool``: so many of those to train on, or this share of them
    if it is below 1, are no silo's, in the shares of the labels. Raises DataError, ConfigError.
    """
    into.mkdir(parents=True, exist_ok=True)
    source = folder(write_digits(into / BUILT_IN) if path == BUILT_IN else unpack(Path(path), into, by_silo), by_silo)
    order = np.random.default_rng(SHUFFLE).permutation(len(source.images))
    kept = 0 if test is not None else len(order) // held_out
    train = _some(source, order[kept:].tolist(), limit)
    held = _some(source, order[:kept].tolist(), limit) if test is None else folder(unpack(Path(test), into))
    if test is not None:
        shuffled = np.random.default_rng(SHUFFLE).permutation(len(held.images))
        held = _some(held, shuffled.tolist(), limit)
    train, public = _apart(train, pool)
    if not held.images or not train.images:
        raise DataError(f"{path}: {len(source.images)} images are too few to hold out one in {held_out}")
    digest = hashlib.sha256()
    for part in (train, held, *([public] if public.images else [])):
        for image in part.images:
            with (part.root / image).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{image.as_posix()}\0{content}\n".encode())
        digest.update(b"\n")
    home = into / digest.hexdigest()[:16]
    if not home.exists():
        with appearing(home) as half:
            for image in train.images:
                link(train.root / image, half / "train" / image)
            for image in held.images:
                link(held.root / image, half / "test" / (held.pooled(image) if held.silos else image))
            for image in public.images:
                link(public.root / image, half / "pool" / (public.pooled(image) if public.silos else image))
    return _dataset(digest.hexdigest(), Folder(home / "train", train.images, train.silos), home)


def staged(digest: str, by_silo: bool, into: Path) -> Dataset:
    """What ``stage`` left in a run's folder, from its digest. Raises DataError if it is not there."""
    home = into / digest[:16]
    return _dataset(digest, folder(home / "train", by_silo), home)


def _dataset(digest: str, train: Folder, home: Path) -> Dataset:
    return Dataset(digest, train, home / "test", home / "pool" if (home / "pool").exists() else None)


def write_digits(home: Path) -> Path:
    """scikit-learn's handwritten digits as ``home/DIGIT/NUMBER.png``, 8x8 grey; 1,797 real scans."""
    from PIL import Image

    from feddiff.bench import trial

    if not home.exists():
        with appearing(home) as half:
            for number, (pixels, label) in enumerate(zip(*trial.digits(), strict=True)):
                (half / str(label)).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(half / str(label) / f"{number:04}.png")
    return home


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there cannot be one (another disk, another's file)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve() if source.is_symlink() else source  # a hard link to a link would hang where it points
    try:
        os.link(real, target)
    except FileExistsError:
        raise ConfigError(f"{target} is there already; give a new folder") from None
    except OSError:
        shutil.copyfile(real, target)


def _apart(train: Folder, pool: float) -> tuple[Folder, Folder]:
    """(what is left to silos, what is public): drawn of each label, as many as its share of all is."""
    if not pool:
        return train, Folder(train.root, ())
    count, labels = math.ceil(pool if pool >= 1 else pool * len(train.images)), train.labels()
    if count >= len(train.images):
        raise ConfigError(f"data.pool takes {count} of {len(train.images)} training images; silos need some")
    taken = Counter(proportional(np.bincount(labels).tolist(), count))
    order = np.random.default_rng(SHUFFLE).permutation(len(labels))
    public = {int(place) for label, most in taken.items() for place in order[labels[order] == label][:most]}
    rest = [place for place in range(len(labels)) if place not in public]
    return _some(train, rest, None), _some(train, list(public), None)


def _some(whole: Folder, places: Sequence[int], limit: int | None) -> Folder:
    images = tuple(whole.images[place] for place in sorted(places[:limit]))
    present = {image.parts[0] for image in images}
    return Folder(whole.root, images, tuple(silo for silo in whole.silos if silo in present))
