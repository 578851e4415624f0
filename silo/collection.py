"""A silo's collection: everything usable under ``--data`` as one array of the model's size, with its inventory.

    folder ── files and members of zip files ──► cache, or else decoders ──► label ──► series in order ──► Images

Between the folder and the training. Whoever needs a silo's images (training, fine-tuning, what a silo lacks, doctor)
asks here. A folder of plain pictures is read by core/images.py alone.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from secrets import token_bytes
from typing import Any

from feddiff.core import notify
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.images import Album, Images, files, read_images, shape
from feddiff.silo import filetypes, window
from feddiff.silo.cache import Cache
from feddiff.silo.decoders import Answer, Decoders
from feddiff.silo.inventory import Inventory
from feddiff.silo.labels import Labels, attribute
from feddiff.silo.slices import Decoding
from feddiff.silo.source import Source

ACCEPTED = "PNG, JPEG, TIFF, BMP, .npy, DICOM, NIfTI or zip files"
DECODERS = (
    *("pydicom", "nibabel", "numpy", "pillow", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pylibjpeg-libjpeg", "python-gdcm", "pyjpegls"),
)
"""Packages by which it is settled what comes out of a file."""
VERSION = 1
"""Of this program's own part in that."""
SAID_S = 30.0
NEEDED = {filetypes.DICOM: "pydicom", filetypes.NIFTI: "nibabel"}
logger = logging.getLogger("feddiff.silo")


@dataclass(frozen=True)
class Collection:
    """What can be trained on, and what there is to say about it."""

    images: Images
    inventory: Inventory


@dataclass(frozen=True)
class _File:
    """A file under ``--data``, or a member of a zip file there."""

    path: Path
    """Relative; that of the zip file."""
    type: str
    closed: str
    """Why it is not opened, or ""."""
    member: str = ""
    stamp: tuple[object, ...] = ()
    """What tells whether it has changed."""

    @property
    def name(self) -> Path:
        """What it is called in a log, and by a CSV."""
        return self.path / self.member.lstrip("/") if self.member else self.path


@dataclass(frozen=True)
class _Read:
    """A decoded file on its way to its place in the order."""

    file: _File
    label: int
    answer: Answer

    @property
    def series(self) -> str:
        """A DICOM series; a name of its own for any other file."""
        return str(self.answer.facts.get("series") or self.file.name.as_posix())


def collect(data: Source | Path, config: FederationConfig, cache: Path | None = None) -> Collection:
    """Read every image of a source, or of a folder with the options' defaults, at the size of the rules' model.

    ``cache``: a folder for decoded slices, made if it is not there; None: nothing is kept. Raises DataError, saying
    what to do, if there is no such folder, not one usable image in it or nothing to decode it with, and ConfigError for
    options that cannot be.
    """
    source = data if isinstance(data, Source) else Source(data)
    source.check_folder()
    how = _decoding(source, config)
    listed = [_listed(source.folder, path, closed) for path, closed in files(source.folder, lambda path: True)]
    found = [file for file in listed if file.type]
    if not source.labels and not source.label_from and all(file.type == filetypes.PLAIN for file in found):
        images = read_images(source.folder, config)
        return Collection(images, _inventory(images, images.kinds, other=len(listed) - len(found)))
    _check_packages(found)
    kept = None if cache is None or source.cache_bytes <= 0 else Cache(cache, source.cache_bytes)
    key = token_bytes(32) if kept is None else kept.key
    labels = Labels(config, source.labels, bool(source.label_from), key)
    album = Album(source.folder, config, ACCEPTED)
    counts: Counter[str] = Counter()
    try:
        with Decoders(how, key) as decoders:
            read = []
            for file, answer in _answers(source.folder, found, decoders, kept, how):
                counts["cached"] += answer.facts.get("images", 0) if answer.facts.get("cached") else 0
                try:
                    read.append(_labelled(file, answer, labels))
                    counts["empty"] += answer.facts["empty"]
                except DataError as error:
                    album.skip(file.name, str(error))
    finally:
        if kept is not None:
            kept.close()
    scans = [each for each in read if each.answer.facts["kind"].startswith((filetypes.DICOM, filetypes.NIFTI))]
    volumes = {each.series for each in scans if each.answer.facts["images"]}
    ordered = _ordered(read)[::-1]
    del read, scans
    while ordered:  # each is let go when it is in, for all of them may be half of the memory
        each = ordered.pop()
        album.add(each.answer.facts["kind"], each.label, each.answer.pixels, each.answer.facts["images"])
    unused = labels.rows - len(labels.used)
    note = f"{unused} of {labels.rows} lines of --labels name nothing here" if unused else ""
    if config.data.classes and (source.labels or source.label_from):
        by = f"{source.label_from} says" if source.label_from else "--labels gives each"
        album.where = f"there for which {by} one of {', '.join(config.data.classes)}" + (f" ({note})" if note else "")
    images = album.images()
    inventory = _inventory(images, images.kinds, len(listed) - len(found), len(volumes), counts)
    if note:
        inventory = replace(inventory, notes=(note,))
    return Collection(images, inventory)


def check(source: Source) -> str:
    """The keyword of the attribute that is the label, or "". Raises ConfigError for options that cannot be."""
    window.parse(source.window)
    if not 0 <= source.content < 1:
        raise ConfigError(f"--content must be a share, 0 or more and below 1 (got {source.content:g})")
    if source.cache_bytes < 0:
        raise ConfigError("--cache must be 0 or more")
    if source.labels is not None and source.label_from:
        raise ConfigError("--labels and --label-from both say the label; give one of them")
    if not source.label_from:
        return ""
    _need("pydicom", "--label-from")
    return attribute(source.label_from)


def _decoding(source: Source, config: FederationConfig) -> Decoding:
    """How files are decoded. Raises ConfigError for options that cannot be."""
    keyword = check(source)
    size, channels = shape(config)
    classes = config.data.classes if keyword else ()
    return Decoding(size, channels, source.window, source.slices, source.content, keyword, classes)


def _need(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{what} needs {package}, which is not installed; run: pip install 'feddiff[medical]'")


def _check_packages(found: list[_File]) -> None:
    for type, package in NEEDED.items():
        if any(file.type == type for file in found):
            _need(package, f"a {type} file")


def _listed(folder: Path, path: Path, closed: str) -> _File:
    """A file with its type ("": none that is read) and stamp."""
    type, stamp = filetypes.by_name(path), tuple[object, ...]()
    try:
        if not closed:
            status = (folder / path).stat()
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            if not type:
                with (folder / path).open("rb") as file:
                    type = filetypes.by_start(file.read(filetypes.START))
        elif (folder / path).is_symlink() or (folder / path).is_dir():
            type = type or filetypes.PLAIN  # a folder that is not looked into may hold images: it is named
    except OSError as error:
        closed = f"cannot be read ({error.__class__.__name__})"
    return _File(path, type, closed, "", stamp)


def _members(folder: Path, file: _File, decoders: Decoders) -> list[_File]:
    """What is in a zip file; itself, with the reason, if it cannot be told."""
    facts = decoders.members(folder / file.path).facts
    if facts["reason"]:
        return [replace(file, closed=facts["reason"])]
    return [
        _File(file.path, type, reason, name, (*file.stamp, size, crc))
        for name, type, size, crc, reason in facts["members"]
    ]


def _answers(
    folder: Path, found: list[_File], decoders: Decoders, kept: Cache | None, how: Decoding
) -> Iterator[tuple[_File, Answer]]:
    """Every file with what is in it, from the cache or decoded."""
    every: list[_File] = []
    for file in found:
        opened = file.type == filetypes.ZIP and not file.closed
        every += _members(folder, file, decoders) if opened else [file]
    _check_packages(every)
    way = (VERSION, *(f"{name} {_version(name)}" for name in DECODERS), *how.table().items())
    places = [b""] * len(every)
    if kept is not None:
        names = [kept.named(file.name.as_posix(), *file.stamp) for file in every]
        places = [kept.named(*way, name.hex()) for name in names]
        kept.keep_only(dict(zip(places, names, strict=True)))

    def decode(task: tuple[_File, bytes, Answer | None]) -> tuple[_File, bytes, Answer]:
        file, place, answer = task
        if answer is None:
            answer = decoders.decode(folder / file.path, file.member, file.type)
        return file, place, answer

    def tasks() -> Iterator[tuple[_File, bytes, Answer | None]]:
        for file, place in zip(every, places, strict=True):
            known = None
            if file.closed:
                known = Answer({"reason": file.closed})
            elif kept is not None and (entry := kept.get(place)) is not None:
                known = Answer({**entry[0], "cached": True}, entry[1])
            yield file, place, known

    said = time.monotonic()
    for number, (file, place, answer) in enumerate(decoders.map(decode, tasks())):
        notify.alive()
        if time.monotonic() - said > SAID_S:
            said = time.monotonic()
            logger.info("%s: %d of %d files are read", folder, number, len(every))
        facts = answer.facts
        if kept is not None and not file.closed and not facts.get("lost") and not facts.get("cached"):
            digest = facts.pop("digest")
            if digest:
                kept.put(place, kept.named(*way, digest, file.type), facts, answer.pixels)
        yield file, answer


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _labelled(file: _File, answer: Answer, labels: Labels) -> _Read:
    """Raises DataError for a file that is left out."""
    facts: dict[str, Any] = answer.facts
    if facts["reason"]:
        raise DataError(facts["reason"])
    archive = len(file.path.parts) - 1 if file.member else None
    parts = (*file.path.parts, *PurePosixPath(file.member).parts)
    return _Read(file, labels.of(parts, archive, facts["label"], facts["series"], facts["study"]), answer)


def _ordered(read: list[_Read]) -> list[_Read]:
    """By relative path, but each DICOM series together, at its first file, along its axis."""
    first: dict[str, str] = {}
    for each in read:
        name = each.file.name.as_posix()
        first[each.series] = min(first.get(each.series, name), name)
    return sorted(
        read,
        key=lambda each: (first[each.series], each.answer.facts["position"], each.file.name.as_posix()),
    )


def _inventory(
    images: Images, kinds: dict[str, int], other: int, volumes: int = 0, counts: Counter[str] | None = None
) -> Inventory:
    counts = counts or Counter()
    return Inventory(
        images=dict(kinds),
        labels=images.counts,
        skipped=dict(Counter(reason for _, reason in images.skipped)),
        empty=counts["empty"],
        volumes=volumes,
        other=other,
        cached=counts["cached"],
    )
