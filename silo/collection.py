"""A silo's collection: everything usable under ``--data`` as one array of the model's size, with its inventory.

Between the folder and the training. Whoever needs a silo's images (training, fine-tuning, what a silo lacks, doctor)
asks here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.images import Images, read_images
from feddiff.silo.inventory import Inventory
from feddiff.silo.source import Source


@dataclass(frozen=True)
class Collection:
    """What can be trained on, and what there is to say about it."""

    images: Images
    inventory: Inventory


def collect(source: Source, config: FederationConfig, cache: Path | None = None) -> Collection:
    """Read every image of a source at the size of the rules' model.

    ``cache``: a folder for decoded slices, made if it is not there; None: nothing is kept. Raises DataError, saying
    what to do, if there is no such folder or not one usable image in it, and ConfigError for options that cannot be.
    """
    images = read_images(source.folder, config)
    return Collection(
        images,
        Inventory(
            images={"plain": len(images.pixels)},
            labels=images.counts,
            skipped=Counter(reason for _, reason in images.skipped),
        ),
    )
