"""Sizes and times as people read them, at both ends."""

from __future__ import annotations

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def unit(size: float) -> tuple[float, str]:
    """The decimal unit in which a size in bytes is told: how many bytes it has, and its symbol."""
    return next(((scale, symbol) for scale, symbol in UNITS if size >= scale), (1.0, "B"))


def amount(size: float) -> str:
    """A size in bytes with three figures, e.g. ``1.23 MB``."""
    scale, symbol = unit(size)
    whole = len(str(int(size / scale)))
    return f"{size / scale:.{0 if symbol == 'B' else max(0, 3 - whole)}f} {symbol}"


def duration(seconds: float) -> str:
    """A time in seconds, e.g. ``12.3 s``, ``3 min 05 s``, ``27 h 40 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"
