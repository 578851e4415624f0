"""federator/sampling.py: who is taken is chance, seeded, and fair over the rounds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from feddiff.core.config import FederationConfig, from_table
from feddiff.federator.sampling import Sample, sample, uniform

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


def rules(**more: int) -> FederationConfig:
    return from_table({"preset": "digits-8", "rounds": {"participants": 5, **more}}, "rules.toml")


def test_without_the_rule_all_that_are_here_are_taken() -> None:
    assert sample(rules(), 3, ["b", "a"], []) == Sample(("a", "b"), "all that are here")
    assert len(sample(rules(sampled=2), 3, ["b", "a", "c"], []).silos) == 2
