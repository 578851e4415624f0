"""Where a silo's images are and how they are read: the options that go with ``--data``.

Typed at the daemon, at ``personalise``, ``sample --balance`` and ``doctor``, and alike at each: who trains on one
window and counts with another has two collections. Loads nothing heavy; silo/collection.py does what is said here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

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


def add_options(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    """The options that say how ``--data`` is read; ``labels``: with ``--labels`` among them."""
    group = parser.add_argument_group("how the images are read (docs/data.md)")
    group.add_argument(
        "--window",
        default="file",
        metavar="WINDOW",
        help="what becomes black and white of DICOM and NIfTI: lung, brain, bone, mediastinum (of CT), CENTER,WIDTH, or"
        " what the file says (default: file)",
    )
    group.add_argument(
        "--slices", choices=("axial", "coronal", "sagittal"), default="axial", help="of NIfTI volumes (default: axial)"
    )
    group.add_argument(
        "--content",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="leave out slices with less than this of anything but air (default: 0.05; 0: keep all)",
    )
    if labels:
        group.add_argument(
            "--labels",
            dest="label_file",
            type=Path,
            metavar="FILE.csv",
            help="the label of each file, folder, series or study, instead of the sub-folders",
        )
    group.add_argument(
        "--label-from",
        default="",
        metavar="dicom:KEYWORD",
        help="a DICOM attribute that is the label, e.g. dicom:BodyPartExamined, instead of the sub-folders",
    )
    group.add_argument(
        "--cache",
        type=float,
        default=CACHE_GB,
        metavar="GB",
        help=f"what decoded slices may take in the state folder (default: {CACHE_GB:g}; 0: decode at every start)",
    )
