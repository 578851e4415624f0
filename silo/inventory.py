"""What is under ``--data``, in numbers: how many images of what kind and class, how many files were left out and why.

Comes out of the same reading that a training uses (silo/collection.py), for the log and for ``feddiff-silo doctor``.
It holds counts and this program's own words, nothing out of a file and no file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Inventory:
    """Counts; kinds are e.g. ``PNG``, ``NumPy``, ``DICOM CT``, ``NIfTI``."""

    images: Mapping[str, int]
    """Images that can be trained on, by kind."""
    labels: Mapping[str, int]
    """The same images by label; "" for those without one."""
    skipped: Mapping[str, int]
    """Files that were left out, by reason."""
    empty: int = 0
    """Slices that were left out because there is next to nothing on them."""
    volumes: int = 0
    """DICOM series and NIfTI volumes that the images are of."""
    other: int = 0
    """Files that are no images, and were passed over."""
    cached: int = 0
    """Images that came out of the cache, undecoded."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know beside the numbers, a sentence each."""

    @property
    def total(self) -> int:
        """Images that can be trained on."""
        return sum(self.images.values())

    @property
    def left_out(self) -> int:
        """Files that were left out."""
        return sum(self.skipped.values())

    def lines(self) -> list[str]:
        """A person's summary, a line for each matter."""
        kinds = _counted(self.images)
        told = [f"{self.total} images ({kinds})" + (f" of {self.volumes} series or volumes" if self.volumes else "")]
        if any(self.labels):
            told.append(f"by class: {_counted({name or 'without one': count for name, count in self.labels.items()})}")
        if self.empty:
            told.append(f"{self.empty} slices left out: there is next to nothing on them")
        told += [f"{count} files left out: {reason}" for reason, count in _most(self.skipped)]
        if self.other:
            told.append(f"{self.other} other files passed over")
        return [*told, *self.notes]

    def table(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "images": dict(self.images),
            "labels": dict(self.labels),
            "skipped": dict(self.skipped),
            "empty": self.empty,
            "volumes": self.volumes,
            "other": self.other,
            "cached": self.cached,
            "notes": list(self.notes),
        }


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in _most(counts))
