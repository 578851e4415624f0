"""The planner with personal and frozen segments: they are planned for nobody, once the initial model is there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.bench.savings import Parts, exchanged
from feddiff.core.config import POLICIES, Fixed
from feddiff.core.segments import cut
from feddiff.core.sharing import share
from feddiff.federator.planner import Assignment, plan_round

SIZES = {"conv_in": 7, "down_blocks.0": 11, "mid_block": 13, "up_blocks.0": 17, "up_blocks.1": 19, "conv_out": 23}
LAYOUT = cut((f"{name}.weight", (size,)) for name, size in SIZES.items())


def planned(plan: Fixed, round: int, silos: int, newcomers: tuple[str, ...] = ()) -> list[Assignment]:
    """With the last decoder block personal and the first segment frozen."""
    sharing = share(LAYOUT, plan, ["decoder.1"], 1)
    names = [f"silo-{number}" for number in range(silos)]
    return list(plan_round(plan, round, names, LAYOUT, 3, newcomers, sharing).assignments)


@pytest.mark.parametrize(
    ("plan", "travels", "personal"),
    [
        ("full", ("encoder.0", "bottleneck", "decoder.0", "decoder.out"), ("decoder.1",)),
        ("ulatdec", ("bottleneck", "decoder.0", "decoder.out"), ("encoder.0", "decoder.1")),
        ("udec", ("decoder.0", "decoder.out"), ("encoder.0", "bottleneck", "decoder.1")),
    ],
)
def test_down_and_up_are_what_is_left_of_the_plan(
    plan: Fixed, travels: tuple[str, ...], personal: tuple[str, ...]
) -> None:
    known, new = planned(plan, 2, 2, ("silo-1",))
    assert (known.down, known.up, known.personal) == (travels, travels, personal)
    assert (new.down, new.up, new.personal) == (LAYOUT.names, travels, personal)
    assert all(each.down == LAYOUT.names and each.up == travels for each in planned(plan, 1, 2))


@settings(deadline=None)
@given(st.integers(2, 50), st.integers(1, 7))
def test_usplit_deals_what_is_left_of_encoder_and_decoder(round: int, silos: int) -> None:
    shared = ("encoder.0", "bottleneck", "decoder.0", "decoder.out")
    for each in planned("usplit", round, silos):
        assert each.down == shared
        assert each.up
        assert set(each.up) <= set(shared)
        for part in ("encoder", "decoder"):
            whole = [name for name in shared if name.startswith(part)]
            assert [name for name in each.up if name.startswith(part)] in ([], whole)


def test_the_reason_says_what_is_left_out() -> None:
    assert planned("full", 2, 1)[0].reason == "everything, as every silo, without encoder.in, decoder.1"
    assert planned("udec", 2, 1)[0].reason == "decoder, as every silo, without decoder.1"


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(POLICIES), st.sampled_from([1, 2, 4, 6]), st.integers(1, 5))
def test_the_closed_form_of_the_exchange_holds(plan: Fixed, silos: int, rounds: int) -> None:
    down = up = 0
    for number in range(1, rounds + 1):
        for each in planned(plan, number, silos):
            down += sum(LAYOUT[name].size for name in each.down)
            up += sum(LAYOUT[name].size for name in each.up)
    kept = Parts.of(LAYOUT, ("encoder.in", "decoder.1"))
    assert kept == Parts(7, 0, 19)
    found = exchanged(plan, Parts.of(LAYOUT), silos, rounds, kept=kept)
    assert (found.down, found.up) == (down, up)


def test_the_exchange_of_phoenix_by_hand() -> None:
    """Two silos, three rounds, everything but 19 of 90 parameters: 2 x (90 + 2 x 71) down, 6 x 71 up."""
    found = exchanged("full", Parts.of(LAYOUT), 2, 3, kept=Parts.of(LAYOUT, ("decoder.1",)))
    assert (found.down, found.up) == (464, 426)
