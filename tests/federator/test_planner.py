from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.config import POLICIES, Policy
from feddiff.core.errors import StoreError
from feddiff.core.segments import Part, cut
from feddiff.federator.planner import Assignment, Plan, plan_round

# FedDiffuse's own model: 42.74 % encoder, 33.35 % bottleneck, 23.91 % decoder.
LAYOUT = cut(
    [
        ("conv_in.weight", (1000,)),
        ("down_blocks.0.a", (1274,)),
        ("down_blocks.1.a", (2000,)),
        ("mid_block.a", (3335,)),
        ("up_blocks.0.a", (2000,)),
        ("up_blocks.1.a", (384,)),
        ("conv_out.weight", (7,)),
    ]
)
WITHOUT_MIDDLE = cut([("conv_in.weight", (3,)), ("up_blocks.0.a", (2,)), ("conv_out.weight", (1,))])
ENCODER, BOTTLENECK, DECODER = (LAYOUT.select(part) for part in ("encoder", "bottleneck", "decoder"))
KEPT: dict[Policy, tuple[str, ...]] = {
    "full": (),
    "usplit": (),
    "ulatdec": ENCODER,
    "udec": (*ENCODER, *BOTTLENECK),
}

policies = st.sampled_from(POLICIES)
rounds = st.integers(1, 100)
seeds = st.integers(0, 2**63 - 1)
rosters = st.sets(st.text("abcz-9", min_size=1, max_size=4), min_size=1, max_size=9)


def silos(count: int) -> list[str]:
    return [f"silo-{number:02}" for number in range(count)]


def usplit(round: int, count: int, seed: int = 0) -> list[Assignment]:
    return list(plan_round("usplit", round, silos(count), LAYOUT, seed).assignments)


def parts(names: tuple[str, ...]) -> tuple[Part, ...]:
    """The parts that are sent; every one of them whole."""
    found = dict.fromkeys(LAYOUT[name].part for name in names)
    assert names == LAYOUT.select(*found)
    return tuple(found)


def exchanged(policy: Policy, count: int, last: int) -> tuple[Fraction, Fraction]:
    """Parameters down and up in rounds 1 … last, by the assignments."""
    down = up = 0
    for number in range(1, last + 1):
        for assignment in plan_round(policy, number, silos(count), LAYOUT, 0).assignments:
            down += sum(LAYOUT[name].size for name in assignment.down)
            up += sum(LAYOUT[name].size for name in assignment.up)
    return Fraction(down), Fraction(up)


def formula(policy: Policy, count: int, last: int) -> tuple[Fraction, Fraction]:
    """The same, in closed form, with K = count, R = last, P parameters, of which S are shared each round.

    Down: K·P once, then K·S. Up: K·R·S; but USPLIT sends P for each of ⌊K/2⌋ pairs, and an odd last silo the
    bottleneck and on average half of the rest. A silo alone sends P.
    """
    shared = LAYOUT.size - sum(LAYOUT[name].size for name in KEPT[policy])
    middle = LAYOUT["bottleneck"].size
    up = Fraction(count * last * shared)
    if policy == "usplit" and count > 1:
        up = last * (count // 2 * LAYOUT.size + count % 2 * (middle + Fraction(LAYOUT.size - middle, 2)))
    return Fraction(count * LAYOUT.size + count * (last - 1) * shared), up


@settings(deadline=None)
@given(policies, st.integers(2, 100), seeds, rosters, st.data())
def test_down_is_what_the_policy_shares_and_everything_for_newcomers(
    policy: Policy, round: int, seed: int, names: set[str], data: st.DataObject
) -> None:
    newcomers = data.draw(st.sets(st.sampled_from(sorted(names))))
    plan = plan_round(policy, round, names, LAYOUT, seed, newcomers)
    assert (plan.round, plan.policy) == (round, policy)
    assert [each.silo for each in plan.assignments] == sorted(names)
    shared = tuple(name for name in LAYOUT.names if name not in KEPT[policy])
    for each in plan.assignments:
        assert each.down == (LAYOUT.names if each.silo in newcomers else shared)
        assert each.personal == KEPT[policy]
        assert not set(each.up) & set(each.personal)
        assert ("whole model" in each.reason) == (each.silo in newcomers)


@settings(deadline=None)
@given(policies, seeds, rosters)
def test_in_round_1_everybody_receives_the_whole_model(policy: Policy, seed: int, names: set[str]) -> None:
    plan = plan_round(policy, 1, names, LAYOUT, seed)
    assert all(each.down == LAYOUT.names for each in plan.assignments)
    assert plan == plan_round(policy, 1, names, LAYOUT, seed, newcomers=names)


@pytest.mark.parametrize(
    ("policy", "up"), [("full", LAYOUT.names), ("ulatdec", (*BOTTLENECK, *DECODER)), ("udec", DECODER)]
)
@settings(deadline=None)
@given(round=rounds, names=rosters)
def test_all_but_usplit_report_what_they_share(
    policy: Policy, up: tuple[str, ...], round: int, names: set[str]
) -> None:
    assert all(each.up == up for each in plan_round(policy, round, names, LAYOUT, 0).assignments)


# --- usplit --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(rounds, seeds)
def test_usplit_of_one_silo_reports_everything(round: int, seed: int) -> None:
    (alone,) = usplit(round, 1, seed)
    assert alone.up == LAYOUT.names


@settings(deadline=None)
@given(rounds, seeds, rosters)
def test_usplit_pairs_cover_the_model_exactly_once(round: int, seed: int, names: set[str]) -> None:
    plan = plan_round("usplit", round, names, LAYOUT, seed)
    by_pair: dict[str, list[Assignment]] = {}
    for each in plan.assignments:
        by_pair.setdefault(each.reason.split(":")[0], []).append(each)
    odd = len(names) % 2
    assert len(by_pair) == len(names) // 2 + odd
    for place, members in by_pair.items():
        sent = Counter(name for each in members for name in each.up)
        if place == "alone":
            assert len(names) == 1
        elif place == "without a partner":
            assert odd
            assert [parts(each.up) for each in members] in ([("encoder", "bottleneck")], [("bottleneck", "decoder")])
            continue
        else:
            assert len(members) == 2
            assert sorted(parts(each.up) for each in members) in (
                [("bottleneck", "decoder"), ("encoder",)],
                [("decoder",), ("encoder", "bottleneck")],
            )
            first, second = members
            assert second.silo in first.reason
            assert first.silo in second.reason
        assert sent == Counter(LAYOUT.names)


def test_usplit_deals_afresh_every_round() -> None:
    deals = [tuple(each.reason for each in usplit(number, 10)) for number in range(2, 40)]
    assert len(set(deals)) == len(deals)
    assert all(before != after for before, after in pairwise(deals))
    other_seed = [tuple(each.reason for each in usplit(number, 10, seed=1)) for number in range(2, 40)]
    assert not set(deals) & set(other_seed)


def test_usplit_is_fair() -> None:
    """Over 600 rounds; the bounds are six standard deviations of a fair coin wide."""
    sent: Counter[str] = Counter()
    with_decoder = last = last_decoder = 0
    partners: Counter[str] = Counter()
    for number in range(2, 602):
        for each in usplit(number, 5):
            sent.update(f"{each.silo} {part}" for part in parts(each.up))
            if each.reason.startswith("without"):
                last += 1
                last_decoder += "decoder" in parts(each.up)
            elif "bottleneck" in parts(each.up):
                with_decoder += "decoder" in parts(each.up)
            if each.silo == "silo-00" and each.reason.startswith("pair"):
                partners[each.reason.split("; ")[1].split()[0]] += 1
    assert last == 600
    assert abs(last_decoder - 300) < 74
    assert abs(with_decoder - 600) < 104
    assert set(partners) == {"silo-01", "silo-02", "silo-03", "silo-04"}
    assert all(abs(count - 120) < 59 for count in partners.values())
    for silo in silos(5):
        assert abs(sent[f"{silo} encoder"] - 300) < 74
        assert abs(sent[f"{silo} decoder"] - 300) < 74
        assert abs(sent[f"{silo} bottleneck"] - 360) < 72


def test_usplit_of_a_model_without_a_bottleneck_still_covers_it() -> None:
    first, second = plan_round("usplit", 1, ["a", "b"], WITHOUT_MIDDLE, 0).assignments
    assert sorted(first.up + second.up) == sorted(WITHOUT_MIDDLE.names)


# --- reproducible, readable, stored --------------------------------------------------------------


@settings(deadline=None)
@given(policies, rounds, seeds, st.lists(st.text("abc", min_size=1, max_size=3), max_size=9), st.randoms())
def test_a_plan_does_not_depend_on_the_order_of_its_silos(
    policy: Policy, round: int, seed: int, names: list[str], random: Random
) -> None:
    plan = plan_round(policy, round, names, LAYOUT, seed, names[:2])
    other = [*names, *names[:1]]
    random.shuffle(other)
    assert plan_round(policy, round, other, LAYOUT, seed, names[:2][::-1]) == plan
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_is_the_same_in_every_process_and_version() -> None:
    """An auditor replays old rounds: a change of these values rewrites history."""
    assert [parts(each.up) for each in usplit(3, 5, seed=7)] == [
        ("bottleneck", "decoder"),
        ("decoder",),
        ("encoder",),
        ("bottleneck", "decoder"),
        ("encoder", "bottleneck"),
    ]


def test_reasons_are_words() -> None:
    pair = plan_round("usplit", 2, ["a", "b"], LAYOUT, 0).assignments
    for each, other in (pair, pair[::-1]):
        sends, gets = (" and ".join(parts(one.up)) for one in (each, other))
        assert each.reason == f"pair 1: {sends}; {other.silo} sends {gets}"
    assert plan_round("udec", 2, ["a"], LAYOUT, 0).assignments[0].reason == "decoder, as every silo"
    assert plan_round("full", 1, ["a"], LAYOUT, 0).reason == "full: 1 silos, 1 of them from the whole model"


PLAN = plan_round("usplit", 2, ["a", "b", "c"], LAYOUT, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("round", "2"), ("round", None), ("policy", "fedavg"), ("assignments", {}), ("assignments", [{"silo": "a"}])],
)
def test_from_json_refuses_what_is_no_plan(key: str, value: object) -> None:
    with pytest.raises(StoreError, match=key):
        Plan.from_json(json.dumps(json.loads(PLAN.to_json()) | {key: value}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", PLAN.to_json()[:-1], "[" * 100_000], ids=lambda text: text[:9])
def test_from_json_refuses_what_is_no_json(text: str) -> None:
    with pytest.raises(StoreError):
        Plan.from_json(text)


# --- what the plans cost -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("last", [1, 15])
def test_the_exchange_is_as_long_as_the_formula_says(policy: Policy, count: int, last: int) -> None:
    assert exchanged(policy, count, last) == formula(policy, count, last)


@pytest.mark.parametrize("count", [3, 5])
def test_for_odd_usplit_the_formula_is_the_mean_and_coins_decide(count: int) -> None:
    encoder, decoder = (sum(LAYOUT[name].size for name in part) for part in (ENCODER, DECODER))
    down, up = exchanged("usplit", count, 15)
    expected_down, mean = formula("usplit", count, 15)
    assert down == expected_down
    # Every coin moves the sum by half the difference of encoder and decoder, up or down.
    coins = (up - mean) / Fraction(encoder - decoder, 2)
    assert coins.denominator == 1
    assert abs(coins) <= 15
    assert coins % 2 == 1


@pytest.mark.parametrize(
    ("policy", "count", "percent"),
    [("full", 10, 0.0), ("usplit", 10, 25.0), ("ulatdec", 10, 41.3), ("udec", 10, 73.6), ("full", 5, 0.0)],
)
def test_savings_are_those_of_the_paper(policy: Policy, count: int, percent: float) -> None:
    """arXiv 2406.12575 at R = 15: both directions, first download included, against 2·K·R·P."""
    saved = 1 - sum(exchanged(policy, count, 15)) / (2 * count * 15 * LAYOUT.size)
    assert round(float(100 * saved), 1) == percent


def test_five_silos_save_23_3_percent_with_usplit_on_average() -> None:
    assert round(float(100 * (1 - sum(formula("usplit", 5, 15)) / (2 * 5 * 15 * LAYOUT.size))), 1) == 23.3


def test_the_layout_has_the_shares_of_the_paper() -> None:
    shares = [sum(LAYOUT[name].size for name in part) / LAYOUT.size for part in (ENCODER, BOTTLENECK, DECODER)]
    assert [round(100 * share, 2) for share in shares] == [42.74, 33.35, 23.91]
