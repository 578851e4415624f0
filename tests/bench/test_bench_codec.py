from __future__ import annotations

import numpy as np
import pytest

from feddiff.bench.codec import HEADER, Chunks, measure
from feddiff.core.codec import CODECS


def steady(rounds: int) -> list[Chunks]:
    """A training that takes the same step each round."""
    steps = [np.random.default_rng(seed).standard_normal(5000).astype(np.float32) for seed in range(2)]
    return [[np.float32(number) * step for step in steps] for number in range(rounds + 1)]


def test_nothing_is_lost_without_loss() -> None:
    found = measure(CODECS["fp32"], steady(3))
    assert (found.round, found.sum, found.feedback) == (0, 0, 0)
    assert found.ratio > 1


def test_steady_losses_add_up_unless_they_are_fed_back() -> None:
    found = measure(CODECS["int2"], steady(10))
    assert 0.2 < found.round < 0.3
    assert found.sum == pytest.approx(found.round, rel=0.01)
    assert found.feedback < found.round / 5
    assert 12 < found.ratio < 15


def test_a_line_has_a_column_for_each_of_the_headers() -> None:
    line = str(measure(CODECS["topk"], steady(1)))
    assert len(line) == len(HEADER)
