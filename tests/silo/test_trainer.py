"""A round's training: it learns, it repeats itself to the bit, it survives being killed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from tiny import TINY

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.diffusion import initial_state, scheduler
from feddiff.core.errors import DataError, NotFinite, WrongShape
from feddiff.core.images import Images
from feddiff.core.segments import F32
from feddiff.silo import trainer
from feddiff.silo.descent import Descent
from feddiff.silo.trainer import Progress, Trained, train

EVERYTHING: dict[str, Any] = {
    "model": {"num_class_embeds": 2, "dropout": 0.1},
    "data": {"classes": ["left", "right"]},
    "diffusion": {"schedule": "cosine", "prediction": "v", "loss": "huber"},
    "training": {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "horizontal_flip": True,
        "ema_decay": 0.9,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def federation(
    model: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **tables: Any
) -> FederationConfig:
    rules = {"batch_size": 8, "learning_rate": 2e-3, **(training or {})}
    if "steps" not in rules:
        rules.setdefault("epochs", 3)
    return from_table({"model": {**TINY, **(model or {})}, "training": rules, **tables}, "test")


def blobs(count: int) -> Images:
    """Bright squares in one half or the other of a dark field."""
    generator = np.random.default_rng(0)
    pixels, labels = np.full((count, 1, 8, 8), 20, np.uint8), generator.integers(0, 2, count)
    for index in range(count):
        row, column = generator.integers(0, 5), 4 * labels[index]
        pixels[index, 0, row : row + 3, column : column + 4] = 230
    return Images(pixels=pixels, labels=labels, counts={}, skipped=())


def on(report: Progress) -> bool:
    return True


def run(config: FederationConfig, images: Images, seed: int = 1, **options: Any) -> Trained:
    trained = train(config, initial_state(config), images, seed, **{"progress": on, **options})
    assert trained is not None
    return trained


def same(one: dict[str, F32] | None, other: dict[str, F32] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def exact(trained: Trained) -> dict[str, float]:
    """The metrics without those of the clock."""
    return {name: trained.metrics[name] for name in ("loss", "first_loss", "images")}


def test_the_loss_falls() -> None:
    config = federation(training={"epochs": 12})
    trained = run(config, blobs(64))
    assert trained.metrics["loss"] < 0.6 * trained.metrics["first_loss"]
    assert trained.metrics["images"] == 12 * 64
    assert trained.metrics["seconds"] > 0
    assert trained.metrics["images_per_second"] > 0
    assert trained.ema is None
    start = initial_state(config)
    assert trained.state.keys() == start.keys()
    assert all(trained.state[name].shape == start[name].shape for name in start)
    assert not same(trained.state, start)


@pytest.mark.parametrize("tables", [{}, EVERYTHING])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(tables: dict[str, Any]) -> None:
    config, images = federation(**tables), blobs(20)
    torch.manual_seed(1)
    first = run(config, images)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = run(config, images)
    assert torch.equal(before, torch.get_rng_state())
    assert same(first.state, second.state)
    assert same(first.ema, second.ema)
    assert exact(first) == exact(second)
    assert not same(first.state, run(config, images, seed=2).state)


def killed_after(epochs: int, config: FederationConfig, images: Images, checkpoint: Path) -> None:
    """A training that dies inside the report of an epoch's end."""

    def dying(report: Progress) -> bool:
        if report.step == steps_of(epochs, config, images):
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        run(config, images, checkpoint=checkpoint, checkpoint_every=0, progress=dying)


def steps_of(epochs: int, config: FederationConfig, images: Images) -> int:
    return epochs * math.ceil(len(images.pixels) / config.training.batch_size)


@pytest.mark.parametrize("tables", [{}, EVERYTHING, {"training": {"steps": 8}}])
def test_a_resumed_training_ends_with_the_bits_of_one_left_alone(tmp_path: Path, tables: dict[str, Any]) -> None:
    config, images = federation(**tables), blobs(20)
    whole = run(config, images)
    checkpoint = tmp_path / "state" / "round.safetensors"
    killed_after(2, config, images, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    seen: list[Progress] = []
    resumed = run(config, images, checkpoint=checkpoint, progress=lambda report: seen.append(report) is None)
    assert seen[0].step > steps_of(2, config, images), "it began from the beginning"
    assert same(whole.state, resumed.state)
    assert same(whole.ema, resumed.ema)
    assert exact(whole) == exact(resumed)
    assert checkpoint.exists()


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    config, images, checkpoint = federation(), blobs(20), tmp_path / "c"
    whole = run(config, images, checkpoint=checkpoint, checkpoint_every=0)
    seen: list[Progress] = []
    again = run(config, images, checkpoint=checkpoint, progress=lambda report: seen.append(report) is None)
    assert seen == []
    assert same(whole.state, again.state)
    assert whole.metrics == again.metrics


@pytest.mark.parametrize("change", ["seed", "config", "images", "labels", "state", "ema", "damaged", "empty"])
def test_a_checkpoint_of_another_training_is_not_taken_up(tmp_path: Path, change: str) -> None:
    config, images, checkpoint = federation(**EVERYTHING), blobs(20), tmp_path / "c"
    state, seed, ema = initial_state(config), 1, None
    assert train(config, state, images, seed, checkpoint=checkpoint, checkpoint_every=0, progress=on)
    match change:
        case "seed":
            seed = 2
        case "config":
            config = federation(**{**EVERYTHING, "seed": 9})
        case "images":
            images = Images(images.pixels ^ 1, images.labels, {}, ())
        case "labels":
            assert images.labels is not None
            images = Images(images.pixels, 1 - images.labels, {}, ())
        case "state":
            state = {name: array * np.float32(1.5) for name, array in state.items()}
        case "ema":
            ema = {name: array * np.float32(1.5) for name, array in state.items()}
        case "damaged":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
        case "empty":
            checkpoint.write_bytes(b"")
    alone = train(config, state, images, seed, ema=ema, progress=on)
    seen: list[Progress] = []
    beside = train(
        config, state, images, seed, ema=ema, checkpoint=checkpoint, progress=lambda r: seen.append(r) is None
    )
    assert alone is not None
    assert beside is not None
    assert seen[0].step == 3
    assert same(alone.state, beside.state)
    assert same(alone.ema, beside.ema)


def test_a_checkpoint_waits_for_its_interval(tmp_path: Path) -> None:
    run(federation(), blobs(20), checkpoint=tmp_path / "c", checkpoint_every=1e6)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config, images = federation(), blobs(20)
    trained = run(config, images, checkpoint=tmp_path / "file" / "c", checkpoint_every=0)
    assert same(trained.state, run(config, images).state)
    assert "no checkpoint" in caplog.text


def test_it_stops_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    config, images, checkpoint = federation(), blobs(20), tmp_path / "c"
    reports: list[Progress] = []

    def enough(report: Progress) -> bool:
        reports.append(report)
        return len(reports) < 2

    stopped = train(
        config, initial_state(config), images, 1, checkpoint=checkpoint, checkpoint_every=0, progress=enough
    )
    assert stopped is None
    assert [report.step for report in reports] == [3, 6]
    assert same(run(config, images, checkpoint=checkpoint).state, run(config, images).state)


def test_it_stops_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "REPORT_EVERY", 0.0)
    config, reports = federation(training={"batch_size": 1}), list[Progress]()

    def enough(report: Progress) -> bool:
        reports.append(report)
        return report.step < 5

    assert train(config, initial_state(config), blobs(20), 1, progress=enough) is None
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert all(report.steps == 60 and report.loss > 0 and report.images_per_second > 0 for report in reports)


@pytest.mark.parametrize(
    ("training", "count", "ends", "images"),
    [
        ({"epochs": 2}, 20, [3, 6], 40),
        ({"epochs": 1}, 16, [2], 16),
        ({"epochs": 1}, 3, [1], 3),
        ({"steps": 7}, 20, [3, 6, 7], 48),
        ({"steps": 3}, 20, [3], 20),
        ({"steps": 2}, 20, [2], 16),
    ],
)
def test_every_image_once_an_epoch_and_exactly_so_many_steps(
    training: dict[str, Any], count: int, ends: list[int], images: int
) -> None:
    reports: list[Progress] = []
    trained = run(federation(training=training), blobs(count), progress=lambda r: reports.append(r) is None)
    assert [report.step for report in reports] == ends
    assert {report.steps for report in reports} == {ends[-1]}
    assert trained.metrics["images"] == images


def test_every_image_is_seen_once_an_epoch_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen = Images(np.arange(20, dtype=np.uint8).repeat(64).reshape(20, 1, 8, 8), None, {}, ()), list[int]()
    step: Callable[..., float] = Descent.step

    def watched(self: Any, pixels: torch.Tensor, *rest: Any) -> float:
        seen.extend(pixels[:, 0, 0, 0].tolist())
        return step(self, pixels, *rest)

    monkeypatch.setattr(Descent, "step", watched)
    run(federation(training={"epochs": 2}), images)
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]
    assert seen[:20] != list(range(20))


def test_the_moving_average_is_that_of_the_weights() -> None:
    config = federation(training={"steps": 1, "ema_decay": 0.75})
    start = initial_state(config)
    before = {name: array + 1 for name, array in start.items()}
    fresh, carried = run(config, blobs(8)), run(config, blobs(8), ema=before)
    assert same(fresh.state, carried.state)
    for trained, origin in ((fresh, start), (carried, before)):
        assert trained.ema is not None
        for name, array in trained.ema.items():
            np.testing.assert_allclose(array, 0.75 * origin[name] + 0.25 * trained.state[name], atol=1e-6)


def test_a_conditional_model_learns_from_its_labels() -> None:
    config = federation(**{**EVERYTHING, "training": {"epochs": 1}})
    images = blobs(20)
    assert images.labels is not None
    other = Images(images.pixels, 1 - images.labels, {}, ())
    assert not same(run(config, images).state, run(config, other).state)
    for labels in (None, images.labels - 1, images.labels + 1, images.labels[:-1]):
        with pytest.raises(DataError, match="label"):
            run(config, Images(images.pixels, labels, {}, ()))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_a_mute_model_has_the_loss_of_the_target(schedule: str, prediction: str, loss: str) -> None:
    """On grey images (0 in [-1, 1]) the target is noise: of variance 1 for epsilon, of variance alpha_t for v."""
    config = federation(
        training={"steps": 1, "batch_size": 2048},
        diffusion={"schedule": schedule, "prediction": prediction, "loss": loss},
    )
    mute = initial_state(config)
    mute["conv_out.weight"][:] = mute["conv_out.bias"][:] = 0
    images = Images(np.full((2048, 1, 8, 8), 128, np.uint8), None, {}, ())
    trained = train(config, mute, images, 1, progress=on)
    assert trained is not None
    alphas = scheduler(config).alphas_cumprod.numpy()
    deviations = np.sqrt(alphas) if prediction == "v" else np.ones(1)
    noise = np.random.default_rng(0).standard_normal((10_000, 1)) * deviations[None, ::10]
    losses = noise**2 if loss == "mse" else np.where(abs(noise) < 1, noise**2 / 2, abs(noise) - 0.5)
    assert trained.metrics["loss"] == pytest.approx(losses.mean(), rel=0.06)


def test_a_horizontal_flip_shows_half_of_the_images_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(np.zeros((200, 1, 8, 8), np.uint8), None, {}, ())
    images.pixels[..., 0] = 255
    shown = list[float]()

    def watched(self: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        assert ((clean[..., 0] + clean[..., 7]) == 0).all()
        shown.extend(clean[:, 0, 0, 0].tolist())
        return clean

    monkeypatch.setattr(DDPMScheduler, "add_noise", watched)
    run(federation(training={"epochs": 1}), images)
    assert set(shown) == {1.0}
    shown.clear()
    run(federation(training={"epochs": 1, "horizontal_flip": True}), images)
    assert set(shown) == {-1.0, 1.0}
    assert 60 < shown.count(1.0) < 140


def test_bfloat16_is_used_on_a_cpu_only_when_asked_for() -> None:
    images = blobs(8)
    states = [
        run(federation(training={"steps": 2, "precision": precision}), images).state
        for precision in ("auto", "fp32", "bf16")
    ]
    assert same(states[0], states[1]) or torch.cuda.is_available()
    assert not same(states[1], states[2])
    assert all(array.dtype == np.float32 for array in states[2].values())


def test_a_loss_that_is_not_finite_is_named_with_its_step() -> None:
    config = federation(training={"learning_rate": 10.0, "epochs": 200})
    poisoned = {name: array * np.float32(1e30) for name, array in initial_state(config).items()}
    with pytest.raises(NotFinite, match="at step 1 of 600"):
        train(config, poisoned, blobs(20), 1, progress=on)


def test_weights_broken_by_the_last_step_are_not_given_out() -> None:
    # The loss does not depend on the second class, whose embedding the weight decay multiplies by 1 - 10 * 10.
    training = {"steps": 1, "optimizer": "adamw", "learning_rate": 10, "weight_decay": 10}
    config = federation({"num_class_embeds": 2}, training, data={"classes": ["a", "b"]})
    images = Images(blobs(8).pixels, np.zeros(8, np.int64), {}, ())
    poisoned = initial_state(config)
    poisoned["class_embedding.weight"][1] = 1e37
    with pytest.raises(NotFinite, match=r"class_embedding.weight after step 1"):
        train(config, poisoned, images, 1, progress=on)


def test_images_or_weights_of_another_model_are_refused() -> None:
    config, images = federation(), blobs(4)
    for pixels in (images.pixels[:0], images.pixels[:, :, :4], images.pixels.repeat(3, axis=1)):
        with pytest.raises(DataError, match=r"\(N, 1, 8, 8\)"):
            run(config, Images(pixels, None, {}, ()))
    with pytest.raises(WrongShape):
        train(config, {}, images, 1, progress=on)


def test_read_only_images_will_do() -> None:
    images = blobs(8)
    images.pixels.flags.writeable = False
    assert same(run(federation(), images).state, run(federation(), blobs(8)).state)
