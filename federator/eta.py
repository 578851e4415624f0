"""When the round and the federation will be over, by what rounds took before and how far this one is; and why so.

Pure; federator/live.py gathers what it is given, and the page shows the reason beside the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from feddiff.federator.measure import duration

LAST = 5
"""Rounds whose mean counts: newer plans and links, not those of last week."""
ENOUGH = 0.1
"""Share of a round's training from which on its speed says something."""


@dataclass(frozen=True)
class Estimate:
    """Unix seconds at which something is over, None if nobody knows, and the reason for either."""

    at: float | None
    reason: str


def round_end(opened: float, now: float, past: Sequence[float], done: float, waiting_for: str = "") -> Estimate:
    """Of the open round. ``past``: seconds that rounds took, oldest first; ``done``: the share of the slowest silo."""
    elapsed, last = max(now - opened, 0.0), [*past][-LAST:]
    slowest = f"{waiting_for} is {done:.0%} through its training" if waiting_for else f"{done:.0%} is trained"
    if last and elapsed <= fmean(last):
        return Estimate(opened + fmean(last), _took(last))
    if ENOUGH <= done < 1:
        longer = f"longer than before ({_took(last)}); " if last else ""
        return Estimate(opened + elapsed / done, f"{longer}{slowest} after {duration(elapsed)}")
    if last:
        return Estimate(None, f"longer than before: {_took(last)}, this one {duration(elapsed)} so far")
    return Estimate(None, "no round has ended yet, and this one has only begun")


def all_rounds(round: Estimate, now: float, left: int, between: Sequence[float], whole: Sequence[float]) -> Estimate:
    """Of the federation. ``left``: rounds after the one that ends as ``round`` says; ``between``: seconds from close to
    close, ``whole``: from opening to close, both oldest first."""
    if not left:
        return Estimate(round.at, f"this is the last round; {round.reason}")
    last = [*(between or whole)][-LAST:]
    if not last:
        return Estimate(None, f"no round has ended yet, and {_rounds(left)} come after this one")
    each = "with the pauses between them" if between else "so far"
    ending = "" if round.at is not None else ", if that ended now"
    # To 5 s: a time that moves with every look would only keep the page busy.
    at = round.at if round.at is not None else 5 * (now // 5 + 1)
    return Estimate(at + left * fmean(last), f"{_rounds(left)} after this one{ending}; {_took(last)} {each}")


def _took(last: Sequence[float]) -> str:
    if len(last) == 1:
        return f"the round before took {duration(last[0])}"
    return f"rounds took {duration(fmean(last))} on average (last {len(last)})"


def _rounds(count: int) -> str:
    return f"{count} more round{'' if count == 1 else 's'}"
