"""How a sweep's charts look: one colour for each plan, one mark and dash for each codec or economy, in all of them.

Under every chart of the report. The colours are Okabe & Ito's (2008), told apart by colour-blind eyes; what else tells
plans apart, so that grey paper does, is their number, their panel or their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from feddiff.federator.charts import FAINT, INK, STYLE
from feddiff.federator.measure import UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

PLANS = {"full": "#0072B2", "usplit": "#E69F00", "ulatdec": "#009E73", "udec": "#CC79A7", "budget": "#D55E00"}
BASELINES = {"centralised": INK, "alone": FAINT}
PARTS = {
    "encoder": (0.3, ""),
    "bottleneck": (1.0, ""),
    "decoder": (0.6, "////"),
    "generator": (1.0, ""),
    "discriminator": (0.3, ""),
    "pool": (0.15, "...."),
    "protocol": (0.0, ""),
}
"""How strong a plan's colour is for a part of the network, or what carries no weights, and its hatching."""
REAL = "#444444"
"""Real images, beside what models draw."""

Dash = Literal["-", "-."] | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """Of a codec or an economy: a marker and a dash of matplotlib."""

    marker: str
    dash: Dash


_KNOWN = {
    "fp32": Look("o", "-"),
    "fp16": Look("h", (0, (7, 1))),
    "int8": Look("s", (0, (5, 1.5))),
    "int4": Look("^", (0, (3, 1.5))),
    "int2": Look("v", (0, (1, 1))),
    "careful": Look("P", (0, (6, 1, 1, 1))),
    "thrifty": Look("*", (0, (4, 1, 1, 1, 1, 1))),
}
_OTHERS = (
    Look("D", "-."),
    Look("X", (0, (1, 2))),
    Look("p", (0, (8, 2))),
    Look("<", (0, (2, 2))),
    Look(">", (0, (9, 2, 2, 2))),
    Look("d", (0, (3, 3))),
    Look("8", (0, (1, 3))),
)


def looks(variants: Iterable[str]) -> dict[str, Look]:
    """A look for each, codecs and economies always their own; with very many, others share theirs."""
    names = list(dict.fromkeys(variants))
    free = [look for name, look in _KNOWN.items() if name not in names]
    spare = [*_OTHERS, *free]
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN[name] if name in _KNOWN else spare[others.index(name) % len(spare)] for name in names}


def colour(plan: str) -> str:
    """Of a plan or a baseline; grey for one that is not known."""
    return PLANS.get(plan) or BASELINES.get(plan, FAINT)


@contextmanager
def style() -> Iterator[None]:
    """Our look while it lasts; matplotlib's settings are global to the process."""
    import matplotlib as mpl

    ours: dict[Any, Any] = {**STYLE, "axes.titleweight": "bold", "hatch.linewidth": 0.6}
    with mpl.rc_context(ours):
        yield


def bytes_axis(axes: Axes, sizes: Sequence[float], label: str) -> None:
    """A log scale of bytes with units on its ticks, a little wider than what is on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(sizes), max(sizes)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.35, high * 1.35)
    narrow = high / low < 30
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: tick(size)))
    axes.xaxis.set_minor_locator(LogLocator(10, subs=tuple(range(2, 10))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def tick(size: float) -> str:
    """A round number of bytes, e.g. ``20 MB``."""
    scale, symbol = next(((scale, symbol) for scale, symbol in UNITS if size >= scale * 0.999), UNITS[-1])
    return f"{size / scale:.3g} {symbol}"


def plan_keys(plans: Iterable[str]) -> list[Line2D]:
    """A patch of colour for the legend, for each."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], linestyle="", marker="s", markersize=9, color=colour(plan), label=plan) for plan in plans]


def variant_keys(known: dict[str, Look], lines: bool = False) -> list[Line2D]:
    """The marker of each codec or economy for the legend, on its line where the chart has ``lines``."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle=look.dash if lines else "", marker=look.marker, color=FAINT, label=name)
        for name, look in known.items()
        if name
    ]
