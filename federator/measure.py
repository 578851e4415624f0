"""Numbers as people read them: sizes, ratios, times and losses in the report's text, page and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from feddiff.core.amounts import UNITS, amount, duration, unit

__all__ = ["NONE", "UNITS", "amount", "duration", "mean", "number", "ratio", "span", "unit"]
NONE = "–"
"""Stands where there is no number."""


def ratio(whole: float, part: float) -> str:
    """How many times ``part`` fits into ``whole``, with three figures, e.g. ``8.12×``."""
    times = whole / part if part else 0.0
    return f"{times:.{max(0, 3 - len(str(int(times))))}f}×" if times else NONE


def number(value: float) -> str:
    """A loss or the like with three figures; ``NONE`` if it is not finite."""
    return f"{value:.3g}" if math.isfinite(value) else NONE


def span(values: Sequence[float]) -> str:
    """The first and the last finite value."""
    finite = [value for value in values if math.isfinite(value)]
    return f"{number(finite[0])} → {number(finite[-1])}" if finite else NONE


def mean(values: Mapping[str, float], weights: Mapping[str, int]) -> float:
    """Mean of the finite values by their weights (1 for one without); NaN without any."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    total = sum(weights.get(name, 1) for name in finite)
    return sum(weights.get(name, 1) * value for name, value in finite.items()) / total if finite else math.nan
