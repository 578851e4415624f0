"""federator/sampling.py: who is taken is chance, seeded, and fair over the rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from feddiff.core.config import FederationConfig, from_table
from feddiff.federator.journal import Round
from feddiff.federator.planner import Assignment, Plan
from feddiff.federator.sampling import RECENT, Record, Sample, inclusion, proportional, record, sample, uniform

SILOS = [f"silo-{number:02}" for number in range(12)]
seeds = st.integers(0, 1 << 62)
counts = st.integers(1, 12)


def rounds(here: list[set[str]], count: int, seed: int) -> list[set[str]]:
    """Whom each round takes of those that are here in it."""
    past: list[set[str]] = []
    for number, each in enumerate(here, 1):
        past.append(set(uniform(each, count, seed, number, past).silos))
    return past


@given(st.sets(st.sampled_from(SILOS), min_size=1), counts, seeds, st.integers(1, 99))
def test_so_many_of_those_that_are_here(here: set[str], count: int, seed: int, round: int) -> None:
    taken = uniform(here, count, seed, round, [])
    assert set(taken.silos) <= here
    assert len(taken.silos) == len(set(taken.silos)) == min(count, len(here))
    assert list(taken.silos) == sorted(taken.silos)
    assert f"{len(taken.silos)} of the {len(here)} that are here" in taken.reason


@given(st.permutations(SILOS), counts, seeds, st.integers(1, 99), st.lists(st.sets(st.sampled_from(SILOS)), max_size=9))
def test_the_order_in_which_silos_are_given_is_nothing(
    order: list[str], count: int, seed: int, round: int, past: list[set[str]]
) -> None:
    again = [sorted(each) for each in past]
    assert uniform(order, count, seed, round, past) == uniform(SILOS, count, seed, round, again)


@given(st.integers(2, 12), counts, seeds, st.integers(1, 60))
def test_of_silos_that_are_always_here_none_is_two_turns_ahead(silos: int, count: int, seed: int, number: int) -> None:
    here = set(SILOS[:silos])
    taken = Counter(name for each in rounds([here] * number, count, seed) for name in each)
    turns = [taken[name] for name in here]
    assert max(turns) - min(turns) <= 1
    assert sum(turns) == number * min(count, silos)


@given(st.lists(st.sets(st.sampled_from(SILOS[4:])), min_size=1, max_size=40), counts, seeds)
def test_nor_when_others_come_and_go(others: list[set[str]], count: int, seed: int) -> None:
    always = set(SILOS[:4])
    taken = Counter(name for each in rounds([always | each for each in others], count, seed) for name in each)
    turns = [taken[name] for name in always]
    assert max(turns) - min(turns) <= 1


@given(counts, seeds, st.integers(1, 20), st.integers(24, 40))
def test_one_that_comes_late_does_not_hog_the_rounds(count: int, seed: int, alone: int, after: int) -> None:
    assume(count < len(SILOS) - 1)
    late = SILOS[-1]
    here = [set(SILOS[:-1])] * alone + [set(SILOS)] * after
    past = rounds(here, count, seed)
    theirs = Counter(name for each in past[alone:] for name in each)
    # It may get its turn in what is left of a deal that others had already had theirs in, and then in each like them.
    assert theirs[late] <= min(theirs[name] for name in SILOS[:-1]) + 2
    assert any(late in each for each in past[alone : alone + -(-2 * len(SILOS) // count)])


def test_each_is_as_likely_as_any_other_and_so_are_pairs() -> None:
    """1,000 federations of 6 that take 2: each silo in a third of the first rounds, each pair in a fifteenth."""
    firsts = [uniform(SILOS[:6], 2, seed, 1, []).silos for seed in range(1000)]
    singles = Counter(name for each in firsts for name in each)
    assert all(abs(singles[name] - 333) < 75 for name in SILOS[:6])  # five standard deviations
    pairs = Counter(firsts)
    assert len(pairs) == 15
    assert all(abs(times - 67) < 40 for times in pairs.values())


def test_companions_change_from_turn_to_turn() -> None:
    past = rounds([set(SILOS)] * 40, 3, 0)
    assert len({frozenset(each) for each in past}) > 30
    assert any(one & other for one, other in pairwise(past[::4]))


def test_the_same_on_every_machine() -> None:
    """Written down once: another Python, or an auditor, must come to the same."""
    here = ["hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e"]
    assert [sorted(each) for each in rounds([set(here)] * 3, 2, 7)] == [
        ["hospital-b", "hospital-e"],
        ["hospital-a", "hospital-c"],
        ["hospital-c", "hospital-d"],
    ]
    assert rounds([set(here)] * 9, 2, 7) != rounds([set(here)] * 9, 2, 8)


def rules(**more: Any) -> FederationConfig:
    table = {"preset": "digits-8", "rounds": {"participants": 5, **more}, "weights": {"by": "uniform"}}
    return from_table(table, "rules.toml")


def test_without_the_rule_all_that_are_here_are_taken() -> None:
    assert sample(rules(), 3, {"b": 1, "a": 1}, []) == Sample(("a", "b"), "all that are here")
    assert len(sample(rules(sampled=2), 3, {"b": 1, "a": 1, "c": 1}, []).silos) == 2


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([1, 2, 3, 4], 1, ["1/10", "2/10", "3/10", "4/10"]),
        ([1, 2, 3, 4], 2, ["2/10", "4/10", "6/10", "8/10"]),
        ([1, 1, 8], 2, ["1/2", "1/2", "1"]),
        ([1, 3, 30, 90], 3, ["1/4", "3/4", "1", "1"]),
        ([5, 5], 2, ["1", "1"]),
        ([5, 1], 7, ["1", "1"]),
        ([], 2, []),
    ],
)
def test_who_has_twice_the_images_is_taken_twice_as_often_but_never_twice_in_a_round(
    sizes: list[int], count: int, expected: list[str]
) -> None:
    found = inclusion(dict(zip(SILOS, sizes, strict=False)), count)
    assert [*found.values()] == [Fraction(each) for each in expected]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_over_many_rounds_everybody_gets_its_share_exactly_by_size(count: int) -> None:
    """4,000 rounds: within five standard deviations of pi_k; a share of 1 is every round."""
    sizes = dict(zip(SILOS, [1, 2, 3, 4, 30], strict=False))
    taken = Counter(name for number in range(4000) for name in proportional(sizes, count, 3, number))
    assert taken.total() == 4000 * count
    for name, share in inclusion(sizes, count).items():
        spread = (4000 * share * (1 - share)) ** 0.5
        assert abs(taken[name] - 4000 * share) <= 5 * spread, name


def test_the_plain_mean_of_those_that_are_taken_by_size_is_that_of_all_images() -> None:
    """Nobody has more than a third: unbiased for three that are taken, as the mean by images of those would not be."""
    sizes = dict(zip(SILOS, [1, 2, 3, 4, 5], strict=False))
    value = {name: float(size**2) for name, size in sizes.items()}
    wanted = sum(sizes[name] * value[name] for name in sizes) / 15
    draws = [proportional(sizes, 3, 11, number) for number in range(3000)]
    plain = sum(sum(value[name] for name in taken) / 3 for taken in draws) / 3000
    twice = sum(sum(sizes[n] * value[n] for n in taken) / sum(sizes[n] for n in taken) for taken in draws) / 3000
    assert abs(plain - wanted) < 0.2
    assert twice - wanted > 1


@given(
    st.dictionaries(st.sampled_from(SILOS), st.integers(1, 1 << 40), min_size=1), counts, seeds, st.integers(1, 10**6)
)
def test_so_many_are_taken_by_size_whatever_the_sizes(sizes: dict[str, int], count: int, seed: int, round: int) -> None:
    taken = proportional(sizes, count, seed, round)
    assert set(taken) <= sizes.keys()
    assert list(taken) == sorted(set(taken))
    assert len(taken) == min(count, len(sizes))
    assert sum(inclusion(sizes, count).values()) == len(taken)
    assert taken == proportional(dict(sorted(sizes.items(), reverse=True)), count, seed, round)


def past(*rounds: tuple[Sequence[str], Sequence[str]]) -> list[Round]:
    """Rounds that planned some silos, and averaged some of them."""
    found = []
    for number, (planned, averaged) in enumerate(rounds, 1):
        assignments = tuple(Assignment(silo, ("all",), ("all",), (), "") for silo in planned)
        plan = Plan(number, "full", assignments, "")
        found.append(Round(number, plan, dict.fromkeys(planned, 1), 0.0, 1.0, tuple(averaged), ""))
    return found


def test_a_record_is_of_the_last_rounds_that_changed_anything() -> None:
    rounds = past(("ab", "a"), ("ab", ""), ("a", "a"), ("ab", "ab"))
    assert [record(silo, rounds) for silo in "abc"] == [Record(3, 3), Record(1, 2), Record(0, 0)]
    assert [record(silo, rounds).share for silo in "abc"] == [1, Fraction(2, 3), 1]
    assert record("b", past(*[("ab", "a")] * 50, *[("ab", "ab")] * RECENT)) == Record(RECENT, RECENT)


def test_by_availability_who_never_finishes_is_taken_ever_less_and_never_not_at_all() -> None:
    here, config = dict.fromkeys(SILOS[:5], 1), rules(sampled=2, sampling="availability", count=10**6)
    lost = SILOS[0]
    before: list[Round] = []
    for number in range(1, 301):
        taken = sample(config, number, here, before[-60:]).silos
        before += past((taken, [name for name in taken if name != lost]))
    turns = Counter(name for each in before for name in each.plan.reporting)
    # Its share of the chances falls to 1/21 of what another has.
    assert 3 <= turns[lost] < 0.3 * min(turns[name] for name in SILOS[1:5])
    assert any(lost in each.plan.reporting for each in before[150:])
    # The others never failed: each is taken as often as any other, within five standard deviations.
    others = [turns[name] for name in SILOS[1:5]]
    assert max(others) - min(others) < 5 * (2 * 300 * 0.25) ** 0.5


def test_the_reason_has_the_numbers() -> None:
    sizes = {"a": 10, "b": 1000, "c": 10}
    by_size = sample(rules(sampled=2, sampling="size"), 1, sizes, [])
    other = next(name for name in by_size.silos if name != "b")
    words = ", ".join(f"{name} with {sizes[name]}" for name in sorted(["b", other]))
    assert by_size.reason == f"2 of the 3 that are here, by their images: {words} of 1020"
    rounds = past(("ab", "a"), ("ab", "ab"))
    found = sample(rules(sampled=2, sampling="availability"), 3, {"a": 1, "b": 1}, rounds)
    assert found.reason == (
        "2 of the 2 that are here, by the rounds that they finished of their last: a 2 of 2, b 1 of 2"
    )


def test_by_size_it_is_the_same_on_every_machine() -> None:
    sizes = {"hospital-a": 10, "hospital-b": 200, "hospital-c": 30, "hospital-d": 40}
    taken = [proportional(sizes, 2, 7, number) for number in range(1, 5)]
    assert ["".join(name[-1] for name in each) for each in taken] == ["bd", "ab", "ab", "bc"]
