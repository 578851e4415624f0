"""Where a setting's bytes went, and which classes its models draw: rows and bars, a setting each.

Takes bench/setting.py's settings; the report puts the figures on its page. A figure holds so many settings that it fits
a sheet of paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from feddiff.bench.looks import PARTS, REAL, bytes_axis, colour, style
from feddiff.bench.setting import Setting
from feddiff.federator.charts import FAINT, INK
from feddiff.federator.measure import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 24
COLUMNS = 4
WAYS = {"down": "v", "up": "^"}
MOST_NAMED = 12
"""More classes than this, and only some of their names are written."""


def traffic(settings: Sequence[Setting]) -> list[Figure]:
    """Bytes down and up of each setting (log scale), and what they consist of, segment by segment."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sent = [each for each in settings if each.wire is not None]
    sizes = [total.mean for each in sent for way in WAYS if (total := each.total(way)) and total.mean > 0]
    if not sizes:
        return []
    found = []
    for first in range(0, len(sent), MOST_ROWS):
        rows = sent[first : first + MOST_ROWS]
        with style():
            figure = Figure((11.0, 1.5 + 0.32 * len(rows)), layout="constrained")
            fields = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
            _arrows(fields[0], rows, sizes)
            for axes, way in zip(fields[1:], WAYS, strict=True):
                _composition(axes, rows, way)
            several = len({each.scenario for each in sent}) > 1
            names = [f"{each.name}, {each.scenario}" if several else each.name for each in rows]
            fields[0].set_yticks(
                range(len(rows)), [f"{each.number}  {name}" for name, each in zip(names, rows, strict=True)]
            )
            fields[0].set_ylim(len(rows) - 0.4, -0.6)
            keys: list[Any] = [
                Line2D([], [], linestyle="", marker=mark, color=INK, label=way) for way, mark in WAYS.items()
            ]
            keys += [
                Patch(facecolor=(INK, strength), edgecolor="white" if hatch else INK, hatch=hatch, label=part)
                for part, (strength, hatch) in PARTS.items()
                if part in {_part(name) for each in rows for name in segments(each, *WAYS)}
            ]
            figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
        found.append(figure)
    return found


def _arrows(axes: Axes, rows: Sequence[Setting], sizes: Sequence[float]) -> None:
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    bytes_axis(axes, sizes, "on the wire, all rounds")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.22)
    for place, each in enumerate(rows):
        ends = {way: total.mean for way in WAYS if (total := each.total(way)) and total.mean > 0}
        axes.plot(list(ends.values()), [place] * len(ends), color=FAINT, linewidth=1, zorder=1)
        for way, size in ends.items():
            axes.plot(
                size,
                place + (0.15 if way == "down" else -0.15),
                WAYS[way],
                color=colour(each.plan),
                markersize=7,
                alpha=0.9,
            )
        if each.wire is not None:
            at = (max(ends.values()), place)
            axes.annotate(amount(each.wire.mean), at, (8, 0), textcoords="offset points", va="center", fontsize=8.5)


def _composition(axes: Axes, rows: Sequence[Setting], way: str) -> None:
    axes.grid(visible=False)
    axes.set_title(f"of what went {way}")
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    for place, each in enumerate(rows):
        sizes = segments(each, way)
        whole, left = sum(sizes.values()), 0.0
        for name, size in sizes.items():
            strength, hatch = PARTS[_part(name)]
            hue = colour(each.plan)
            share = 100 * size / whole if whole else 0.0
            axes.barh(place, share, 0.72, left, facecolor=(hue, strength), edgecolor="none")
            axes.barh(place, share, 0.72, left, facecolor="none", edgecolor="white", hatch=hatch, linewidth=0.8)
            left += share
        axes.barh(place, left, 0.72, facecolor="none", edgecolor=colour(each.plan), linewidth=0.9)


def _part(segment: str) -> str:
    """The part of a network that a segment belongs to; what carries no weights has none."""
    part = segment.partition(".")[0]
    return part if part in PARTS else "protocol"


def segments(setting: Setting, *ways: str) -> dict[str, float]:
    """Bytes on the wire by segment, mean over seeds, in layout order; "" is what carries no weights."""
    names = dict.fromkeys(name for each in setting.results for name in each.get("segments", ()))
    return {
        name: float(
            np.mean(
                [sum(each.get("segments", {}).get(name, {}).get(way, 0) for way in ways) for each in setting.results]
            )
        )
        for name in names
    }


def classes(settings: Sequence[Setting]) -> list[Figure]:
    """Of which classes a setting's samples are, beside real images: shares in percent, mean over seeds and models."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    known = [(each, shares) for each in settings if (shares := _shares(each)) is not None]
    found = []
    most = MOST_ROWS // COLUMNS * COLUMNS
    for first in range(0, len(known), most):
        part = known[first : first + most]
        columns = min(COLUMNS, len(part))
        rows = ceil(len(part) / columns)
        with style():
            figure = Figure((2.75 * columns + 0.4, 0.6 + 1.75 * rows), layout="constrained")
            fields = figure.subplots(rows, columns, sharey=True, squeeze=False)
            several = len({each.scenario for each, _ in known}) > 1
            for axes, (each, (names, drawn, real)) in zip(fields.flat, part, strict=False):
                _shares_of(axes, names, drawn, real, colour(each.plan))
                axes.set_title(f"{each.number} {each.name}" + (f"\n{each.scenario}" if several else ""), fontsize=9)
            for axes in fields.flat[len(part) :]:
                axes.set_visible(False)
            for axes in fields[:, 0]:
                axes.set_ylabel("images, %", fontsize=9)
            keys = [Patch(facecolor=FAINT, label="samples, in the plan's colour")]
            keys.append(Patch(facecolor="none", edgecolor=REAL, linewidth=1.4, label="real images"))
            figure.legend(handles=keys, loc="outside lower center", ncols=2)
        found.append(figure)
    return found


Shares = tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _shares(setting: Setting) -> Shares | None:
    """Names of the classes, and shares of samples and of real images in percent."""
    tables: list[Mapping[str, Any]] = [
        each["quality"]["classes"] for each in setting.results if each["quality"].get("classes")
    ]
    if not tables:
        return None
    names = [str(name) for name in tables[0]["names"]]
    counts = [
        model for table in tables for model in table["samples"].values() if len(model) == len(names) and sum(model)
    ]
    real = [table["reference"] for table in tables if len(table["reference"]) == len(names) and sum(table["reference"])]
    if not counts or not real:
        return None
    drawn, true = (np.mean([100 * np.asarray(each) / sum(each) for each in these], axis=0) for these in (counts, real))
    return names, drawn, true


def _shares_of(
    axes: Axes, names: Sequence[str], drawn: npt.NDArray[np.float64], real: npt.NDArray[np.float64], hue: str
) -> None:
    places = np.arange(len(names))
    axes.bar(places, drawn, 0.74, color=hue)
    axes.bar(places, real, 0.92, facecolor="none", edgecolor=REAL, linewidth=1.1)
    every = ceil(len(names) / MOST_NAMED)
    shown = [name if len(name) <= 10 else f"{name[:9]}…" for name in names[::every]]
    axes.set_xticks(places[::every], shown, fontsize=8, rotation=0 if max(map(len, shown)) <= 3 else 30)
    axes.tick_params(axis="x", length=0)
