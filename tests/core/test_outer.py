"""The outer optimizers against their papers' formulas, by hand, and across rounds from disk."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from feddiff.core.outer import Outer, step
from feddiff.core.sections import OuterConfig

W = np.array([1.0, -2.0, 0.5], np.float32)
MEAN = np.array([0.9, -1.0, 0.5], np.float64)
G = np.array([0.1, -1.0, 0.0])


def config(optimizer: str, rate: float = 1.0) -> OuterConfig:
    return OuterConfig.model_validate({"optimizer": optimizer, "learning_rate": rate, "momentum": 0.9})


def test_sgd_with_rate_one_is_the_mean_bit_for_bit() -> None:
    assert step(config("sgd"), W, MEAN, {}) is MEAN


@pytest.mark.parametrize(
    ("optimizer", "first", "second"),
    [
        ("sgd", 0.7 * G, 0.7 * G),
        ("momentum", 0.7 * G, 0.7 * 1.9 * G),
        ("nesterov", 0.7 * 1.9 * G, 0.7 * (G + 0.9 * 1.9 * G)),
    ],
)
def test_two_steps_with_the_same_pseudo_gradient(
    tmp_path: Path, optimizer: str, first: np.ndarray, second: np.ndarray
) -> None:
    """Moments go from one step to the next through their file; here the pseudo-gradient is G both times."""
    weights = W.copy()
    for version, expected in enumerate((first, second)):
        before, after = tmp_path / f"s@{version}", tmp_path / f"s@{version + 1}"
        with closing(Outer(config(optimizer, 0.7), before, after, W.size)) as outer:
            new = outer.step(0, weights, weights - G)
            outer.commit()
        assert new == pytest.approx(weights - expected, rel=1e-6)
        weights = new.astype(np.float32)


@pytest.mark.parametrize("optimizer", ["adam", "yogi"])
def test_adaptive_first_step(optimizer: str) -> None:
    """Reddi et al. 2021, algorithm 2: v starts at tau^2; where the pseudo-gradient is 0, nothing moves."""
    settings, tau = config(optimizer, 0.1), 1e-3
    moments = {"m": np.zeros(3), "v": np.full(3, tau**2)}
    new = step(settings, W, MEAN, moments)
    m, square = 0.1 * (W - MEAN), (W - MEAN) ** 2
    v = 0.99 * tau**2 + 0.01 * square if optimizer == "adam" else tau**2 + 0.01 * square * np.sign(square - tau**2)
    assert new == pytest.approx(W - 0.1 * m / (np.sqrt(v) + tau))
    assert new[2] == W[2]


def test_a_step_that_was_not_committed_leaves_no_moments(tmp_path: Path) -> None:
    with closing(Outer(config("nesterov"), tmp_path / "s@0", tmp_path / "s@1", W.size)) as outer:
        outer.step(0, W, MEAN)
    assert list(tmp_path.iterdir()) == []
    with closing(Outer(config("nesterov"), tmp_path / "s@0", tmp_path / "s@1", W.size)) as outer:
        again = outer.step(0, W, MEAN)
        outer.commit()
    assert again == pytest.approx(W - 1.9 * (W - MEAN))
    assert [path.name for path in tmp_path.iterdir()] == ["s@1"]
