"""When it will be over, and why that is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.federator.eta import LAST, Estimate, all_rounds, round_end

seconds = st.floats(0.1, 1e5)


def test_a_round_takes_as_long_as_the_last_ones() -> None:
    past = [9000.0, *[100.0, 140.0] * 2, 120.0]  # the first is too long ago
    assert round_end(1000.0, 1030.0, past, 0.0) == Estimate(1120.0, "rounds took 2 min 00 s on average (last 5)")
    assert round_end(1000.0, 1030.0, [60.0], 0.9) == Estimate(1060.0, "the round before took 1 min 00 s")


def test_the_first_round_by_its_slowest_silo() -> None:
    found = round_end(1000.0, 1060.0, [], 0.25, "clinic-a")
    assert found == Estimate(1240.0, "clinic-a is 25% through its training after 1 min 00 s")
    assert round_end(1000.0, 1060.0, [], 0.05).at is None


def test_a_round_that_takes_longer_says_so() -> None:
    found = round_end(1000.0, 1200.0, [100.0, 100.0], 0.5, "clinic-a")
    assert found.at == 1400.0
    assert found.reason.startswith("longer than before (rounds took 1 min 40 s")
    found = round_end(1000.0, 1200.0, [100.0, 100.0], 0.0)
    assert found.at is None
    assert found.reason == "longer than before: rounds took 1 min 40 s on average (last 2), this one 3 min 20 s so far"


def test_all_rounds_with_their_pauses() -> None:
    round = Estimate(1000.0, "so")
    found = all_rounds(round, 900.0, 4, [200.0, 100.0], [60.0, 60.0, 60.0])
    assert found == Estimate(
        1600.0, "4 more rounds after this one; rounds took 2 min 30 s on average (last 2) with the pauses between them"
    )
    assert all_rounds(round, 900.0, 1, [], [60.0]).at == 1060.0
    assert all_rounds(round, 900.0, 0, [200.0], [60.0]) == Estimate(1000.0, "this is the last round; so")
    assert all_rounds(round, 900.0, 2, [], []).at is None
    late = Estimate(None, "longer than before")
    assert all_rounds(late, 998.0, 2, [5.0], [5.0]) == Estimate(
        1010.0,
        "2 more rounds after this one, if that ended now; the round before took 5.0 s with the pauses between them",
    )
    assert all_rounds(late, 998.0, 0, [5.0], [5.0]) == Estimate(None, "this is the last round; longer than before")


@given(st.floats(0, 1e9), seconds, st.lists(seconds, max_size=2 * LAST), st.floats(0, 1), st.integers(0, 50))
def test_nothing_ends_before_now_and_all_rounds_after_this_one(
    opened: float, elapsed: float, past: list[float], done: float, left: int
) -> None:
    now = opened + elapsed
    round = round_end(opened, now, past, done, "clinic-a")
    assert round.reason
    whole = all_rounds(round, now, left, past, past)
    if round.at is not None:
        assert round.at >= now * (1 - 1e-12)
        assert whole.at is None or whole.at >= round.at
    if past and now - opened <= min(past):  # not elapsed: the sum was rounded
        assert round.at == pytest.approx(opened + sum(past[-LAST:]) / len(past[-LAST:]))
