"""What images a silo has, counted, for the doctor: how many of what kind and label, how many not usable and why.

Numbers and the rules' own words only: neither a file's name nor a folder's that the rules do not know, for both may be
a patient's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError, FedDiffError
from feddiff.core.finding import Finding, ok, refusal, warning

REASONS = 4
"""Reasons that are told, the most frequent ones."""


@dataclass(frozen=True)
class Stock:
    """What was found in a folder."""

    images: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    """By class; "" for those without one."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Files by ending, all of them."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that cannot be used, by reason."""
    failure: FedDiffError | None = None


def take(folder: Path, config: FederationConfig | None) -> Stock:
    """Read a folder as the training would; without rules every image that can be read counts, whatever its folder."""
    from feddiff.core.images import read_images

    kinds: Counter[str] = Counter()
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        kinds.update(Path(name).suffix.lower()[:8] or "none" for name in files if not name.startswith("."))
    bare = {"model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}}
    try:
        images = read_images(folder, config or from_table(bare, "the doctor"))
    except FedDiffError as error:
        return Stock(kinds=kinds, failure=error)
    reasons = Counter(reason for _, reason in images.skipped)
    return Stock(len(images.pixels), images.counts, kinds, reasons)


def judge(stock: Stock, config: FederationConfig | None) -> Iterator[Finding]:
    """Whether that is something to train on under these rules; None: they are not known."""
    if stock.failure is not None:
        advice = "name the folder of the images with --data" if isinstance(stock.failure, DataError) else ""
        yield refusal("images", stock.failure, advice)
        return
    words = f"{stock.images} images can be read"
    if config is not None:
        size, channels = config.model["sample_size"], config.model["in_channels"]
        words += f" and become {size} x {size}, {'grey' if channels == 1 else 'colour'}"
    labels = ", ".join(f"{name or 'without a label'} {count}" for name, count in stock.labels.items())
    if config is not None and config.data.classes:
        words += f": {labels}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(stock.kinds.items(), key=lambda each: -each[1])[:6])
    numbers = {"images": stock.images, "skipped": sum(stock.skipped.values())}
    yield ok("images", f"{words} (files: {kinds})", **numbers)
    if stock.skipped:
        told = Counter(stock.skipped).most_common(REASONS)
        yield warning(
            "images",
            f"{sum(stock.skipped.values())} files are left out: {'; '.join(f'{n} x {why}' for why, n in told)}",
            "feddiff-silo doctor --verbose names the first of them, on this terminal only",
        )
    lacking = [name for name in (config.data.classes if config is not None else ()) if not stock.labels.get(name)]
    if config is not None and lacking:
        yield warning(
            "classes",
            f"there is no image of {', '.join(lacking)}; the federation's classes are {', '.join(config.data.classes)}",
            "name the sub-folders of --data exactly as the classes; a silo may lack a class, if it really has none",
        )
