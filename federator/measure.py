"""Numbers as people read them: sizes, ratios, times and losses in the report's text, page and charts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from feddiff.core.errors import ConfigError

NONE = "–"
"""Stands where there is no number."""
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def unit(size: float) -> tuple[float, str]:
    """The decimal unit in which a size in bytes is told: how many bytes it has, and its symbol."""
    return next(((scale, symbol) for scale, symbol in UNITS if size >= scale), (1.0, "B"))


def amount(size: float) -> str:
    """A size in bytes with three figures, e.g. ``1.23 MB``."""
    scale, symbol = unit(size)
    whole = len(str(int(size / scale)))
    return f"{size / scale:.{0 if symbol == 'B' else max(0, 3 - whole)}f} {symbol}"


def ratio(whole: float, part: float) -> str:
    """How many times ``part`` fits into ``whole``, with three figures, e.g. ``8.12×``."""
    times = whole / part if part else 0.0
    return f"{times:.{max(0, 3 - len(str(int(times))))}f}×" if times else NONE


def duration(seconds: float) -> str:
    """A time in seconds, e.g. ``12.3 s``, ``3 min 05 s``, ``27 h 40 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


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
