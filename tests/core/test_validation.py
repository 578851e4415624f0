"""core/validation.py against what is known of the loss without any training."""

from __future__ import annotations

import numpy as np
import pytest

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError, WrongShape
from feddiff.core.segments import F32
from feddiff.core.validation import validation_loss

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)
LABELS = np.arange(30, dtype=np.int64) % 10


def rules(**diffusion: object) -> FederationConfig:
    return from_table({"preset": "digits-8", "diffusion": diffusion}, "rules.toml")


def silent(config: FederationConfig) -> dict[str, F32]:
    """A model that answers zero to everything: its output layer is nothing."""
    from feddiff.core import diffusion

    state = diffusion.initial_state(config)
    for name in ("conv_out.weight", "conv_out.bias"):
        state[name] = np.zeros_like(state[name])
    return state


def test_a_model_that_says_nothing_is_off_by_the_variance_of_the_noise() -> None:
    config = rules(prediction="epsilon")
    loss = validation_loss(config, silent(config), PIXELS, LABELS, draws=50)
    assert loss == pytest.approx(1.0, rel=0.01)  # 96,000 draws of chi-squared: 0.5 %


def test_the_velocity_of_noise_images_has_their_variance_where_the_signal_is_gone() -> None:
    """v = a eps - s x: over all levels of the cosine schedule the mean of a^2 + s^2 var(x) is half of each."""
    config = rules()
    variance = float(np.mean((PIXELS / 127.5 - 1) ** 2))
    loss = validation_loss(config, silent(config), PIXELS, LABELS, draws=50)
    assert loss == pytest.approx((1 + variance) / 2, rel=0.02)


def test_is_the_same_every_time_and_another_with_another_seed() -> None:
    from feddiff.core import diffusion

    config = rules()
    state = diffusion.initial_state(config)
    one = validation_loss(config, state, PIXELS, LABELS, draws=2)
    assert validation_loss(config, state, PIXELS, LABELS, draws=2) == one
    assert validation_loss(config, state, PIXELS, LABELS, draws=2, seed=1) != one


def test_huber_counts_large_errors_less() -> None:
    mse, huber = rules(prediction="epsilon"), rules(prediction="epsilon", loss="huber")
    losses = [validation_loss(each, silent(each), PIXELS, LABELS, draws=2) for each in (mse, huber)]
    assert 0.3 < losses[1] / losses[0] < 0.5  # 0.5 e^2 within 1, less beyond


@pytest.mark.parametrize("pixels", [PIXELS[:0], PIXELS[:, :, :7], PIXELS[:, 0]])
def test_images_that_are_not_the_models_are_refused(pixels: np.ndarray) -> None:
    config = rules()
    with pytest.raises(DataError):
        validation_loss(config, silent(config), pixels, LABELS[: len(pixels)])


def test_labels_are_asked_for_and_states_must_fit() -> None:
    config = rules()
    with pytest.raises(DataError, match="label"):
        validation_loss(config, silent(config), PIXELS, None)
    with pytest.raises(WrongShape):
        validation_loss(config, {}, PIXELS, LABELS)
