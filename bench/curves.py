"""How settings got where they ended: a number by round, or by the bytes sent until then, one panel for each plan.

Takes bench/setting.py's settings and what to read in each round. Panels of one row are of one scenario and share their
scale; a line is the mean over seeds, its band reaches from the least to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from feddiff.bench.looks import Look, bytes_axis, colour, style, variant_keys
from feddiff.bench.setting import Curve, Setting, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ReadRound = Callable[[Mapping[str, Any]], float | None]
MOST_ROWS = 6
"""Scenarios in one figure, so that it fits a sheet of paper."""
MARKED = 16
"""Longer curves have a mark at some of their points only."""


def charts(
    settings: Sequence[Setting],
    read: ReadRound,
    axis: str,
    looks: Mapping[str, Look],
    over: Literal["rounds", "bytes"] = "rounds",
    final: Callable[[Setting], Spread | None] = lambda _: None,
) -> list[Figure]:
    """Figures of a number by round or by wire bytes (log); none where nobody has two points.

    ``final``: what a baseline ended with, drawn as a line for comparison.
    """
    curves = {each.number: each.curve(read) for each in settings if each.wire is not None}
    drawn = [each for each in settings if each.number in curves and curves[each.number].rounds]
    if not any(len(curves[each.number].rounds) > 1 for each in drawn):
        return []
    scenarios = list(dict.fromkeys(each.scenario for each in drawn))
    plans = list(dict.fromkeys(each.plan for each in drawn))
    centre = [(each, number) for each in settings if each.kind == "centralised" and (number := final(each))]
    found = []
    for first in range(0, len(scenarios), MOST_ROWS):
        rows = scenarios[first : first + MOST_ROWS]
        found.append(_figure(drawn, curves, rows, plans, axis, looks, over, centre))
    return found


def _figure(
    drawn: Sequence[Setting],
    curves: Mapping[int, Curve],
    rows: Sequence[str],
    plans: Sequence[str],
    axis: str,
    looks: Mapping[str, Look],
    over: Literal["rounds", "bytes"],
    centre: Sequence[tuple[Setting, Spread]],
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    here = [each for each in drawn if each.scenario in rows]
    sent = [size for each in here for size in curves[each.number].sent if size > 0]
    wide = {1: 5.8, 2: 6.6}.get(len(plans), 2.5 * len(plans) + 0.8)
    with style():
        figure = Figure((wide, 0.6 + (2.9 if len(rows) == 1 else 2.3) * len(rows)), layout="constrained")
        fields = figure.subplots(len(rows), len(plans), sharex=True, sharey="row", squeeze=False)
        for axes_row, scenario in zip(fields, rows, strict=True):
            for axes, plan in zip(axes_row, plans, strict=True):
                mine = [each for each in here if (each.scenario, each.plan) == (scenario, plan)]
                for each in mine:
                    _line(axes, curves[each.number], over, colour(plan), looks[each.variant])
                axes.set_title(f"{plan}\n{scenario}" if len(rows) > 1 else plan)
                if not mine:
                    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", fontsize=9)
            axes_row[0].set_ylabel(axis)
        for axes_row in fields:
            low, high = axes_row[0].get_ylim()
            for axes in axes_row:
                for _, number in centre if len(centre) == 1 else ():
                    if low - (high - low) < number.mean < high:
                        axes.axhline(number.mean, color=colour("centralised"), linewidth=1, linestyle=":")
        for axes in fields[-1]:
            if over == "bytes":
                bytes_axis(axes, sent, "on the wire until then")
                axes.tick_params(axis="x", labelrotation=30 if len(plans) > 1 else 0)
            else:
                axes.set_xlabel("round")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        shown = {each.variant: looks[each.variant] for each in here}
        keys = variant_keys(shown, lines=True)
        if keys:
            figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6), handlelength=3.5)
    return figure


def _line(axes: Axes, curve: Curve, over: Literal["rounds", "bytes"], hue: str, look: Look) -> None:
    places = curve.rounds if over == "rounds" else curve.sent
    every = max(1, len(places) // MARKED)
    means = [each.mean for each in curve.values]
    axes.plot(
        places,
        means,
        color=hue,
        linestyle=look.dash,
        linewidth=1.5,
        marker=look.marker,
        markersize=4.5,
        markevery=every,
    )
    if any(each.count > 1 for each in curve.values):
        axes.fill_between(
            places,
            [each.low for each in curve.values],
            [each.high for each in curve.values],
            color=hue,
            alpha=0.14,
            lw=0,
        )
