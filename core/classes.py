"""Classes: which one a model is told of an image, and which ones its samples are asked for.

Before a training, every image has a class or stands for none. Before a measurement: a metric of a whole set of samples
(FID, recall, …) sees a wrong mix of classes as bad pictures, so whoever measures deals the classes here, in the shares
of the images that the samples are held against. And before a silo draws images to train on: of which classes it lacks
how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError

if TYPE_CHECKING:
    from feddiff.core.config import FederationConfig


def conditions(
    config: FederationConfig, labels: npt.NDArray[np.int64] | None, images: int
) -> npt.NDArray[np.int64] | None:
    """The class of each image, (N,), as the model is told it; None for a model without classes.

    The null class, where the model learns one, of images without a label (-1). Raises DataError if an image has no
    class that the model knows.
    """
    if not config.conditional:
        return None
    if labels is not None and config.null_class is not None:
        labels = np.where(labels == -1, config.null_class, labels)
    known = np.arange(int(config.model["num_class_embeds"]))
    if labels is None or len(labels) != images or not np.isin(labels, known).all():
        raise DataError("the model is class-conditional, and not every image has one of its labels")
    return labels


def lacking(counts: Sequence[int], most: int | None = None) -> list[int]:
    """How many images of each class to add so that all classes have as many as the most frequent one.

    ``counts``: the images of each class. It is the smallest addition that makes every class as likely to be seen in
    training, without leaving out a real image. Of no more than ``most`` images, those go first that lift the rarest
    classes: the least count of any class is as large as so many images can make it.
    """
    missing = [max(counts, default=0) - count for count in counts]
    if most is None or most >= sum(missing):
        return missing
    low, high = min(counts), max(counts)  # the level to which all can be lifted: found by halving
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if sum(max(level - count, 0) for count in counts) <= most else (low, level)
    added = [max(low - count, 0) for count in counts]
    left = max(most, 0) - sum(added)
    for place in [place for place, count in enumerate(counts) if count <= low][:left]:
        added[place] += 1
    return added


def proportional(counts: Sequence[int], samples: int) -> list[int]:
    """A class for each of ``samples``, in the shares of ``counts``, the images of each class.

    Dealt one by one as Sainte-Laguë deals seats, so that the first few are in these shares, too: 0, 1, 2, … cyclically
    where there are as many images of each. The classes are dealt evenly if there is no image at all.
    """
    shares = list(counts) if any(counts) else [1] * len(counts)
    total = sum(shares)
    turns = [
        ((2 * turn + 1) / share, label)
        for label, share in enumerate(shares)
        for turn in range(-(-samples * share // total) + 1 if share else 0)
    ]
    return [label for _, label in sorted(turns)[:samples]]
