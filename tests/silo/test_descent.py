"""A training step in closed form: proximal term, clipping, accumulation, the round's learning rate.

Adam's step is replaced by plain gradient descent's, w - rate * gradient, of which the result can be told by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer import blobs, federation, on, run, same

from feddiff.core.diffusion import initial_state
from feddiff.core.segments import F32
from feddiff.silo.proximal import Proximal
from feddiff.silo.trainer import Progress, train

RATE = 0.01
HELD = ("conv_out.weight", "mid_block.attentions.0.to_q.weight", "up_blocks.0.resnets.0.conv1.weight")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent in Adam's place."""

    @torch.no_grad()
    def step(self: torch.optim.Adam) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * weight.grad

    monkeypatch.setattr(torch.optim.Adam, "step", step)


def trained(count: int = 8, **training: Any) -> dict[str, F32]:
    """The weights after a training on so many images."""
    options = {each: training.pop(each) for each in ("round", "shared") if each in training}
    rounds = training.pop("rounds", {})
    config = federation(training={"learning_rate": RATE, **training}, rounds=rounds)
    return run(config, blobs(count), **options).state


def flat(state: dict[str, F32]) -> np.ndarray:
    return np.concatenate([state[name].ravel() for name in sorted(state)]).astype(np.float64)


def test_the_terms_gradient_is_autograds() -> None:
    """Of F(w) + mu/2 |w - w_t|^2 with some F, away from w_t; a parameter that is not shared has F's alone."""
    generator = torch.Generator().manual_seed(3)
    start = {name: torch.randn(4, 3, generator=generator) for name in ("shared", "own")}
    moved = {name: value + torch.randn(4, 3, generator=generator) for name, value in start.items()}

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return (weights["shared"] * weights["own"]).sin().sum()

    weights = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    term = Proximal(0.7, weights, ["shared"])
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(moved[name])
    loss(dict(weights)).backward()
    term.pull()

    exact = {name: value.clone().requires_grad_() for name, value in moved.items()}
    (loss(exact) + 0.7 / 2 * (exact["shared"] - start["shared"]).square().sum()).backward()
    for name in weights:
        torch.testing.assert_close(weights[name].grad, exact[name].grad)


@pytest.mark.usefixtures("plain")
def test_two_steps_with_the_proximal_term() -> None:
    """w_2 = w_1 - rate (g(w_1) + mu (w_1 - w_0)): it lacks, at the first step, and pulls back at the second."""
    known = initial_state(federation())
    held = [name for name in HELD if name in known]
    assert len(held) >= 2
    one, two = (trained(8, steps=steps) for steps in (1, 2))
    assert same(one, trained(8, steps=1, proximal=5.0, shared=held))
    pulled = trained(8, steps=2, proximal=5.0, shared=held)
    for name, weights in pulled.items():
        if name in held:
            expected = two[name] - RATE * 5.0 * (one[name].astype(np.float64) - known[name])
            np.testing.assert_allclose(weights, expected, rtol=0, atol=2e-7)
            assert not np.array_equal(weights, two[name])
        else:
            assert np.array_equal(weights, two[name])
    assert same(two, trained(8, steps=2, proximal=5.0)), "nothing is shared, so nothing is held"


@pytest.mark.usefixtures("plain")
def test_a_gradient_is_cut_to_the_norm_that_clip_says() -> None:
    start = flat(initial_state(federation()))
    move = flat(trained(steps=1)) - start
    norm = float(np.linalg.norm(move)) / RATE
    clipped = flat(trained(steps=1, clip=norm / 4)) - start
    assert np.linalg.norm(clipped) == pytest.approx(RATE * norm / 4, rel=1e-3)
    np.testing.assert_allclose(clipped, move / 4, rtol=0, atol=1.5e-7)
    assert same(trained(steps=1), trained(steps=1, clip=norm * 1.01))


@pytest.mark.usefixtures("plain")
def test_the_proximal_term_is_in_the_gradient_that_is_clipped() -> None:
    held = list(initial_state(federation()))
    one, two = (flat(trained(steps=steps, proximal=1e4, shared=held, clip=0.01)) for steps in (1, 2))
    assert np.linalg.norm(two - one) == pytest.approx(RATE * 0.01, rel=1e-3)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("count", [32, 20, 35])
def test_accumulated_batches_are_one_large_batch(count: int) -> None:
    """Also where the last step has fewer, and its last batch fewer still: every image counts the same."""
    together = trained(count, epochs=2, batch_size=16)
    apart = trained(count, epochs=2, batch_size=4, accumulate=4)
    for name in together:
        np.testing.assert_allclose(apart[name], together[name], rtol=0, atol=1e-6)
    assert not same(trained(count, epochs=2, batch_size=4), apart)


def test_a_step_is_of_all_accumulated_batches_and_so_is_its_loss() -> None:
    reports: list[Progress] = []
    config = federation(training={"epochs": 2, "batch_size": 4, "accumulate": 3})
    apart = run(config, blobs(20), progress=lambda report: reports.append(report) is None)
    assert (reports[-1].step, reports[-1].steps) == (4, 4)
    assert apart.metrics["images"] == 40
    together = run(federation(training={"epochs": 1, "batch_size": 12}), blobs(20))
    assert apart.metrics["first_loss"] == pytest.approx(together.metrics["first_loss"], abs=1e-5)


@pytest.mark.usefixtures("plain")
def test_a_rounds_rate_is_the_schedules() -> None:
    start = flat(initial_state(federation()))
    whole = flat(trained(steps=1)) - start
    for keys, round, expected in (
        ({"schedule": "linear"}, 4, 1 / 4),
        ({"schedule": "cosine", "warmup": 1}, 3, 3 / 4),
        ({"warmup": 3}, 1, 1 / 4),
        ({"schedule": "linear"}, 1, 1),
    ):
        moved = flat(trained(steps=1, round=round, rounds={"count": 4}, **keys)) - start
        np.testing.assert_allclose(moved, expected * whole, rtol=0, atol=1.5e-7)


def test_all_of_it_resumed_ends_with_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    """Held to where the training began, not to where it was taken up again; and not by another round's checkpoint."""
    keys = {"epochs": 3, "accumulate": 2, "clip": 0.5, "proximal": 3.0, "schedule": "cosine"}
    config, images, checkpoint = federation(training=keys), blobs(40), tmp_path / "c"
    state = initial_state(config)
    chosen: dict[str, Any] = {"round": 4, "shared": list(state)}
    whole = run(config, images, **chosen)

    def dying(report: Progress) -> bool:
        if report.step == 6:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        run(config, images, checkpoint=checkpoint, checkpoint_every=0, progress=dying, **chosen)
    for other in ({**chosen, "round": 5}, {**chosen, "shared": ()}):
        again = train(config, state, images, 1, checkpoint=checkpoint, progress=on, **other)
        assert again is not None
        assert same(again.state, run(config, images, **other).state)
    seen: list[Progress] = []
    resumed = run(config, images, checkpoint=checkpoint, progress=lambda r: seen.append(r) is None, **chosen)
    assert seen[0].step > 3
    assert same(whole.state, resumed.state)
