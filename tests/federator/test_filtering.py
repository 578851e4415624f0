"""federator/filtering.py: who is poor, who is warned, who is out; by hand, and for any readings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.filtering import FilterConfig
from feddiff.federator.filtering import Verdict, judge

A, B, C, D = (f"hospital-{letter}" for letter in "abcd")
TOLD = {A: 0.8, B: 0.5, C: 0.2, D: 0.5}
"""Mean 0.5."""
SILOS = [f"silo-{number}" for number in range(8)]
readings = st.dictionaries(st.sampled_from(SILOS), st.integers(0, 20).map(lambda n: n / 20), max_size=8)
rules = st.sampled_from(
    [
        FilterConfig(),
        FilterConfig(rule="threshold", threshold=0.5),
        FilterConfig(rule="average", out="round"),
        FilterConfig(rule="average", margin=0.2),
    ]
)


def verdicts(
    told: dict[str, float], warned: dict[str, str] | None = None, needed: int = 1, **table: Any
) -> list[tuple[str, str]]:
    return [(each.silo, each.kind) for each in judge(FilterConfig(**table), 6, told, warned or {}, TOLD, needed)]


@pytest.mark.parametrize(
    ("told", "table", "poor"),
    [
        (TOLD, {}, [C]),
        ({A: 0.2, B: 0.5, C: 0.2}, {}, [A, C]),
        ({A: 0.2, B: 0.2, C: 0.2}, {}, []),
        ({A: 0.2}, {}, []),
        ({}, {}, []),
        (TOLD, {"rule": "threshold", "threshold": 0.5}, [C]),
        (TOLD, {"rule": "threshold", "threshold": 0.51}, [C, B, D]),
        ({A: 0.2}, {"rule": "threshold", "threshold": 0.5}, [A]),
        (TOLD, {"rule": "average"}, [C]),
        (TOLD, {"rule": "average", "margin": 0.2}, [C]),
        (TOLD, {"rule": "average", "margin": 0.31}, []),
        ({A: 0.1, B: 0.1, C: 0.1}, {"rule": "average"}, []),
        ({A: 0.9, B: 0.3, C: 0.3}, {"rule": "average"}, [B, C]),
    ],
)
def test_who_is_poor(told: dict[str, float], table: dict[str, Any], poor: list[str]) -> None:
    assert verdicts(told, **table) == [(silo, "warned") for silo in poor]
    assert verdicts(told, dict.fromkeys(poor, "before"), 0, **table) == [(silo, "out") for silo in poor]


def test_a_warning_a_strike_and_what_they_say() -> None:
    (warned,) = judge(FilterConfig(), 5, TOLD, {}, TOLD, 2)
    assert warned == Verdict(
        5,
        C,
        "warned",
        "precision 0.2 in round 5 is the lowest of 4 silos",
        "precision 0.2 in round 5 is the lowest of 4 silos; once more in a row and it is out for good",
    )
    (out,) = judge(FilterConfig(out="round"), 6, {**TOLD, C: 0.1}, {C: warned.finding}, TOLD, 2)
    assert (out.round, out.silo, out.kind) == (6, C, "out")
    assert out.reason == (
        "out for a round: precision 0.1 in round 6 is the lowest of 4 silos; before, precision 0.2 in round 5 is the"
        " lowest of 4 silos"
    )
    (average,) = judge(FilterConfig(rule="average", metric="recall", margin=0.1), 6, TOLD, {}, TOLD, 2)
    assert average.finding == "recall 0.2 in round 6 is below the average 0.5 of 4 silos by more than 0.1"


def test_a_good_reading_clears_a_warning_and_silence_does_not() -> None:
    assert verdicts(TOLD, {B: "before", "silent": "before"}) == [(C, "warned"), (B, "cleared")]


def test_as_many_are_left_as_a_round_needs_and_the_worst_goes_first() -> None:
    table = {"rule": "threshold", "threshold": 0.9}
    warned = dict.fromkeys(TOLD, "before")
    worst_first = [C, B, D, A]  # at equal readings, by name
    for needed in range(5):
        kinds = ["out"] * (4 - needed) + ["kept"] * needed
        assert verdicts(TOLD, warned, needed, **table) == list(zip(worst_first, kinds, strict=True))
    (kept,) = judge(FilterConfig(), 6, TOLD, {C: "x"}, TOLD, 4)
    assert kept.reason.endswith("; without it only 3 would be left of the 4 that a round needs")


@given(rules, readings, st.sets(st.sampled_from(SILOS)), st.sets(st.sampled_from(SILOS)), st.integers(0, 9))
def test_for_any_readings(
    table: FilterConfig, told: dict[str, float], warned: set[str], there: set[str], needed: int
) -> None:
    before = dict.fromkeys(warned, "before")
    found = judge(table, 7, told, before, there, needed)
    by = {each.silo: each.kind for each in found}
    assert len(by) == len(found), "one verdict a silo"
    assert by.keys() <= told.keys(), "who tells nothing is not judged"
    out = {silo for silo, kind in by.items() if kind == "out"}
    assert len(there - out) >= min(needed, len(there)) or not out
    assert out <= warned, "nobody is out at the first strike"
    assert {silo for silo, kind in by.items() if kind == "kept"} <= warned
    poor = by.keys() - {silo for silo, kind in by.items() if kind == "cleared"}
    if told:
        assert max(told, key=lambda s: told[s]) not in poor or table.rule == "threshold"
        assert all(told[one] <= told[other] for one in poor for other in told.keys() - poor)
    assert found == judge(table, 7, dict(sorted(told.items(), reverse=True)), before, sorted(there), needed)
