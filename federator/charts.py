"""Draws the report's charts: what came in, what it cost, where the bytes went.

Stands beside the report, which sums the ledger and hands over plain numbers. Nothing here knows silos from
segments but by name. matplotlib is heavy, so it is imported when a chart is drawn and not before.

A colour means one thing in all charts: the parts of a network have theirs, silos have others (Okabe & Ito 2008, told
apart by colour-blind eyes). What is measured shows in a colour's strength, not in another hue.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from feddiff.federator.measure import amount, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "encoder": "#0072B2",
    "bottleneck": "#E69F00",
    "decoder": "#009E73",
    "generator": "#0072B2",
    "discriminator": "#E69F00",
    "pool": "#882255",
    "protocol": "#999999",
}
"""A part of the network, public images, or what carries neither, and its colour."""
SILOS = ("#D55E00", "#CC79A7", "#56B4E9")
DASHES = ("-", "--", ":")
LABELLED = len(SILOS) * len(DASHES)
"""More silos than this are drawn as one grey crowd."""
INK, FAINT, CROWD = "#222222", "#767676", "#b5b5b5"
Curve: TypeAlias = tuple[str, Sequence[int], Sequence[float]]
"""Name, rounds, values."""
STRENGTHS = {"raw float32": 0.0, "encoded": 0.35, "on the wire": 1.0}
"""How strong a bar's colour is for what it measures."""
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "axes.edgecolor": "#777777",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "feddiff",
}


@contextmanager
def _style() -> Iterator[None]:
    """Our look while it lasts; matplotlib's settings are global to the process."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


@_style()
def loss(rounds: Sequence[int], silos: Mapping[str, Sequence[float]], means: Sequence[float]) -> Figure:
    """Training loss of every silo by round, NaN where there is none, and the mean of each round."""
    figure, (axes,) = _canvas(5.8, 3.3)
    few = len(silos) <= LABELLED
    ends = []
    for index, (name, values) in enumerate(silos.items()):
        colour = SILOS[index % len(SILOS)] if few else CROWD
        dash = DASHES[index // len(SILOS) % len(DASHES)] if few else "-"
        axes.plot(rounds, values, dash, color=colour, linewidth=1.5 if few else 0.7, marker=".", markersize=5)
        if few:
            ends.append((values, name, colour))
    axes.plot(rounds, means, color=INK, linewidth=2.6)
    ends.append((means, "mean of silos", INK))
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    _by_round(axes)
    _label_ends(axes, ends)
    return figure


@_style()
def wire(rounds: Sequence[int], down: Mapping[str, Sequence[int]], up: Mapping[str, Sequence[int]]) -> Figure:
    """Bytes on the wire by round, both directions on one scale; stacked by the names of ``PARTS``."""
    figure, panels = _canvas(9.2, 3.4, columns=2)
    stacks = [sum(column) for side in (down, up) for column in zip(*side.values(), strict=True)]
    scale, symbol = unit(max(stacks, default=0))
    titles = ("down: federator to silos", "up: silos to federator")
    for axes, side, title in zip(panels, (down, up), titles, strict=True):
        floor = [0.0] * len(rounds)
        for part, sizes in side.items():
            heights = [size / scale for size in sizes]
            axes.bar(rounds, heights, 0.8, bottom=floor, color=PARTS[part], label=part)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.set_title(title)
        _by_round(axes)
    panels[0].set_ylabel(f"on the wire, {symbol}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(PARTS))
    return figure


@_style()
def segments(rows: Sequence[tuple[str, str, int, int, int]]) -> Figure:
    """Name, part, raw, encoded and wire bytes of every segment: what it weighs, what had to travel."""
    from matplotlib.patches import Patch

    figure, (axes,) = _canvas(9.2, 1.0 + 0.45 * max(1, len(rows)))
    scale, symbol = unit(max((max(sizes) for _, _, *sizes in rows), default=0))
    for place, (_, part, *sizes) in enumerate(rows):
        for lane, (size, strength) in enumerate(zip(sizes, STRENGTHS.values(), strict=True)):
            face, y = (PARTS[part], strength), place + (lane - 1) * 0.27
            bar = axes.barh(y, size / scale, 0.24, facecolor=face, edgecolor=PARTS[part])
            if lane == 2:
                axes.bar_label(bar, [amount(size)], padding=4, fontsize=9, color=INK)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(f"all rounds, both directions, {symbol}")
    keys = [Patch(facecolor=(INK, level), edgecolor=INK, label=name) for name, level in STRENGTHS.items()]
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys))
    return figure


@_style()
def cumulative(rounds: Sequence[int], sent: Sequence[int], full: Sequence[int]) -> Figure:
    """Wire bytes so far, against raw float32 exchanges of the whole model with the same silos."""
    figure, (axes,) = _canvas(5.8, 3.3)
    scale, symbol = unit(max((*sent, *full), default=0))
    starts = [rounds[0] - 1, *rounds] if rounds else []
    ends = []
    for sizes, name, dash, colour in (
        (full, "raw fp32,\nwhole model", "--", FAINT),
        (sent, "on the wire", "-", INK),
    ):
        heights = [0.0, *(size / scale for size in sizes)][: len(starts)]
        axes.plot(starts, heights, dash, color=colour, linewidth=2.4)
        ends.append((heights, name, colour))
    axes.fill_between(starts, ends[-1][0], color=INK, alpha=0.12, linewidth=0)
    axes.set_ylabel(f"both directions, {symbol}")
    axes.set_ylim(bottom=0)
    _by_round(axes)
    _label_ends(axes, ends)
    return figure


@_style()
def quality(shared: Sequence[Curve], means: Sequence[Curve], silos: Sequence[Curve], sent: Mapping[int, int]) -> Figure:
    """FID by round, and by the wire bytes so far (``sent``, by round).

    Of the global model, of the mean of silos' own models, and of each of these, which are a crowd behind.
    """
    figure, panels = _canvas(9.2, 3.6, columns=2)
    scale, symbol = unit(max(sent.values(), default=0))
    for axes, by_round in zip(panels, (True, False), strict=True):
        ends = []
        for _, rounds, values in silos:
            places = rounds if by_round else [sent.get(number, 0) / scale for number in rounds]
            axes.plot(places, values, color=CROWD, linewidth=0.7, marker=".", markersize=4)
        for curves, colour in ((shared, INK), (means, FAINT)):
            for index, (name, rounds, values) in enumerate(curves):
                places = rounds if by_round else [sent.get(number, 0) / scale for number in rounds]
                dash = DASHES[index % len(DASHES)]
                axes.plot(places, values, dash, color=colour, linewidth=2.4, marker="o", markersize=4)
                ends.append((values, name, colour))
        axes.set_ylim(bottom=0)
        if by_round:
            axes.set_ylabel("FID")
            _by_round(axes)
        else:
            axes.set_xlabel(f"on the wire so far, both directions, {symbol}")
            axes.set_xlim(left=0)
            _label_ends(axes, ends)
    return figure


def png(figure: Figure) -> bytes:
    """The chart as a PNG for a slide or a paper."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The chart as an ``<svg>`` element inside a page: no prolog or namespace, only needed ids, led by ``name``."""
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda at: f' id="{name}-{at[1]}"' if at[1] in used else "", text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)


def _canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of inches, drawn without any display."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])


def _by_round(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _label_ends(axes: Axes, lines: Sequence[tuple[Sequence[float], str, str]]) -> None:
    """Write each line's name in its colour beside its last value, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    ends = [(last, name, colour) for values, name, colour in lines if (last := _last(values)) is not None]
    ends.sort(key=lambda end: end[0])
    gap, lowest = (high - low) * 0.075, low
    for index, (height, name, colour) in enumerate(ends):
        highest = high - gap * (len(ends) - 1 - index)
        place = min(max(height, lowest), max(highest, lowest))
        text = name if len(name) <= 28 else f"{name[:27]}…"
        axes.annotate(
            text,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            annotation_clip=False,
        )
        lowest = place + gap


def _last(values: Sequence[float]) -> float | None:
    return next((value for value in reversed(values) if math.isfinite(value)), None)
