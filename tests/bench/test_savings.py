"""bench/savings.py: the paper's savings, and that the formula is what the planner assigns."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.bench.savings import FEDDIFFUSE, Parts, exchanged, saved
from feddiff.core.config import POLICIES, Fixed
from feddiff.core.errors import ConfigError
from feddiff.core.segments import Layout, cut
from feddiff.federator.planner import plan_round
from feddiff.federator.sampling import uniform

sizes = st.integers(1, 10_000)
layouts = st.builds(
    lambda conv, down, mid, up, out: cut(
        [
            ("conv_in.weight", (conv,)),
            *((f"down_blocks.{at}.a", (size,)) for at, size in enumerate(down)),
            *(("mid_block.a", (size,)) for size in mid),
            *((f"up_blocks.{at}.a", (size,)) for at, size in enumerate(up)),
            ("conv_out.weight", (out,)),
        ]
    ),
    sizes,
    st.lists(sizes, min_size=1, max_size=4),
    st.lists(sizes, max_size=1),
    st.lists(sizes, min_size=1, max_size=4),
    sizes,
)


def assigned(plan: Fixed, layout: Layout, silos: int, taken: int, rounds: int, seed: int) -> tuple[int, int]:
    """Parameters down and up by the planner's own assignments, to the silos that are sampled."""
    names, met, down, up = [f"silo-{number}" for number in range(silos)], set[str](), 0, 0
    past: list[tuple[str, ...]] = []
    for number in range(1, rounds + 1):
        here = uniform(names, taken, seed, number, past).silos
        for each in plan_round(plan, number, here, layout, seed, set(here) - met).assignments:
            down += sum(layout[name].size for name in each.down)
            up += sum(layout[name].size for name in each.up)
        past.append(here)
        met.update(here)
    return down, up


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(POLICIES), layouts, st.integers(1, 7), st.integers(1, 6), st.integers(0, 2**32), st.data())
def test_the_formula_is_what_the_planner_assigns(
    plan: Fixed, layout: Layout, silos: int, rounds: int, seed: int, data: st.DataObject
) -> None:
    taken = data.draw(st.integers(1, silos))
    parts = Parts.of(layout)
    down, up = assigned(plan, layout, silos, taken, rounds, seed)
    found = exchanged(plan, parts, silos, rounds, taken)
    assert parts.size == layout.size
    assert found.down == down
    if plan == "usplit" and taken > 1 and taken % 2:
        # Each round's coin moves the sum by half of what encoder and decoder differ by.
        assert abs(found.up - up) <= rounds * Fraction(abs(parts.encoder - parts.decoder), 2)
    else:
        assert found.up == up


@pytest.mark.parametrize(
    ("plan", "silos", "percent"),
    [("full", 10, 0.0), ("usplit", 10, 25.0), ("ulatdec", 10, 41.3), ("udec", 10, 73.6), ("usplit", 5, 23.3)],
)
def test_the_savings_are_those_of_the_paper(plan: Fixed, silos: int, percent: float) -> None:
    assert round(100 * saved(plan, FEDDIFFUSE, silos, 15), 1) == percent


def test_the_papers_network_is_the_papers() -> None:
    assert FEDDIFFUSE.size == 2_996_315
    assert FEDDIFFUSE.shares == "42.74 % encoder, 33.35 % bottleneck, 23.91 % decoder"


@given(st.sampled_from(POLICIES), st.integers(1, 9), st.integers(1, 9))
def test_a_model_that_silos_make_themselves_does_not_come_down(plan: Fixed, silos: int, rounds: int) -> None:
    sent, made = (exchanged(plan, FEDDIFFUSE, silos, rounds, sent=each) for each in (True, False))
    assert sent.down - made.down == silos * FEDDIFFUSE.size
    assert sent.up == made.up


def test_of_sampled_silos_each_needs_the_whole_model_once() -> None:
    found = exchanged("udec", Parts(10, 20, 30), 5, 4, sampled=2)
    assert (found.down, found.up) == (5 * 60 + 3 * 30, 8 * 30)
    assert exchanged("udec", Parts(10, 20, 30), 50, 4, sampled=2).down == 8 * 60
    assert exchanged("full", FEDDIFFUSE, 50, 15, sampled=10).total == 2 * 10 * 15 * FEDDIFFUSE.size


@pytest.mark.parametrize(("silos", "rounds", "sampled"), [(0, 1, None), (1, 0, None), (2, 2, 3), (2, 2, 0)])
def test_what_cannot_be_is_refused(silos: int, rounds: int, sampled: int | None) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        exchanged("full", FEDDIFFUSE, silos, rounds, sampled)
