"""Where a silo's images are and how they are read: the options that go with ``--data``.

Typed at the daemon, at ``personalise``, ``sample --balance`` and ``doctor``, and alike at each: who trains on one
window and counts with another has two collections. Loads nothing heavy; silo/collection.py does what is said here.
"""

from __future__ import annotations

import argparse
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from feddiff.core.errors import DataError

Plane = Literal["axial", "coronal", "sagittal"]
CACHE_GB = 16.0


@dataclass(frozen=True)
class Source:
    """A folder of images, and how they are read. Plain pictures (PNG, …) mind the labels alone."""

    folder: Path
    window: str = "file"
    """``file``, a preset's name, or ``CENTER,WIDTH`` (silo/window.py)."""
    slices: Plane = "axial"
    """How NIfTI volumes are cut."""
    content: float = 0.05
    """Slices with less than this share of anything but air are left out; 0: none."""
    labels: Path | None = None
    """A CSV that says the labels, instead of the sub-folders (silo/labels.py)."""
    label_from: str = ""
    """``dicom:KEYWORD``: the attribute that is the label, instead of the sub-folders."""
    cache_bytes: int = int(CACHE_GB * 1e9)
    """What decoded slices may take in the state folder; 0: nothing is kept."""

    def check_folder(self) -> None:
        """Raises DataError, saying what to do, for what is no folder that this user can open."""
        try:
            folder = stat.S_ISDIR(self.folder.stat().st_mode)
            if folder:
                next(self.folder.iterdir(), None)
        except PermissionError:
            advice = (
                "let the user that runs this read it, and enter each folder above it (namei -l shows which it may not)"
            )
            raise DataError(f"{self.folder} cannot be opened (PermissionError); {advice}") from None
        except OSError as error:
            folder = False
            if not isinstance(error, FileNotFoundError):
                raise DataError(
                    f"{self.folder} cannot be opened ({error.strerror}); is its disk or share there?"
                ) from None
        if not folder:
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise DataError(f"{self.folder} {what}; --data needs the folder that holds the images")

    @classmethod
    def chosen(cls, folder: Path, options: argparse.Namespace) -> Self:
        """As typed with ``add_options``; what cannot be is found when it is read."""
        return cls(
            folder,
            window=options.window,
            slices=options.slices,
            content=options.content,
            labels=options.label_file,
            label_from=options.label_from,
            cache_bytes=int(options.cache * 1e9),
        )


DEFAULTS = {
    "window": "file",
    "slices": "axial",
    "content": 0.05,
    "label_file": None,
    "label_from": "",
    "cache": CACHE_GB,
}


def add_options(parser: argparse.ArgumentParser, command: bool = False, labels: bool = True) -> None:
    """The options that say how ``--data`` is read.

    ``command``: for a command of a parser that has them itself, whose values count unless they are given here;
    ``labels``: with ``--labels``.
    """
    group = parser.add_argument_group("how scanners' files are read (docs/data.md)")

    def add(name: str, to: str, **more: Any) -> None:
        group.add_argument(name, dest=to, default=argparse.SUPPRESS if command else DEFAULTS[to], **more)

    add(
        "--window",
        "window",
        metavar="WINDOW",
        help="what becomes black and white: lung, mediastinum, brain, bone (of CT), CENTER,WIDTH, or what the file says"
        " (default: file)",
    )
    planes = ("axial", "coronal", "sagittal")
    add("--slices", "slices", choices=planes, help="how NIfTI volumes are cut (default: axial)")
    add(
        "--content",
        "content",
        type=float,
        metavar="SHARE",
        help="leave out slices with less than this of anything but air (default: 0.05; 0: keep all)",
    )
    if labels:
        add(
            "--labels",
            "label_file",
            type=Path,
            metavar="FILE.csv",
            help="the label of each file, folder, series or study, instead of the sub-folders'",
        )
    add(
        "--label-from",
        "label_from",
        metavar="dicom:KEYWORD",
        help="a DICOM attribute that is the label, e.g. dicom:BodyPartExamined, instead of the sub-folders",
    )
    add(
        "--cache",
        "cache",
        type=float,
        metavar="GB",
        help=f"what decoded slices may take in the state folder (default: {CACHE_GB:g}; 0: decode at every start)",
    )
