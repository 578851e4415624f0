"""Nearest neighbours among image features: which samples look real, what of reality they cover, what they copy.

Distances are Euclidean, in float64, computed block by block, so that ten thousand samples against ten thousand images
need tens of megabytes beside the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError
from feddiff.core.moments import F64, checked

BLOCK_DISTANCES = 1 << 22
"""Distances held at once, 32 MiB."""
ZERO = 1e-12
"""A squared distance below this share of both squared lengths is rounding: it is taken for 0."""
Bools: TypeAlias = npt.NDArray[np.bool_]


def precision_recall(samples: npt.NDArray[Any], reference: npt.NDArray[Any], k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1-2), each 0 to 1.

    A set's manifold is the union of the balls around its points that reach to their k-th nearest other point.
    Precision: the share of samples on the reference's manifold; recall: the share of the reference on the samples'.
    Features (N, D) and (M, D); both depend on N and M. Raises DataError for k or fewer of either, or foreign sizes.
    """
    samples, reference = _pair(samples, reference)
    if k < 1 or min(len(samples), len(reference)) <= k:
        raise DataError(f"the {k}-th neighbour of {len(samples)} samples and {len(reference)} images needs {k + 1}")
    precision = _inside(samples, reference, _reach(reference, k)).mean()
    recall = _inside(reference, samples, _reach(samples, k)).mean()
    return float(precision), float(recall)


@dataclass(frozen=True)
class Memorisation:
    """Whether samples are nearer to the training images than images of the same kind are that were never trained on."""

    share: float
    """Of samples whose nearest training image is at most ``threshold`` away."""
    expected: float
    """The same of held-out images: what a model that copies nothing comes to. The quantile asked for, but for ties."""
    threshold: float
    """That quantile of the distances from held-out images to their nearest training image."""
    copying: float
    """C_T of Meehan et al. 2020 (arXiv 2004.05675), one cell: a z-score, below -3 is copying, above 3 underfitting."""
    authentic: float
    """Share of samples farther from their nearest training image than that is from any other (Alaa et al. 2022,
    arXiv 2102.08921); a third to a half for fresh images, the more the higher their dimension."""
    suspects: tuple[tuple[int, int, float], ...]
    """(sample, training image, distance), nearest first: places in the arrays, to be looked at where the images are."""


def memorisation(
    samples: npt.NDArray[Any],
    training: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    quantile: float = 0.01,
    suspects: int = 8,
) -> Memorisation:
    """Compare distances to the training images, (M, D), of samples, (N, D), and of held-out images, (H, D).

    Held-out images must be of other patients than the training images: a second slice of one scan is as near as a copy.
    Raises DataError for sets without the images that this needs: 2 to train on, 1 / quantile held out.
    """
    samples, training = _pair(samples, training)
    held_out, _ = _pair(held_out, training)
    if not 0 < quantile < 1 or len(training) < 2 or len(held_out) * quantile < 1:
        raise DataError(
            f"a {100 * quantile:g} % quantile needs {int(np.ceil(1 / max(quantile, 1e-9)))} held-out images "
            f"and 2 training images; there are {len(held_out)} and {len(training)}"
        )
    far, nearest = _nearest(samples, training)
    usual, _ = _nearest(held_out, training)
    threshold = np.quantile(usual, quantile, method="inverted_cdf")
    apart = np.sqrt(_reach(training[np.unique(nearest)], 1, among=training, places=np.unique(nearest)))
    own = apart[np.searchsorted(np.unique(nearest), nearest)]
    order = np.argsort(far, kind="stable")[:suspects]
    return Memorisation(
        share=float(np.mean(far <= threshold)),
        expected=float(np.mean(usual <= threshold)),
        threshold=float(threshold),
        copying=_rank_score(far, usual),
        authentic=float(np.mean(far > own)),
        suspects=tuple((int(place), int(nearest[place]), float(far[place])) for place in order),
    )


def _rank_score(one: F64, other: F64) -> float:
    """z of the Mann-Whitney U test with its correction for ties; negative if ``one`` is mostly the smaller."""
    ranked = np.sort(other)
    wins = (np.searchsorted(ranked, one, "left") + np.searchsorted(ranked, one, "right")).sum() / 2
    n, m = len(one), len(other)
    _, ties = np.unique(np.concatenate([one, other]), return_counts=True)
    tied = float((ties.astype(np.float64) ** 3 - ties).sum()) / ((n + m) * (n + m - 1))
    variance = n * m * (n + m + 1 - tied) / 12
    return float((wins - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def _pair(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[F64, F64]:
    if checked(one).shape[1] != checked(other).shape[1]:
        raise DataError(f"{one.shape[1]} and {other.shape[1]} features are not of one extractor")
    return one.astype(np.float64, copy=False), other.astype(np.float64, copy=False)


def _blocks(points: F64, others: F64) -> list[slice]:
    rows = max(BLOCK_DISTANCES // len(others), 1)
    return [slice(start, min(start + rows, len(points))) for start in range(0, len(points), rows)]


def _squared(points: F64, others: F64) -> F64:
    """Squared distances, (points, others)."""
    lengths = np.add.outer(np.einsum("ij,ij->i", points, points), np.einsum("ij,ij->i", others, others))
    distances: F64 = lengths - 2 * (points @ others.T)
    distances[distances < ZERO * lengths] = 0.0
    return distances


def _reach(points: F64, k: int, among: F64 | None = None, places: npt.NDArray[np.intp] | None = None) -> F64:
    """Squared distance from each point to its k-th nearest among the others; ``places`` of the points among them."""
    among = points if among is None else among
    places = np.arange(len(points)) if places is None else places
    found = np.empty(len(points))
    for block in _blocks(points, among):
        distances = _squared(points[block], among)
        distances[np.arange(len(distances)), places[block]] = np.inf
        found[block] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return found


def _inside(points: F64, centres: F64, reach: F64) -> Bools:
    """Whether each point is in the ball of any centre; on its surface is inside."""
    found = np.empty(len(points), np.bool_)
    for block in _blocks(points, centres):
        found[block] = (_squared(points[block], centres) <= reach).any(axis=1)
    return found


def _nearest(points: F64, others: F64) -> tuple[F64, npt.NDArray[np.intp]]:
    """Distance from each point to the nearest of the others, and which that is."""
    far, which = np.empty(len(points)), np.empty(len(points), np.intp)
    for block in _blocks(points, others):
        distances = _squared(points[block], others)
        which[block] = distances.argmin(axis=1)
        far[block] = np.sqrt(distances.min(axis=1))
    return far, which
