"""Whether a silo may go on: threshold filtering by two strikes (Phoenix, arXiv 2306.04098).

When a round closes that silos have measured, between their readings (ledger) and the plan of the next round. Who is
poor is warned; who is poor at its next reading, too, is out, for a round or for good. A pure function: of the same
readings, warnings and rules it says the same, with the numbers. federator/verdicts.py keeps what it says.

    lowest     the lowest of the round                    poor unless all are equal
    threshold  below a value
    average    below the mean of the round, by a margin

A silo that tells nothing is neither warned nor cleared: its warning stands until its next reading.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from feddiff.core.filtering import FilterConfig

Kind = Literal["warned", "out", "kept", "cleared", "reinstated"]


@dataclass(frozen=True)
class Verdict:
    """What a round's readings say of one silo, or the operator after that round (``reinstated``)."""

    round: int
    silo: str
    kind: Kind
    """kept: poor twice in a row, but the federation cannot do without it; it stays warned."""
    finding: str
    """The reading and what is wrong with it, where something is."""
    reason: str
    """In full, for people."""


def judge(
    rules: FilterConfig,
    round: int,
    told: Mapping[str, float],
    warned: Mapping[str, str],
    there: Collection[str],
    needed: int,
) -> tuple[Verdict, ...]:
    """The verdicts of a round that has closed, worst silo first, then those that are cleared.

    ``told``: each silo's reading, 0 to 1, higher is better; ``warned``: the finding of those whose last was poor;
    ``there``: who could take part in the next round, of whom at least ``needed`` are left.
    """
    poor, left = _poor(rules, round, told), set(there)
    verdicts = []
    for silo, finding in poor.items():
        if silo not in warned:
            reason = f"{finding}; once more in a row and it is {_out(rules)}"
            verdicts.append(Verdict(round, silo, "warned", finding, reason))
            continue
        reason = f"{finding}; before, {warned[silo]}"
        if len(left - {silo}) < needed:
            short = f"without it only {len(left - {silo})} would be left of the {needed} that a round needs"
            verdicts.append(Verdict(round, silo, "kept", finding, f"{reason}; {short}"))
            continue
        left.discard(silo)
        verdicts.append(Verdict(round, silo, "out", finding, f"{_out(rules)}: {reason}"))
    cleared = sorted((warned.keys() & told.keys()) - poor.keys())
    for silo in cleared:
        finding = f"{rules.metric} {told[silo]:.4g} in round {round}"
        verdicts.append(Verdict(round, silo, "cleared", finding, finding))
    return tuple(verdicts)


def _poor(rules: FilterConfig, round: int, told: Mapping[str, float]) -> dict[str, str]:
    """Who is poor, the worst first, and by what."""
    if not told:
        return {}
    value, words = _bound(rules, told)
    found = _below(rules, told, value)
    worst_first = sorted(found, key=lambda silo: (told[silo], silo))
    return {silo: f"{rules.metric} {told[silo]:.4g} in round {round} is {words}" for silo in worst_first}


def _bound(rules: FilterConfig, told: Mapping[str, float]) -> tuple[float, str]:
    if rules.rule == "threshold":
        assert rules.threshold is not None
        return rules.threshold, f"below {rules.threshold:g}"
    if rules.rule == "lowest":
        return min(told.values()), f"the lowest of {len(told)} silos"
    mean = statistics.mean(told.values())  # exact, so that of equal values none is below it
    by = f" by more than {rules.margin:g}" if rules.margin else ""
    return mean - rules.margin, f"below the average {mean:.4g} of {len(told)} silos{by}"


def _below(rules: FilterConfig, told: Mapping[str, float], value: float) -> Iterator[str]:
    equal = len(set(told.values())) == 1
    for silo, reading in told.items():
        if reading < value or (rules.rule == "lowest" and reading == value and not equal):
            yield silo


def _out(rules: FilterConfig) -> str:
    return "out for good" if rules.out == "good" else "out for a round"
