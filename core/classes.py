"""Which classes the samples of a model are asked for, so that they can be held against images of some mix of classes.

Before a measurement. A metric of a whole set of samples (FID, recall, …) sees a wrong mix of classes as bad pictures.
So whoever measures deals the classes here: in the shares of the images that the samples are held against.
"""

from __future__ import annotations

from collections.abc import Sequence


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
