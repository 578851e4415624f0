"""The other network: its size, its two segments, what it draws, what is written of it, and rules that it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from feddiff.core import dcgan, network
from feddiff.core.config import FederationConfig, from_table, parse
from feddiff.core.errors import ConfigError, WrongShape
from feddiff.core.segments import F32, Layout
from feddiff.core.validation import validation_loss

STATISTICS = ("running_mean", "running_var")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def federation(model: dict[str, Any] | None = None, **tables: Any) -> FederationConfig:
    return from_table({"preset": "dcgan-8", "model": model or {}, **tables}, "test")


def trained(config: FederationConfig) -> dict[str, F32]:
    """Weights and statistics of no particular training."""
    random = np.random.default_rng(0)
    return {
        name: array + np.float32(0.1) * random.random(array.shape, np.float32)
        for name, array in dcgan.initial_state(config).items()
    }


def test_the_preset_has_the_size_of_phoenix_baseline() -> None:
    """3.5 M and 2.7 M; of convolutions without biases, of which each output channel has two of its batch norm's."""
    model = dcgan.build(from_table({"preset": "dcgan-32"}, "test"))
    sizes = [sum(each.numel() for each in side.parameters()) for side in (model.generator, model.discriminator)]
    up = 100 * 512 * 16 + 512 * 256 * 16 + 256 * 128 * 16 + 128 * 3 * 16 + 2 * (512 + 256 + 128) + 3
    down = 3 * 128 * 16 + 128 + 128 * 256 * 16 + 256 * 512 * 16 + 2 * (256 + 512) + 512 * 16 + 1
    assert sizes == [up, down] == [3_448_579, 2_637_441]
    assert sizes == [pytest.approx(3.5e6, rel=0.025), pytest.approx(2.7e6, rel=0.025)]


@pytest.mark.parametrize(("size", "channels", "start"), [(32, [512, 256, 128], 4), (8, [16], 4), (8, [6, 4], 2)])
def test_images_come_out_at_their_size_and_one_logit_of_each(size: int, channels: list[int], start: int) -> None:
    model = dcgan.DCGAN(size, 3, 3, channels, latent=5)
    with torch.no_grad():
        images = model.generator(torch.randn(2, 5))
        assert model.generator[:2](torch.randn(2, 5)).shape == (2, channels[0], start, start)
        assert images.shape == (2, 3, size, size)
        assert images.abs().max() <= 1
        assert model.discriminator(images).shape == (2,)


def test_the_initial_weights_are_the_papers_and_the_seeds_alone() -> None:
    before = torch.get_rng_state()
    state = dcgan.initial_state(federation(seed=5))
    assert torch.equal(before, torch.get_rng_state())
    again, other = (dcgan.initial_state(federation(seed=seed)) for seed in (5, 6))
    assert all(np.array_equal(state[name], again[name]) for name in state)
    assert not np.array_equal(state["generator.1.weight"], other["generator.1.weight"])
    kernels = np.concatenate([array.ravel() for array in state.values() if array.ndim == 4])
    assert (kernels.mean(), kernels.std()) == (pytest.approx(0, abs=3e-4), pytest.approx(0.02, rel=0.02))
    assert state["generator.2.weight"].mean() == pytest.approx(1, abs=0.02)
    for name, array in state.items():
        expected = {"running_mean": 0, "running_var": 1, "bias": 0}.get(name.rpartition(".")[2])
        assert expected is None or (array == expected).all(), name


def test_the_two_segments_hold_everything_the_statistics_behind_the_weights() -> None:
    config = federation()
    layout, state = dcgan.layout(config), dcgan.initial_state(config)
    assert layout.names == ("generator", "discriminator")
    assert [each.part for each in layout.segments] == ["generator", "discriminator"]
    assert layout.size == sum(array.size for array in state.values())
    assert Layout.from_json(layout.to_json()) == layout
    for segment in layout.segments:
        marks = [each.name.endswith(STATISTICS) for each in segment.parameters]
        assert True in marks
        assert marks == sorted(marks)
        assert not any("tracked" in each.name for each in segment.parameters)
    back = layout.scatter(layout.gather(state))
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)


def test_a_layout_costs_no_memory() -> None:
    assert dcgan.layout(federation({"channels": [4096] * 2, "latent": 4096})).size > 500_000_000


class TestSamples:
    def test_depend_on_seed_and_place_alone(self) -> None:
        config = federation()
        state = trained(config)
        images = network.of(config).sample(config, state, 5, seed=1, device="cpu")
        assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
        assert len({each.tobytes() for each in images}) == 5
        for options in ({"batch": 2}, {"steps": 3, "sampler": "ddpm"}):
            assert np.array_equal(images, dcgan.sample(config, state, 5, seed=1, device="cpu", **options))  # type: ignore[arg-type]
        assert np.array_equal(images[:3], dcgan.sample(config, state, 3, seed=1, device="cpu"))
        assert not np.array_equal(images, dcgan.sample(config, state, 5, seed=2, device="cpu"))

    def test_are_normalised_by_the_running_statistics(self) -> None:
        config = federation()
        state = trained(config)
        moved = {name: array + 1 if name == "generator.2.running_mean" else array for name, array in state.items()}
        unread = {name: array + 1 if name.startswith("discriminator") else array for name, array in state.items()}
        images = dcgan.sample(config, state, 4, device="cpu")
        assert not np.array_equal(images, dcgan.sample(config, moved, 4, device="cpu"))
        assert np.array_equal(images, dcgan.sample(config, unread, 4, device="cpu"))

    def test_of_a_variance_that_a_codec_took_below_zero_are_those_of_zero(self) -> None:
        config = federation()
        below, zero = trained(config), trained(config)
        below["generator.2.running_var"][:3], zero["generator.2.running_var"][:3] = -0.2, 0
        assert np.array_equal(*(dcgan.sample(config, each, 4, device="cpu") for each in (below, zero)))

    def test_are_told_of(self) -> None:
        config, told, seen = federation(), list[tuple[int, int]](), list[np.ndarray[Any, Any]]()
        images = dcgan.sample(
            config,
            trained(config),
            5,
            batch=2,
            progress=lambda *at: told.append(at),
            watch=lambda step, batch: seen.append(batch.copy()),
        )
        assert told == [(2, 5), (4, 5), (5, 5)]
        assert np.array_equal(np.concatenate(seen), images)

    def test_cannot_be_of_a_class_or_of_foreign_weights(self) -> None:
        config = federation()
        state = trained(config)
        for options in ({"count": 0}, {"batch": 0}, {"labels": [0]}):
            with pytest.raises(ConfigError):
                dcgan.sample(config, state, **{"count": 1, **options})  # type: ignore[arg-type]
        del state["generator.2.running_var"]
        with pytest.raises(WrongShape, match="running_var"):
            dcgan.sample(config, state, 1)


class TestExport:
    def test_is_loaded_as_the_documentation_says(self, tmp_path: Path) -> None:
        config = federation()
        state, folder = trained(config), tmp_path / "model"
        assert "feddiff.core.dcgan.DCGAN" in network.of(config).export(config, state, folder)
        model = dcgan.DCGAN(**json.loads((folder / "config.json").read_text()))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        read = network.read_state(model)
        assert read.keys() == state.keys()
        assert all(np.array_equal(read[name], state[name]) for name in state)

    def test_is_an_initial_model(self, tmp_path: Path) -> None:
        from feddiff.core.published import read_published

        config = federation(initial="file")
        state, folder = trained(config), tmp_path / "model"
        dcgan.export(config, state, folder)
        read = read_published(folder, config)
        assert all(np.array_equal(read[name], state[name]) for name in state)
        # of the same shapes: a map of 2x2 pixels, doubled twice, or of 4x4, doubled once
        other = json.loads((folder / "config.json").read_text()) | {"latent": 33}
        (folder / "config.json").write_text(json.dumps(other))
        with pytest.raises(ConfigError, match="latent = 33, and the rules' model has 32"):
            read_published(folder, config)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"kind": "gan"}, 'model.kind must be "dcgan"'),
        ({"kind": "unet"}, 'model.kind must be "dcgan"'),
        ({"width": 3}, "unknown key model.width; known here: channels, in_channels, kind, latent"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"channels": []}, "model.channels"),
        ({"channels": [64, "32"]}, "model.channels.1"),
        ({"channels": [5000]}, "model.channels.0"),
        ({"channels": [64, 32, 16]}, "each of the 3 channels halves the 8 pixels of sample_size"),
        ({"sample_size": 10}, "which must come out, at 2 at least"),
        ({"latent": 0}, "model.latent"),
        ({"latent": True}, "model.latent"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(model: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        federation(model, data={"classes": [str(each) for each in range(10)]})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        *(({"plan": plan}, 'it needs plan = "full"') for plan in ("usplit", "ulatdec", "udec")),
        ({"plan": "budget", "budget": {"bytes_per_silo": 10**6}}, 'it needs plan = "full"'),
        ({"diffusion": {"timesteps": 300}}, "leave [diffusion] out"),
        ({"frozen": 1}, "leave frozen out"),
        ({"training": {"accumulate": 2}}, "leave training.accumulate out"),
        ({"weights": {"by": "loss", "q": 1.0}}, 'leave weights.by = "loss" out'),
        ({"outer": {"optimizer": "nesterov"}}, "leave [outer] out"),
        ({"outer": {"learning_rate": 1.5}}, "leave [outer] out"),
        ({"preset": ["dcgan-8", "careful"]}, "leave [outer] out"),
    ],
)
def test_rules_that_it_cannot_follow_are_refused_in_one_line(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_table({"preset": "dcgan-8", **rules}, "test")
    assert "the model is a DCGAN: " in str(refused.value)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rules_that_it_can_follow_are_taken_and_travel() -> None:
    training = {"proximal": 0.1, "clip": 1.0, "ema_decay": 0.9, "schedule": "cosine", "warmup": 1, "optimizer": "adamw"}
    config = federation(training=training, outer={"ema": 0.9}, codec={"up": "int8", "down": "int4"})
    assert parse(config.canonical()) == config
    assert federation(personal=["discriminator"]).personal == ("discriminator",)
    assert (config.kind, config.conditional, config.denoises) == ("dcgan", False, False)
    unet = from_table({"preset": "digits-8"}, "test")
    assert (unet.kind, unet.denoises) == ("unet", True)


def test_it_has_no_validation_loss() -> None:
    config = federation()
    with pytest.raises(ConfigError, match="no validation loss"):
        validation_loss(config, trained(config), np.zeros((2, 1, 8, 8), np.uint8), None)


def test_it_needs_no_diffusers() -> None:
    code = (
        "import sys; from feddiff.core import network; from feddiff.core.config import from_table;"
        "network.of(from_table({'preset': 'dcgan-8'}, 'test')); print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
