"""Dealing one labelled data set to silos, seeded: how unequal hospitals are made from equal images.

Every split takes the images' labels and gives back the sorted indices of each silo; every index is in exactly one.
bench/dataset.py turns them into folders, ``chart`` shows what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
Kind = Literal["iid", "dirichlet", "k-class", "quantity", "folders"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DRAWS = 1000
"""Deals that are drawn before it is given up that each silo gets enough."""
MOST_NUMBERED = 24
"""More classes than this, and the chart's fields are too narrow for numbers."""


@dataclass(frozen=True)
class Split:
    """A way to deal. ``beta`` is of dirichlet and quantity, ``classes`` of k-class; None for the others."""

    kind: Kind
    beta: float | None = None
    classes: int | None = None

    def __str__(self) -> str:
        given = self.beta if self.beta is not None else self.classes
        return self.kind if given is None else f"{self.kind} {given:g}"

    def deal(self, labels: Labels, silos: int, seed: int, least: int = 1) -> list[Indices]:
        """The indices of each silo. Raises ConfigError if it cannot be, or if the folders say who has what."""
        if self.beta is not None:
            return {"dirichlet": dirichlet, "quantity": quantity}[self.kind](labels, silos, self.beta, seed, least)
        if self.classes is not None:
            return k_class(labels, silos, self.classes, seed, least)
        if self.kind == "folders":
            raise ConfigError("split folders deals nothing: each folder is a silo")
        return iid(labels, silos, seed, least)


def split(kind: str, beta: float, classes: int) -> Split:
    """The split of this name with what it needs of the two. Raises ConfigError."""
    if kind not in KINDS:
        raise ConfigError(f"there is no split {kind!r:.60}; known: {', '.join(KINDS)}")
    if kind in ("dirichlet", "quantity"):
        if not 0 < beta < float("inf"):
            raise ConfigError(f"beta must be more than 0 (got {beta})")
        return Split(kind, beta=float(beta))
    if kind == "k-class":
        if classes < 1:
            raise ConfigError(f"classes must be at least 1 (got {classes})")
        return Split("k-class", classes=classes)
    return Split(kind)


def iid(labels: Labels, silos: int, seed: int, least: int = 1) -> list[Indices]:
    """Shares of one size, to within one image, drawn from all. Raises ConfigError for too few images."""
    _check(labels, silos, least)
    order = np.random.default_rng(seed).permutation(labels.size)
    return [np.sort(part) for part in np.array_split(order, silos)]


def dirichlet(labels: Labels, silos: int, beta: float, seed: int, least: int = 1) -> list[Indices]:
    """Label skew (Hsu et al. 2019, arXiv 1909.06335): of each label, silo k gets a share drawn from Dirichlet(beta).

    Draws anew until each silo has at least ``least`` images. Raises ConfigError if that cannot be.
    """

    def draw(generator: np.random.Generator) -> list[Indices]:
        parts: list[list[Indices]] = [[] for _ in range(silos)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(silos, beta))
            cuts = (np.cumsum(shares)[:-1] * members.size).astype(int)
            for part, some in zip(parts, np.split(members, cuts), strict=True):
                part.append(some)
        return [np.sort(np.concatenate(part)) for part in parts]

    return _drawn(draw, labels, silos, beta, seed, least)


def quantity(labels: Labels, silos: int, beta: float, seed: int, least: int = 1) -> list[Indices]:
    """Quantity skew: sizes drawn from Dirichlet(beta), images from all (FedDiffuse's q-skew, arXiv 2406.12575).

    Draws anew until each silo has at least ``least`` images. Raises ConfigError if that cannot be.
    """

    def draw(generator: np.random.Generator) -> list[Indices]:
        order = generator.permutation(labels.size)
        cuts = (np.cumsum(generator.dirichlet(np.full(silos, beta)))[:-1] * labels.size).astype(int)
        return [np.sort(part) for part in np.split(order, cuts)]

    return _drawn(draw, labels, silos, beta, seed, least)


def k_class(labels: Labels, silos: int, classes: int, seed: int, least: int = 1) -> list[Indices]:
    """Each silo has ``classes`` of the labels, or all if there are fewer (McMahan et al. 2017; Phoenix's two).

    The labels go round in a random order, so each belongs to as many silos as any other, to within one, and is shared
    equally among them. Raises ConfigError if some label would belong to no silo, or a silo gets too few images.
    """
    _check(labels, silos, least)
    generator = np.random.default_rng(seed)
    known = generator.permutation(np.unique(labels))
    each = min(classes, known.size)
    if silos * each < known.size:
        raise ConfigError(f"{silos} silos with {classes} classes each leave some of {known.size} classes to nobody")
    # Consecutive places of a cycle: never the same label twice in a silo.
    owners: dict[int, list[int]] = {int(label): [] for label in known}
    for place in range(silos * each):
        owners[int(known[place % known.size])].append(place // each)
    parts: list[list[Indices]] = [[] for _ in range(silos)]
    for label in sorted(owners):
        members = generator.permutation(np.flatnonzero(labels == label))
        for silo, some in zip(owners[label], np.array_split(members, len(owners[label])), strict=True):
            parts[silo].append(some)
    dealt = [np.sort(np.concatenate(part)) for part in parts]
    fewest = min(part.size for part in dealt)
    if fewest < least:
        raise ConfigError(f"{classes} classes a silo leave one of {silos} silos with {fewest} images, not {least}")
    return dealt


def _check(labels: Labels, silos: int, least: int) -> None:
    if silos < 1 or least < 1 or silos * least > labels.size:
        raise ConfigError(f"{labels.size} images cannot be dealt to {silos} silos with at least {least} each")


def _drawn(
    draw: Callable[[np.random.Generator], list[Indices]], labels: Labels, silos: int, beta: float, seed: int, least: int
) -> list[Indices]:
    """The first deal that gives each silo enough."""
    _check(labels, silos, least)
    if beta <= 0:
        raise ConfigError(f"beta must be more than 0 (got {beta})")
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        dealt = draw(generator)
        if min(part.size for part in dealt) >= least:
            return dealt
    raise ConfigError(f"no deal of Dirichlet({beta}) gave each of {silos} silos {least} images; raise beta")


def chart(counts: Mapping[str, Mapping[str, int]], title: str) -> Figure:
    """Silo → label → images, as a field of one hue (dark is many) with its numbers and the silos' sums."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from feddiff.federator import charts

    silos, labels = list(counts), sorted({label for each in counts.values() for label in each}, key=_natural)
    table = np.array([[counts[silo].get(label, 0) for label in labels] for silo in silos])
    with mpl.rc_context(charts.STYLE):  # type: ignore[arg-type]
        figure = Figure(
            (max(4.5, 2.2 + 0.52 * min(len(labels), MOST_NUMBERED)), max(2.2, 1.3 + 0.3 * len(silos))),
            layout="constrained",
        )
        axes = figure.subplots()
        axes.grid(visible=False)
        field = axes.pcolormesh(table, cmap="Blues", vmin=0, vmax=max(int(table.max()), 1), edgecolors="white")
        axes.set_xticks(np.arange(len(labels)) + 0.5, [_short(label or "no label") for label in labels])
        if max(map(len, labels)) > 4 and len(labels) > 3:
            axes.tick_params(axis="x", labelrotation=60)
        axes.set_yticks(np.arange(len(silos)) + 0.5, [_short(silo) for silo in silos])
        axes.tick_params(length=0)
        axes.invert_yaxis()
        if len(labels) <= MOST_NUMBERED:
            _numbers(axes.text, table, charts.INK)
        for row, sum_ in enumerate(table.sum(axis=1)):
            axes.text(len(labels) + 0.15, row + 0.5, f"{sum_:,}", va="center", color=charts.INK, fontsize=9)
        axes.text(len(labels) + 0.15, -0.12, "all", va="bottom", color=charts.FAINT, fontsize=9)
        figure.colorbar(field, ax=axes, label="images", pad=0.12 if len(labels) < 8 else 0.08)
        axes.set_xlabel("class")
        axes.set_title(title)
    return figure


def _numbers(text: Callable[..., object], table: npt.NDArray[np.int64], ink: str) -> None:
    dark = 0.55 * max(int(table.max()), 1)
    for (row, column), count in np.ndenumerate(table):
        if count:
            colour = "white" if count > dark else ink
            text(column + 0.5, row + 0.5, f"{count}", ha="center", va="center", color=colour, fontsize=8)


def _natural(label: str) -> tuple[int, str]:
    """2 before 10."""
    return (int(label), "") if label.isdecimal() else (1 << 62, label)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def named(silos: int) -> Sequence[str]:
    """Names that sort in their order: silo-1, or silo-01 where there are ten and more."""
    return [f"silo-{number:0{len(str(silos))}}" for number in range(1, silos + 1)]
