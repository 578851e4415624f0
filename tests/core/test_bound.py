"""What an encoded chunk can weigh at most, which a plan counts on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from feddiff.core.codec import CODECS, payload_bound
from feddiff.core.segments import F32

finite = st.floats(-60_000, 60_000, width=32)


def bumps(count: int, sigma: float, seed: int = 0) -> F32:
    """Values that int2 rounds up as far as can be, with a step of 1: they take more bits than Gaussian ones."""
    whole = np.rint(np.random.default_rng(seed).standard_normal(count) * sigma)
    return (np.sign(whole) * np.maximum(np.abs(whole) - 0.49, 0)).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=40)
@given(values=arrays.arrays(np.float32, st.integers(0, 3000), elements=finite), scale=st.sampled_from([1.0, 1e-3]))
def test_no_payload_exceeds_it(name: str, values: F32, scale: float) -> None:
    codec, values = CODECS[name], values * np.float32(scale)
    for base in (None, np.zeros(values.size, np.float32)):
        payload, decoded = codec.settle(values, base)
        assert len(payload) <= codec.bound(values.size) <= payload_bound(values.size)
        assert np.array_equal(codec.decode(payload, values.size, base), decoded)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [1024, 65_536])
def test_for_what_training_gives_it_is_near(name: str, count: int) -> None:
    """Gaussian changes whose blocks differ in size; what is only raw bytes behind zstd leaves it more room."""
    random = np.random.default_rng(1)
    scales = np.repeat(np.exp(random.standard_normal(count // 256)), 256)
    values = (random.standard_normal(count) * scales).astype(np.float32)
    room = {"int8": 1.2, "int4": 1.06, "int2": 1.08}.get(name, 3.0)
    assert CODECS[name].bound(count) < room * len(CODECS[name].encode(values, np.zeros(count, np.float32)))


@pytest.mark.parametrize(("count", "sigma"), [(65_536, 1.3), (1024, 1.3)])
def test_what_would_exceed_it_gets_wider_steps(count: int, sigma: float) -> None:
    codec, values = CODECS["int2"], bumps(count, sigma)
    payload, decoded = codec.settle(values, None)
    assert len(payload) <= codec.bound(count)
    assert np.array_equal(codec.decode(payload, count, None), decoded)
    # The error stays that of a few bits: wider steps, not garbage.
    assert np.linalg.norm(decoded - values) < 0.7 * np.linalg.norm(values)


def test_whole_segments_of_extremes_are_encoded() -> None:
    largest = np.finfo(np.float32).max
    for name in ("int8", "int4", "int2", "topk10"):
        values = np.where(np.arange(5000) % 3, largest, -largest).astype(np.float32)
        assert len(CODECS[name].encode(values, None)) <= CODECS[name].bound(5000)


def test_coarser_is_smaller() -> None:
    for finer, coarser in pairwise(("fp32", "fp16", "int8", "int4", "int2", "topk10", "topk3", "topk")):
        assert CODECS[coarser].bound(65_536) < CODECS[finer].bound(65_536)
