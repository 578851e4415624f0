"""How good the images of a model are: numbers that never stand without what they were measured with.

Last station of a measurement: core/features.py makes features of images, core/moments.py and core/neighbours.py
compare them, ``measure`` here puts it together. Two values of one metric are comparable only if extractor, number of
samples and reference are the same (Chong & Forsyth 2020, arXiv 1911.07023), so a ``Measured`` carries them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError
from feddiff.core.moments import Moments, checked, fid
from feddiff.core.neighbours import Memorisation, memorisation, precision_recall

OWN_IMAGES = "own training images"
"""What a silo's own model is measured against at the silo."""
SMOOTHING = 1e-3
"""Share of the uniform distribution that both class distributions are mixed with."""


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor makes of images, in their order."""

    values: npt.NDArray[np.float32]
    """(N, D)"""
    probabilities: npt.NDArray[np.float32] | None
    """(N, classes), each row a distribution; None if the extractor is no classifier."""
    extractor: str
    digest: str
    """SHA-256 of the extractor's file, hexadecimal."""
    caution: str = ""
    """What to know of the extractor before its numbers are compared with others."""

    def moments(self) -> Moments:
        return Moments.of(self.values, self.digest)


@dataclass(frozen=True)
class Measured:
    """One number, and everything that it depends on beside the images."""

    metric: str
    value: float
    spread: float | None
    """Standard deviation over subsets or splits, where the metric has them."""
    samples: int
    reference: int
    """Images compared with; 0 for a metric without any."""
    against: str
    """What the reference is, e.g. "training" or "test"; "" without one."""
    extractor: str
    digest: str
    cautions: tuple[str, ...] = ()

    def comparable(self, other: Measured) -> bool:
        """Whether the lower of the two values means anything."""
        return self._basis() == other._basis() and bool(self.digest)

    def _basis(self) -> tuple[object, ...]:
        return self.metric, self.samples, self.reference, self.against, self.digest

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        reference = f", {self.reference} {self.against} images" if self.reference else ""
        marks = "".join(f"; {caution}" for caution in self.cautions)
        extractor = f"{self.extractor} {self.digest[:8] or 'of unknown digest'}"
        return f"{self.metric} {self.value:.4g}{spread} ({self.samples} samples{reference}; {extractor}{marks})"


def measure(
    samples: Features, reference: Features | Moments, against: str, k: int = 3, seed: int = 0
) -> tuple[Measured, ...]:
    """All metrics that there is enough for: of ``Moments`` only FID, of a classifier's features also those of classes.

    fid, kid, precision, recall, inception_score and class_kl, in this order. A FID of no more samples or images than
    features is marked, and says what there were too few images for. Raises DataError for features of two extractors, or
    for too few images for a FID.
    """
    cautions = (samples.caution,) if samples.caution else ()
    size = samples.values.shape[1]
    count = reference.count if isinstance(reference, Moments) else len(reference.values)
    few = [
        f"{n} {what} for {size} features"
        for n, what in ((len(samples.values), "samples"), (count, against))
        if n <= size
    ]
    biased = (*cautions, *([f"biased upwards: {', '.join(few)}"] if few else []))

    def found(metric: str, value: float, spread: float | None = None, alone: bool = False) -> Measured:
        basis = (0, "") if alone else (count, against)
        marks = biased if metric == "fid" else cautions
        return Measured(metric, value, spread, len(samples.values), *basis, samples.extractor, samples.digest, marks)

    moments = reference if isinstance(reference, Moments) else reference.moments()
    distance, others, lacking = fid(samples.moments(), moments), list[Measured](), list[str]()

    def attempt(make: Callable[[], Iterable[Measured]]) -> None:
        try:
            others.extend(make())
        except DataError as error:
            lacking.append(str(error))

    if isinstance(reference, Features):
        real = reference
        attempt(lambda: [found("kid", *kid(samples.values, real.values, seed=seed))])
        pair = ("precision", "recall")
        attempt(lambda: map(found, pair, precision_recall(samples.values, real.values, k)))
    if samples.probabilities is not None:
        likely = samples.probabilities
        attempt(lambda: [found("inception_score", *inception_score(likely, seed=seed), alone=True)])
        if isinstance(reference, Features) and reference.probabilities is not None:
            drawn, seen = (each.argmax(axis=1) for each in (likely, reference.probabilities))
            attempt(lambda: [found("class_kl", class_distribution(drawn, seen, likely.shape[1]).divergence)])
    biased += tuple(lacking)
    return found("fid", distance), *others


def measure_copies(
    samples: Features, training: Features, held_out: Features
) -> tuple[Memorisation, tuple[Measured, ...]]:
    """The memorisation check (core/neighbours.py) and its numbers: memorised, copying, authentic.

    Raises DataError as ``memorisation`` does, and for features of two extractors.
    """
    if len({each.digest for each in (samples, training, held_out)}) > 1:
        raise DataError("features of two extractors cannot be compared; make them all with one")
    check = memorisation(samples.values, training.values, held_out.values)
    cautions = (f"expected {check.expected:.3g}, from {len(held_out.values)} held-out images",)
    basis = (len(samples.values), len(training.values), "training", samples.extractor, samples.digest)
    numbers = {"memorised": check.share, "copying": check.copying, "authentic": check.authentic}
    return check, tuple(
        Measured(metric, value, None, *basis, cautions if metric == "memorised" else ())
        for metric, value in numbers.items()
    )


def kid(
    samples: npt.NDArray[Any], reference: npt.NDArray[Any], subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception distance (Bińkowski et al. 2018, arXiv 1801.01401, sec. 4): mean and deviation over subsets.

    The unbiased squared maximum mean discrepancy of features (N, D) and (M, D) under (x.y / D + 1)^3; it may be
    negative. ``size`` of each, or as many as there are; once only if that is all of both. Raises DataError for fewer
    than two of either.
    """
    if checked(samples).shape[1] != checked(reference).shape[1]:
        raise DataError(f"{samples.shape[1]} and {reference.shape[1]} features are not of one extractor")
    size = min(size, len(samples), len(reference))
    if size < 2 or subsets < 1:
        raise DataError(f"KID needs at least 2 samples and 2 images, and a subset (got {size} and {subsets})")
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(1 if size == len(samples) == len(reference) else subsets):
        one = samples[generator.permutation(len(samples))[:size]].astype(np.float64)
        other = reference[generator.permutation(len(reference))[:size]].astype(np.float64)
        within = sum(
            (_kernel(each, each).sum() - _kernel_of_self(each).sum()) / (size * (size - 1)) for each in (one, other)
        )
        found.append(float(within - 2 * _kernel(one, other).mean()))
    return statistics.fmean(found), statistics.pstdev(found)


def inception_score(probabilities: npt.NDArray[Any], splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016, arXiv 1606.03498): mean and deviation over splits, 1 to the classes.

    exp of the mean KL divergence of each row of (N, classes) from the rows' mean, in each split of the shuffled rows:
    samples drawn class by class would otherwise make splits of one class. Raises DataError for what is not
    distributions, or fewer than ``splits``.
    """
    if probabilities.ndim != 2 or splits < 1 or len(probabilities) < splits:
        raise DataError(f"the Inception score of {splits} splits needs as many samples (got {probabilities.shape})")
    rows = probabilities.astype(np.float64)
    if not (rows >= 0).all() or not np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        raise DataError("these rows are no distributions over classes; give probabilities, not logits")
    found = []
    for part in np.array_split(np.random.default_rng(seed).permutation(rows), splits):
        mean = part.mean(axis=0)
        divergence = np.where(part > 0, part * np.log(np.where(part > 0, part, 1) / np.where(mean > 0, mean, 1)), 0)
        found.append(float(np.exp(divergence.sum(axis=1).mean())))
    return statistics.fmean(found), statistics.pstdev(found)


@dataclass(frozen=True)
class ClassDistribution:
    """How many samples and how many real images are of each class."""

    samples: tuple[int, ...]
    reference: tuple[int, ...]
    divergence: float
    """KL(samples || reference) in nats, 0 for equal shares; it tells which classes a model leaves out or favours."""


def class_distribution(
    samples: npt.NDArray[np.integer[Any]], reference: npt.NDArray[np.integer[Any]], classes: int
) -> ClassDistribution:
    """Of labels (N,) that a classifier gives samples, and (M,) of real images: its own or the true ones.

    Both distributions are mixed with a thousandth of the uniform one, so that a class without a real image counts, but
    not infinitely. Raises DataError for no labels, or labels outside 0 to classes - 1.
    """
    counts = []
    for labels in (samples, reference):
        if labels.ndim != 1 or not labels.size or labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"labels must be numbers from 0 to {classes - 1}, at least one")
        counts.append(np.bincount(labels, minlength=classes))
    one, other = ((1 - SMOOTHING) * count / count.sum() + SMOOTHING / classes for count in counts)
    divergence = max(float(np.sum(one * np.log(one / other))), 0.0)
    return ClassDistribution(tuple(counts[0].tolist()), tuple(counts[1].tolist()), divergence)


@dataclass(frozen=True)
class Personalisation:
    """What personal models gain over the global one, in percent of its FID at each silo (Hadjigeorgiou)."""

    api: float
    """Average personalisation improvement: the mean over silos."""
    mpi: float
    """Median personalisation improvement."""
    pui: float
    """Percentage of users improved: silos whose personal model is the better one."""


def personalisation(shared: Sequence[float], personal: Sequence[float]) -> Personalisation:
    """From the FIDs of the global and of each silo's own model, silo by silo. Raises DataError if that cannot be."""
    if not shared or len(shared) != len(personal) or not all(value > 0 for value in shared):
        raise DataError(f"{len(shared)} FIDs above 0 of the global model do not go with {len(personal)} personal ones")
    pairs = list(zip(shared, personal, strict=True))
    gains = [100 * (one - other) / one for one, other in pairs]
    better = [100.0 * (other < one) for one, other in pairs]
    return Personalisation(statistics.fmean(gains), statistics.median(gains), statistics.fmean(better))


def _kernel(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    base = one @ other.T / one.shape[1] + 1
    cubed: npt.NDArray[np.float64] = base * base * base
    return cubed


def _kernel_of_self(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The kernel of each point with itself."""
    base = np.einsum("ij,ij->i", points, points) / points.shape[1] + 1
    cubed: npt.NDArray[np.float64] = base * base * base
    return cubed
