"""What a round moves and a disk must hold, out of rules and layout alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.segments import Layout, cut
from feddiff.core.volume import federator_disk, payload, silo_disk, training_memory, volume

SIZES = {"conv_in.w": 3000, "down_blocks.0.w": 5000, "mid_block.w": 2000, "up_blocks.0.w": 7000, "conv_out.w": 1000}
LAYOUT: Layout = cut((name, [size]) for name, size in SIZES.items())
CHUNK = 1024


def rules(**more: Any) -> FederationConfig:
    model = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    table = {"model": model, "codec": {"chunk_elements": CHUNK}, "training": {"epochs": 1}, **more}
    return from_table(table, "the test")


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 5000))
def test_no_transfer_is_larger_than_said(codec: str, count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count, np.float32)
    base = np.zeros(count, np.float32)
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
    sent = sum(len(CODECS[codec].encode(values[each], base[each])) for each in chunks)
    assert sent <= payload(codec, count, CHUNK)


def fp32(*names: str) -> int:
    return sum(payload("fp32", SIZES[name], CHUNK) for name in names)


DECODER, ENCODER = ("up_blocks.0.w", "conv_out.w"), ("conv_in.w", "down_blocks.0.w")


@pytest.mark.parametrize(
    ("plan", "down", "up"),
    [
        ("full", (*ENCODER, "mid_block.w", *DECODER), (*ENCODER, "mid_block.w", *DECODER)),
        ("usplit", (*ENCODER, "mid_block.w", *DECODER), ("mid_block.w", *DECODER)),
        ("ulatdec", ("mid_block.w", *DECODER), ("mid_block.w", *DECODER)),
        ("udec", DECODER, DECODER),
    ],
)
def test_each_plan_moves_its_parts(plan: str, down: tuple[str, ...], up: tuple[str, ...]) -> None:
    found = volume(rules(plan=plan), LAYOUT)
    whole = sum(payload("fp32", segment.size, CHUNK) for segment in LAYOUT.segments)
    joined = {segment.name: segment.size for segment in LAYOUT.segments}
    assert joined["encoder.in"] == SIZES["conv_in.w"]
    assert (found.down, found.up, found.first) == (fp32(*down), fp32(*up), whole)
    assert found.round == found.down + found.up


def test_frozen_segments_a_seed_and_a_budget_move_less() -> None:
    full = volume(rules(), LAYOUT)
    assert volume(rules(frozen=["encoder"]), LAYOUT).down == full.down - fp32(*ENCODER)
    assert volume(rules(initial="seed"), LAYOUT).first == 0
    thrifty = volume(rules(plan="budget", budget={"bytes_per_silo": 30_000}), LAYOUT)
    assert thrifty.round <= 30_000
    shared = volume(rules(plan="budget", budget={"bytes_per_round": 30_000}, rounds={"participants": 3}), LAYOUT)
    assert shared.round <= 10_000


def test_what_a_disk_must_hold_grows_with_what_is_kept() -> None:
    plain, whole = rules(), 4 * LAYOUT.size
    assert silo_disk(plain, LAYOUT) > 9 * whole  # held, trained twice, checkpoint twice
    averaged = rules(training={"epochs": 1, "ema_decay": 0.9})
    assert silo_disk(averaged, LAYOUT) - silo_disk(plain, LAYOUT) == 4 * whole
    assert training_memory(averaged, LAYOUT) - training_memory(plain, LAYOUT) == whole
    more = federator_disk(plain, LAYOUT, 5) - federator_disk(plain, LAYOUT, 2)
    assert more == 3 * volume(plain, LAYOUT).up
    kept = federator_disk(rules(keep_versions=4), LAYOUT, 2) - federator_disk(rules(keep_versions=3), LAYOUT, 2)
    assert kept == whole + volume(plain, LAYOUT).down
