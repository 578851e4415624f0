"""core/sharing.py: every segment is shared, personal or frozen, and what cannot be is said by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from feddiff.core.config import FederationConfig, from_table, parse
from feddiff.core.errors import ConfigError
from feddiff.core.segments import cut
from feddiff.core.sharing import SHARED, share, stays

NAMES = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out")
LAYOUT = cut((f"{name}.weight", (3,)) for name in NAMES)
ENCODER, DECODER = ("encoder.in", "encoder.0", "encoder.1"), ("decoder.0", "decoder.1", "decoder.out")
LEGACY = "55789d90a4c684ebaa066b37227ccb29efb075a767aab8d5ba0d17e35dab86bf"
"""Digest of digits-16 with three rounds, five participants and a quorum of 4, from before there were these keys."""


BUDGET = {"plan": "budget", "budget": {"bytes_per_silo": 10**6}}


def digits(**sections: Any) -> FederationConfig:
    return from_table({"preset": "digits-16", **sections}, "rules.toml")


@pytest.mark.parametrize(
    ("plan", "personal", "frozen", "shared", "own", "fixed"),
    [
        ("full", (), (), LAYOUT.names, (), ()),
        ("full", (), 0, LAYOUT.names, (), ()),
        ("full", ("decoder.1",), (), (*ENCODER, "bottleneck", "decoder.0", "decoder.out"), ("decoder.1",), ()),
        ("full", (), 3, ("bottleneck", *DECODER), (), ENCODER),
        ("full", (), ("encoder", "decoder.out"), ("bottleneck", "decoder.0", "decoder.1"), (), (*ENCODER, DECODER[2])),
        ("full", ("decoder.out",), 4, ("decoder.0", "decoder.1"), ("decoder.out",), (*ENCODER, "bottleneck")),
        ("usplit", ("decoder.1",), 1, ("encoder.0", "encoder.1", "bottleneck", DECODER[0], DECODER[2]),
         ("decoder.1",), ("encoder.in",)),
        ("ulatdec", ("decoder.1",), (), ("bottleneck", "decoder.0", "decoder.out"), (*ENCODER, "decoder.1"), ()),
        ("udec", ("encoder.0",), 1, DECODER, ("encoder.0", "encoder.1", "bottleneck"), ("encoder.in",)),
    ],
)  # fmt: skip
def test_what_travels_is_what_the_plan_shares_less_what_is_personal_or_frozen(
    plan: str,
    personal: tuple[str, ...],
    frozen: int | tuple[str, ...],
    shared: tuple[str, ...],
    own: tuple[str, ...],
    fixed: tuple[str, ...],
) -> None:
    found = share(LAYOUT, plan, personal, frozen)
    assert (found.shared, found.personal, found.frozen) == (shared, own, fixed)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SHARED)),
    st.lists(st.sampled_from([*LAYOUT.names, "encoder", "decoder"]), max_size=3),
    st.integers(0, 6) | st.lists(st.sampled_from([*LAYOUT.names, "encoder"]), max_size=3),
)
def test_every_segment_is_in_one_of_the_three_and_in_order(
    plan: str, personal: list[str], frozen: int | list[str]
) -> None:
    try:
        found = share(LAYOUT, plan, personal, frozen)
    except ConfigError:
        assume(False)
    kinds = (found.shared, found.personal, found.frozen)
    assert sorted(sum(kinds, ())) == sorted(LAYOUT.names)
    assert all(list(kind) == [name for name in LAYOUT.names if name in kind] for kind in kinds)
    assert {LAYOUT[name].part for name in found.shared} <= set(SHARED[plan])
    for name in found.shared:
        assert not stays(name, plan, personal)
    for name in found.personal:
        assert stays(name, plan, personal)


@pytest.mark.parametrize(
    ("plan", "personal", "frozen", "says"),
    [
        ("full", ("decoder.3",), (), "no segment is meant by 'decoder.3'; known: all, encoder,"),
        ("full", (), ("mid",), "no segment is meant by 'mid'; known"),
        ("full", (), 8, "frozen = 8, but the model has 7 segments: encoder.in, encoder.0"),
        ("full", (), 7, "there is nothing to train"),
        ("full", ("encoder",), 2, "encoder.in, encoder.0 cannot be both personal and frozen"),
        ("full", ("all",), (), "plan full has nothing left to share"),
        ("udec", ("decoder.0",), ("decoder.1", "decoder.out"), "plan udec has nothing left to share"),
        ("usplit", ("decoder",), (), "has no decoder left to share"),
        ("usplit", (), 3, "has no encoder left to share"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    plan: str, personal: tuple[str, ...], frozen: int | tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        share(LAYOUT, plan, personal, frozen)
    assert says in str(caught.value)


def test_a_silo_knows_by_name_alone_what_stays() -> None:
    assert stays("decoder.1", "full", ["decoder.1"])
    assert not stays("decoder.11", "full", ["decoder.1"])
    assert stays("decoder.out", "full", ["decoder"])
    assert stays("bottleneck", "udec")
    assert not stays("bottleneck", "ulatdec")
    assert stays("bottleneck", "full", ["all"])


def test_rules_that_keep_nothing_have_the_digest_of_before() -> None:
    rounds = {"count": 3, "participants": 5, "quorum": 4}
    nothing: tuple[dict[str, Any], ...] = ({}, {"personal": []}, {"frozen": 0}, {"frozen": []})
    for keys in nothing:
        assert digits(rounds=rounds, **keys).digest == LEGACY, keys
    kept: tuple[dict[str, Any], ...] = ({"personal": ["decoder"]}, {"frozen": 2}, {"frozen": ["encoder"]})
    others = [digits(rounds=rounds, **keys) for keys in kept]
    assert len({LEGACY, *(each.digest for each in others)}) == 4
    for each in others:
        assert parse(each.canonical()) == each
        assert parse(each.canonical()).digest == each.digest


def test_with_personal_segments_there_is_no_global_model_and_silos_measure_their_own() -> None:
    quality = {"extractor": "a" * 64, "reference": "federated"}
    own, fixed = digits(personal=["decoder.1"], quality=quality), digits(frozen=3, quality=quality)
    assert (own.has_global_model, own.silos_measure, own.wants_statistics) == (False, True, False)
    assert (fixed.has_global_model, fixed.silos_measure, fixed.wants_statistics) == (True, False, True)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"frozen": -1}, "frozen"),
        ({"frozen": True}, "frozen"),
        ({"personal": "decoder.1"}, "personal: must be a list"),
        ({**BUDGET, "personal": ["decoder"]}, "leave personal and frozen out"),
        ({**BUDGET, "frozen": 1}, "leave personal and frozen out"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        digits(**keys)
