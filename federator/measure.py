"""Numbers as people read them: sizes, ratios, times and losses in the report's text, page and charts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from feddiff.core.amounts import UNITS, amount, duration, unit
from feddiff.core.errors import ConfigError

__all__ = ["NONE", "UNITS", "amount", "duration", "mean", "number", "ratio", "seconds", "span", "unit"]
NONE = "–"
"""Stands where there is no number."""


def ratio(whole: float, part: float) -> str:
    """How many times ``part`` fits into ``whole``, with three figures, e.g. ``8.12×``."""
    times = whole / part if part else 0.0
    return f"{times:.{max(0, 3 - len(str(int(times))))}f}×" if times else NONE


def seconds(text: str, what: str) -> int:
    """Of a time as it is typed, e.g. ``12h`` or ``7d``. ``what``: how an error begins. Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,5})([smhd])", text)
    if not found or not int(found[1]):
        raise ConfigError(f"{what} {text:.40}: a number and m, h or d was expected, e.g. 7d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


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
