"""The chart that a sweep is run for: what a setting sends against how good it gets, and which settings are beaten.

Takes bench/setting.py's settings and a number of each; the report says which number, and that all are of one basis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from feddiff.bench.labels import Labels
from feddiff.bench.looks import Look, bytes_axis, colour, plan_keys, style, variant_keys
from feddiff.bench.setting import Setting, Spread
from feddiff.federator.appraisal import front
from feddiff.federator.charts import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Read = Callable[[Setting], Spread | None]
COLUMNS = 3
MOST_LINES = 3
"""Baselines of one kind in a panel; more would hide the marks."""
FAR = 0.5
"""A baseline more than so many heights of the marks away is told at the edge and not drawn."""


def best(settings: Sequence[Setting], value: Read) -> list[Setting]:
    """The settings that none of their scenario beats, bytes on the wire against a number that is good when small."""
    found = []
    for name in dict.fromkeys(each.scenario for each in settings):
        marks = [each for each in settings if each.scenario == name and each.wire and value(each)]
        pairs = [(wire.mean, number.mean) for each in marks if (wire := each.wire) and (number := value(each))]
        found += [marks[at] for at in front(pairs)]
    return found


def panels(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The federations of each scenario."""
    groups: dict[str, list[Setting]] = {}
    for each in settings:
        if each.wire is not None:
            groups.setdefault(each.scenario, []).append(each)
    return groups


def chart(settings: Sequence[Setting], value: Read, axis: str, looks: Mapping[str, Look]) -> Figure | None:
    """Wire bytes (log) against a number, with baselines as lines; None without a mark.

    Marks are means, bars reach from the least to the largest seed. A mark is hollow where the number is of silos' own
    models. The front steps through the settings of a panel that none beats.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    marked = [each for each in settings if each.wire is not None and value(each) is not None]
    if not marked:
        return None
    groups = panels(marked)
    columns = min(COLUMNS, len(groups))
    rows = ceil(len(groups) / columns)
    wide = {1: 6.0, 2: 9.2, 3: 11.0}[columns]
    with style():
        figure = Figure((wide, 0.6 + (4.4 if rows == columns == 1 else 3.3) * rows), layout="constrained")
        fields = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, group) in zip(fields.flat, groups.items(), strict=False):
            axes.grid(visible=True, axis="both", which="major")
            axes.set_title(name)
            _marks(axes, group, value, looks)
            axes.tick_params(labelbottom=True)
        for axes in fields.flat[len(groups) :]:
            axes.set_visible(False)
        sizes = [size for each in marked if each.wire for size in (each.wire.low, each.wire.high)]
        for axes in fields.flat[: len(groups)]:
            bytes_axis(axes, sizes, "on the wire, both directions, all rounds")
        for axes in fields[:, 0]:
            axes.set_ylabel(axis)
        held = {name: _near(settings, group) for name, group in groups.items()}
        low, high = fields.flat[0].get_ylim()
        near = [
            number for each in held.values() for one in each if (number := value(one)) and _close(number, low, high)
        ]
        floor, top = min([low, *(each.low for each in near)]), max([high, *(each.high for each in near)])
        fields.flat[0].set_ylim(floor - 0.04 * (top - floor), top + 0.1 * (top - floor))
        lines = [
            _baselines(axes, each, value, low, high) for axes, each in zip(fields.flat, held.values(), strict=False)
        ]
        shown = {each.variant: looks[each.variant] for each in marked}
        keys = [*plan_keys(dict.fromkeys(each.plan for each in marked)), *variant_keys(shown)]
        keys.append(Line2D([], [], color=FAINT, linewidth=4, alpha=0.45, label="Pareto front"))
        if any(each.of == "silos" for each in marked):
            label = "hollow: silos' own models"
            keys.append(Line2D([], [], linestyle="", marker="o", markerfacecolor="white", color=INK, label=label))
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 4 if columns == 1 else 9))
        figure.draw_without_rendering()  # only now is known where what is
        for axes, group, told in zip(fields.flat, groups.values(), lines, strict=False):
            _label(axes, group, value, told)
    return figure


def _marks(axes: Axes, group: Sequence[Setting], value: Read, looks: Mapping[str, Look]) -> None:
    """The settings of one panel, numbered as in the table, on their front."""
    points = [(each, each.wire, value(each)) for each in group]
    known = [(each, wire, number) for each, wire, number in points if wire is not None and number is not None]
    places = front([(wire.mean, number.mean) for _, wire, number in known])
    if len(places) > 1:
        xs, ys = zip(*((known[at][1].mean, known[at][2].mean) for at in places), strict=True)
        axes.plot(xs, ys, color=FAINT, linewidth=4, alpha=0.45, drawstyle="steps-post", zorder=1)
    for each, wire, number in known:
        hue = colour(each.plan)
        reach = [[number.mean - number.low], [number.high - number.mean]]
        sent = [[wire.mean - wire.low], [wire.high - wire.mean]]
        marker = looks[each.variant].marker
        axes.errorbar(
            wire.mean, number.mean, reach, sent, marker=marker, color=hue, elinewidth=1.1, capsize=2.5,
            markersize=11 if marker == "*" else 7.5, markeredgewidth=1.6,
            markerfacecolor="white" if each.of == "silos" else hue, zorder=3,
        )  # fmt: skip


def _label(axes: Axes, group: Sequence[Setting], value: Read, lines: Mapping[str, float]) -> None:
    """The numbers of the marks, as in the table, and the names of the baselines."""
    found = {each.number: (wire.mean, at.mean) for each in group if (wire := each.wire) and (at := value(each))}
    labels = Labels(axes)
    labels.keep_clear(
        (wire.mean, y)
        for each in group
        if (wire := each.wire) and (at := value(each))
        for y in (at.low, at.mean, at.high)
    )
    for text, level in lines.items():
        box = {"facecolor": "white", "alpha": 0.75, "pad": 0.8, "lw": 0}
        labels.along(text, level, fontsize=8.5, color=INK, zorder=2, bbox=box)
    for number, (x, y) in found.items():
        labels.near(str(number), x, y, fontsize=8, color=INK, zorder=4)


def _near(settings: Sequence[Setting], group: Sequence[Setting]) -> list[Setting]:
    """The baselines that a panel's settings are held against: of as many images, of the same silos."""
    seen = [total.mean for each in group if (total := each.total("images"))]
    parted = {_parted(each) for each in group}

    def fits(each: Setting) -> bool:
        images = each.total("images")
        return images is not None and any(abs(images.mean - other) <= 0.02 * other for other in seen)

    found = []
    for kind in ("centralised", "alone"):
        mine = [each for each in settings if each.kind == kind and (kind == "centralised" or _parted(each) in parted)]
        alike = [each for each in mine if fits(each)] or mine
        found += alike if len(alike) <= MOST_LINES else []
    return found


def _parted(each: Setting) -> tuple[object, ...]:
    return tuple(each.known.get(name) for name in ("silos", "split", "beta", "classes"))


def _baselines(axes: Axes, baselines: Sequence[Setting], value: Read, low: float, high: float) -> dict[str, float]:
    """Lines and bands, whose names and levels are returned; one far away is told at the edge, or it would flatten the
    marks."""
    lines: dict[str, float] = {}
    for each in baselines:
        number = value(each)
        if number is None:
            continue
        right = each.kind == "alone"
        text = f"{each.kind} {number.mean:.3g}"
        if not _close(number, low, high):
            arrow, edge, side = ("↑", 0.985, "top") if number.mean > high else ("↓", 0.015, "bottom")
            x, ha = (0.99, "right") if right else (0.01, "left")
            place: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8.5, "color": INK, "zorder": 2}
            axes.text(x, edge, f"{arrow} {text}", ha=ha, va=side, **place)
            continue
        axes.axhline(
            number.mean, color=colour(each.kind), linestyle=(0, (6, 3)) if right else "-", linewidth=1.2, zorder=1
        )
        axes.axhspan(number.low, number.high, color=colour(each.kind), alpha=0.12, linewidth=0, zorder=0)
        lines[text] = number.mean
    return lines


def _close(number: Spread, low: float, high: float) -> bool:
    """Whether a baseline can be drawn beside marks from low to high, and leave them room."""
    return low - FAR * (high - low) < number.mean < high + FAR * (high - low)
