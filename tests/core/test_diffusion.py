"""The model that a federation's rules mean: the same bits every time, and pictures out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from PIL import Image
from tiny import TINY

from feddiff.core import diffusion, network
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, WrongShape
from feddiff.core.grid import grid
from feddiff.core.presets import PRESETS


def federation(model: dict[str, Any] | None = None, **tables: Any) -> FederationConfig:
    return from_table({"model": {**TINY, **(model or {})}, **tables}, "test")


def conditional() -> FederationConfig:
    return federation({"num_class_embeds": 3}, data={"classes": ["a", "b", "c"]})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_initial_state_is_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = diffusion.initial_state(federation(seed=5))
    before = torch.get_rng_state()
    second = diffusion.initial_state(federation(seed=5))
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(array.dtype == np.float32 for array in first.values())
    other = diffusion.initial_state(federation(seed=6))
    assert not np.array_equal(first["conv_in.weight"], other["conv_in.weight"])


def test_the_layout_covers_exactly_the_state() -> None:
    config = federation()
    state = diffusion.initial_state(config)
    layout = diffusion.layout(config)
    shapes = {parameter.name: parameter.shape for segment in layout.segments for parameter in segment.parameters}
    assert shapes == {name: array.shape for name, array in state.items()}
    assert layout.names == (
        "encoder.in", "encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1", "decoder.out"
    )  # fmt: skip


def test_a_layout_needs_no_memory_for_the_weights() -> None:
    # 40,000 channels: conv layers of 14.4 billion values each, 57 GB; only an outline can be made of it.
    config = federation({"block_out_channels": [8, 40_000]})
    assert diffusion.layout(config).size > 10**10


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_model(preset: str) -> None:
    config = from_table({"preset": preset}, "test")
    assert network.of(config).layout(config).size > 50_000


def test_the_cifar_preset_has_the_parameters_of_the_ddpm_paper_s_network() -> None:
    assert diffusion.layout(from_table({"preset": "cifar-32"}, "test")).size == 35_746_307


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"block_channels": [8]}, "block_channels.*block_out_channels"),
        ({"down_block_types": ["DownBlock2D", "NoSuchBlock"]}, "NoSuchBlock"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types"),
        ({"norm_num_groups": 3}, "num_channels"),
        ({"sample_size": 9}, "9x9"),
        ({"block_out_channels": []}, "UNet2DModel"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(model: dict[str, Any], named: str) -> None:
    config = federation(model)
    for refusing in (diffusion.layout, diffusion.build):
        with pytest.raises(ConfigError, match=named) as refused:
            refusing(config)
        assert "\n" not in str(refused.value)


def test_keys_that_diffusers_saves_are_accepted() -> None:
    assert diffusion.layout(federation({"_class_name": "UNet2DModel", "_diffusers_version": "0.1"})) == (
        diffusion.layout(federation())
    )


def test_a_state_is_loaded_and_read_back_and_is_a_copy() -> None:
    config = federation()
    state = {name: array + 1 for name, array in diffusion.initial_state(config).items()}
    for array in state.values():
        array.flags.writeable = False
    model = diffusion.build(config)
    network.load_state(model, state)
    read = network.read_state(model)
    assert all(np.array_equal(read[name], state[name]) for name in state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(np.array_equal(read[name], state[name]) for name in state)


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    config = federation()
    model = diffusion.build(config)
    initial = network.read_state(model)
    other = {name: array + 1 for name, array in initial.items()}
    last = list(initial)[-1]
    for foreign in (
        {**other, "extra": np.zeros(1, np.float32)},
        {name: array for name, array in other.items() if name != last},
        {**other, last: np.zeros((2, 2), np.float32)},
    ):
        with pytest.raises(WrongShape):
            network.load_state(model, foreign)
    assert all(np.array_equal(array, initial[name]) for name, array in network.read_state(model).items())


def test_the_scheduler_follows_the_config() -> None:
    linear = diffusion.scheduler(federation(diffusion={"timesteps": 300, "beta_start": 1e-3, "beta_end": 0.5}))
    assert linear.betas.shape == (300,)
    assert linear.betas[[0, -1]].tolist() == pytest.approx([1e-3, 0.5])
    assert linear.config.prediction_type == "epsilon"
    cosine = diffusion.scheduler(federation(diffusion={"schedule": "cosine", "prediction": "v"}))
    # Nichol & Dhariwal 2021, equation 17, at t = T/2 with s = 0.008.
    ratio = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert float(cosine.alphas_cumprod[499]) == pytest.approx(ratio, rel=1e-3)
    assert cosine.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_samples_depend_on_the_seed_and_not_on_the_batch(sampler: diffusion.Sampler) -> None:
    config = federation({"in_channels": 3, "out_channels": 3})
    state = diffusion.initial_state(config)
    options: dict[str, Any] = {"steps": 7, "sampler": sampler, "device": "cpu"}
    images = diffusion.sample(config, state, 5, seed=1, **options)
    assert images.shape == (5, 8, 8, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, diffusion.sample(config, state, 5, seed=1, **options))
    fewer = diffusion.sample(config, state, 3, seed=1, batch=2, **options)
    assert np.abs(fewer.astype(int) - images[:3]).max() <= 1
    assert not np.array_equal(images, diffusion.sample(config, state, 5, seed=2, **options))
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_ddim_is_that_of_diffusers(prediction: str) -> None:
    config = federation(diffusion={"prediction": prediction, "timesteps": 100})
    state = diffusion.initial_state(config)
    reference = DDIMScheduler(
        num_train_timesteps=100,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction],
        timestep_spacing="trailing",
    )
    reference.set_timesteps(10)
    model, starts = diffusion.build(config), list[torch.Tensor]()

    def watched(self: UNet2DModel, images: torch.Tensor, *rest: Any) -> Any:
        starts.append(images)
        return self.forward(images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DModel, "__call__", watched)
        patch.setattr(diffusion, "_outline", lambda config: None)
        drawn = diffusion.sample(config, state, 1, steps=10, seed=4, device="cpu")[0, :, :, 0]
    assert len(starts) == 10
    noise = starts[0]
    with torch.inference_mode():
        for timestep in reference.timesteps:
            output = model(noise, timestep).sample
            noise = reference.step(output, timestep, noise, use_clipped_model_output=True).prev_sample
    expected = ((noise[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy()
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.parametrize("steps", [1, 3, 60, 100])
@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_model_draws_its_image(
    monkeypatch: pytest.MonkeyPatch, sampler: diffusion.Sampler, steps: int
) -> None:
    """A model that knows the one image of its data set brings every solver there, whatever the number of steps."""
    config = federation(diffusion={"timesteps": 100, "schedule": "cosine"})
    state = diffusion.initial_state(config)
    target = torch.linspace(-0.9, 0.9, 64).reshape(1, 1, 8, 8)
    alphas = diffusion.scheduler(config).alphas_cumprod

    def omniscient(self: UNet2DModel, images: torch.Tensor, timestep: torch.Tensor, labels: None) -> Any:
        alpha = alphas[timestep]
        noise = (images - alpha.sqrt() * target) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": noise})()

    monkeypatch.setattr(UNet2DModel, "__call__", omniscient)
    monkeypatch.setattr(diffusion, "_outline", lambda config: None)
    images = diffusion.sample(config, state, 2, steps=steps, sampler=sampler, device="cpu")
    expected = ((target[0, 0] + 1) * 127.5).round().numpy()
    assert np.abs(images[..., 0] - expected).max() <= 1


def test_a_conditional_model_is_given_its_classes_in_turn() -> None:
    config = conditional()
    state = diffusion.initial_state(config)
    draw = lambda labels: diffusion.sample(config, state, 4, steps=3, labels=labels, device="cpu")  # noqa: E731
    assert np.array_equal(draw(None), draw([0, 1, 2, 0]))
    assert not np.array_equal(draw(None), draw([1, 1, 2, 0]))
    for wrong in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, -1]):
        with pytest.raises(ConfigError, match="0 to 2"):
            draw(wrong)


def test_arguments_of_sample_that_cannot_be_are_refused() -> None:
    config = federation()
    state = diffusion.initial_state(config)
    for options in ({"steps": 0}, {"steps": 1001}, {"sampler": "euler"}, {"batch": 0}, {"labels": [0]}):
        with pytest.raises(ConfigError):
            diffusion.sample(config, state, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        diffusion.sample(config, state, 0)


def test_progress_is_told_after_each_batch() -> None:
    config = federation()
    told: list[tuple[int, int]] = []
    diffusion.sample(
        config, diffusion.initial_state(config), 5, steps=1, batch=2, progress=lambda *done: told.append(done)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_has_every_image_in_its_place(channels: int, mode: str) -> None:
    images = np.stack([np.full((2, 3, channels), 50 * (index + 1), np.uint8) for index in range(5)])
    picture = grid(images, 2, scale=2)
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == (mode, (2 * 6 + 1, 3 * 4 + 2))
    pixels = np.asarray(picture).reshape(14, 13, channels)
    assert (pixels[0:4, 0:6] == 50).all()
    assert (pixels[0:4, 7:13] == 100).all()
    assert (pixels[10:14, 0:6] == 250).all()
    assert (pixels[4] == 0).all()
    assert (pixels[:, 6] == 0).all()
    assert (pixels[10:, 7:] == 0).all()
    assert grid(images[:2], 9).size == (7, 2)
    with pytest.raises(ConfigError):
        grid(images, 0)


def test_an_exported_folder_is_loaded_by_diffusers_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = federation(diffusion={"schedule": "cosine", "prediction": "v", "timesteps": 77})
    state = {name: array + 1 for name, array in diffusion.initial_state(config).items()}
    diffusion.export(config, state, tmp_path / "model")
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    alone = UNet2DModel.from_pretrained(tmp_path / "model" / "unet", local_files_only=True)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    for model in (alone, pipeline.unet):
        read = network.read_state(model)
        assert all(np.array_equal(read[name], state[name]) for name in state)
    assert dict(pipeline.scheduler.config).items() >= {
        "num_train_timesteps": 77, "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"
    }.items()  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2).images[0].size == (8, 8)


def test_the_denoising_can_be_watched_from_the_noise_to_the_images() -> None:
    config = federation()
    state = diffusion.initial_state(config)
    seen: list[tuple[int, np.ndarray[Any, Any]]] = []
    images = diffusion.sample(config, state, 3, steps=4, batch=2, watch=lambda *at: seen.append(at), device="cpu")
    assert [(step, len(noisy)) for step, noisy in seen] == [(step, size) for size in (2, 1) for step in range(5)]
    assert all(noisy.dtype == np.uint8 and noisy.shape[1:] == images.shape[1:] for _, noisy in seen)
    assert np.array_equal(np.concatenate([seen[4][1], seen[9][1]]), images)
    assert not np.array_equal(seen[0][1], images[:2])
    again = diffusion.sample(config, state, 3, steps=4, batch=2, device="cpu")
    assert np.array_equal(again, images)
