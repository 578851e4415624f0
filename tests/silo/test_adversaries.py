"""A DCGAN's training: losses by hand, whose step moves whom, the same bits after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer import blobs, on, same
from torch.nn.functional import binary_cross_entropy_with_logits

from feddiff.core import dcgan, network
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import NotFinite
from feddiff.core.segments import F32
from feddiff.silo.adversaries import Adversaries
from feddiff.silo.trainer import Progress, Trained, train

RATE = 0.01
EVERYTHING = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "horizontal_flip": True,
    "ema_decay": 0.9,
    "clip": 0.5,
    "proximal": 0.1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent in Adam's place: w - rate * gradient."""

    @torch.no_grad()
    def step(self: torch.optim.Adam) -> None:
        for group in self.param_groups:
            assert group["betas"] == (0.5, 0.999)
            for weight in group["params"]:
                weight -= group["lr"] * weight.grad

    monkeypatch.setattr(torch.optim.Adam, "step", step)


def federation(**training: Any) -> FederationConfig:
    rules = {"batch_size": 8, "learning_rate": RATE, **training}
    if "steps" in rules:
        rules["epochs"] = None
    rules = {name: value for name, value in rules.items() if value is not None}
    return from_table({"preset": "dcgan-8", "model": {"channels": [8, 6], "latent": 4}, "training": rules}, "test")


def run(config: FederationConfig, count: int = 20, seed: int = 1, **options: Any) -> Trained:
    done = train(config, dcgan.initial_state(config), blobs(count), seed, **{"progress": on, **options})
    assert done is not None
    return done


def by_hand(config: FederationConfig, state: dict[str, F32], count: int, seed: int = 5) -> tuple[Any, dict[str, F32]]:
    """One step of each network on ``count`` images, plain gradient descent: the losses, and the state."""
    model = dcgan.loaded(config, state).train()
    pixels = torch.from_numpy(blobs(count).pixels)
    latent = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    clean, drawn = pixels.float() / 127.5 - 1, model.generator(latent)
    real, fake = model.discriminator(clean), model.discriminator(drawn.detach())
    ones, zeros = torch.ones(count), torch.zeros(count)
    against = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(fake, zeros)
    gradients = torch.autograd.grad(against, [*model.discriminator.parameters()])
    with torch.no_grad():
        for weight, gradient in zip(model.discriminator.parameters(), gradients, strict=True):
            weight -= RATE * gradient
    fooled = binary_cross_entropy_with_logits(model.discriminator(drawn), ones)
    gradients = torch.autograd.grad(fooled, [*model.generator.parameters()])
    with torch.no_grad():
        for weight, gradient in zip(model.generator.parameters(), gradients, strict=True):
            weight -= RATE * gradient
    return (float(against.detach()), float(fooled.detach())), network.read_state(model)


@pytest.mark.usefixtures("plain")
def test_a_step_is_the_discriminators_and_then_the_generators() -> None:
    config = federation()
    state = dcgan.initial_state(config)
    side = Adversaries(config, state, None, 1, ())
    told = side.step(torch.from_numpy(blobs(8).pixels), None, torch.Generator().manual_seed(5))
    losses, expected = by_hand(config, state, 8)
    assert told == pytest.approx(sum(losses), rel=1e-5)
    assert side.losses == pytest.approx({"discriminator_loss": losses[0], "generator_loss": losses[1]}, rel=1e-5)
    found = side.state()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not np.array_equal(array, state[name]), f"{name} does not move"


def test_who_cannot_tell_has_the_loss_of_a_coin() -> None:
    config = federation(steps=1)
    mute = dcgan.initial_state(config)
    for name in mute:
        if name.startswith("discriminator.") and name.endswith(("weight", "bias")):
            mute[name][:] = 0
    done = train(config, mute, blobs(8), 1, progress=on)
    assert done is not None
    assert done.metrics["discriminator_loss"] == pytest.approx(2 * math.log(2), rel=1e-5)
    assert done.metrics["loss"] == done.metrics["discriminator_loss"] + done.metrics["generator_loss"]
    assert done.metrics["loss"] == done.metrics["first_loss"]


def test_the_running_statistics_follow_what_is_drawn_and_shown() -> None:
    """The first layer's of the generator: after one step a tenth of the way from (0, 1) to the batch's own."""
    config = federation(steps=1)
    model = dcgan.build(config)
    done = Adversaries(config, dcgan.initial_state(config), None, 1, ())
    done.step(torch.from_numpy(blobs(8).pixels), None, torch.Generator().manual_seed(5))
    with torch.no_grad():
        seen = model.generator[:2](torch.randn(8, 4, generator=torch.Generator().manual_seed(5)))
    state = done.state()
    np.testing.assert_allclose(state["generator.2.running_mean"], 0.1 * seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(state["generator.2.running_var"], 0.9 + 0.1 * seen.var((0, 2, 3)), rtol=1e-4)


@pytest.mark.usefixtures("plain")
def test_the_proximal_term_pulls_both_back_and_a_clip_shortens_each() -> None:
    config = federation(steps=1)
    state, pixels = dcgan.initial_state(config), torch.from_numpy(blobs(8).pixels)

    def moved(before: dict[str, F32], side: str, **training: Any) -> Any:
        """After a step from ``before``, of a training that began at ``state``; the step's weights alone."""
        names = [name for name, _ in dcgan.build(config).named_parameters() if name.startswith(side)]
        learning = Adversaries(federation(**training), state, None, 1, list(state))
        network.load_state(learning._model, before)
        learning.step(pixels, None, torch.Generator().manual_seed(5))
        return np.concatenate([(learning.state()[name] - before[name]).ravel() for name in names]).astype(np.float64)

    away = {name: array + np.float32(0.05) if "running" not in name else array for name, array in state.items()}
    free, held = moved(away, "discriminator"), moved(away, "discriminator", proximal=2.0)
    np.testing.assert_allclose(held, free - RATE * 2.0 * 0.05, atol=1e-5)
    for side in ("generator", "discriminator"):
        half = np.linalg.norm(moved(away, side)) / 2
        assert np.linalg.norm(moved(away, side, clip=float(half / RATE))) == pytest.approx(half, rel=1e-2)


def test_the_moving_average_is_of_weights_and_statistics() -> None:
    config = federation(steps=1, ema_decay=0.75)
    start, done = dcgan.initial_state(config), run(config, 8)
    assert done.ema is not None
    assert done.ema.keys() == start.keys()
    for name, array in done.ema.items():
        np.testing.assert_allclose(array, 0.75 * start[name] + 0.25 * done.state[name], atol=1e-6)


def test_the_round_decides_the_rate() -> None:
    table = {"preset": "dcgan-8", "rounds": {"count": 4}, "training": {"schedule": "linear", "steps": 1}}
    config = from_table(table, "test")
    state = dcgan.initial_state(config)
    rates = [
        group["lr"]
        for round in (1, 3)
        for side in Adversaries(config, state, None, round, ())._sides.values()
        for group in side.optimizer.param_groups
    ]
    assert rates == pytest.approx([config.training.learning_rate * factor for factor in (1, 1, 0.5, 0.5)])


@pytest.mark.parametrize("training", [{}, EVERYTHING, {"steps": 8}], ids=["plain", "everything", "steps"])
def test_a_killed_training_ends_with_the_bits_of_one_left_alone(tmp_path: Path, training: dict[str, Any]) -> None:
    config = federation(**training)
    torch.manual_seed(1)
    whole = run(config, shared=list(dcgan.initial_state(config)))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    checkpoint, seen = tmp_path / "round.safetensors", list[Progress]()
    options = {"shared": list(dcgan.initial_state(config)), "checkpoint": checkpoint}

    def dying(report: Progress) -> bool:
        if report.step == 6:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        run(config, checkpoint_every=0, **{**options, "progress": dying})
    resumed = run(config, **{**options, "progress": lambda report: seen.append(report) is None})
    assert seen[0].step > 6, "it began from the beginning"
    assert same(whole.state, resumed.state)
    assert same(whole.ema, resumed.ema)
    assert torch.equal(before, torch.get_rng_state())
    names = [name for name in whole.metrics if name.endswith("loss")]
    assert len(names) == 4
    assert {name: whole.metrics[name] for name in names} == {name: resumed.metrics[name] for name in names}
    again = run(config, **{**options, "checkpoint_every": 0})
    assert again.metrics["generator_loss"] == whole.metrics["generator_loss"]
    assert not same(whole.state, run(config, seed=2, shared=options["shared"]).state)


def test_a_generator_that_breaks_is_named() -> None:
    config = federation(learning_rate=10.0, epochs=50)
    poisoned = {name: array * np.float32(1e30) for name, array in dcgan.initial_state(config).items()}
    with pytest.raises(NotFinite, match="at step 1 of 150"):
        train(config, poisoned, blobs(20), 1, progress=on)
