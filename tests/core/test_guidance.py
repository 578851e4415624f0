"""Classifier-free guidance: what is refused, which class a model is told, the two answers weighed as they must be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from tiny import TINY

from feddiff.core import diffusion
from feddiff.core.classes import conditions
from feddiff.core.config import FederationConfig, from_table, parse
from feddiff.core.denoising import guided
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.images import read_images
from feddiff.core.validation import validation_loss


def federation(rows: int | None = 3, dropout: float = 0.2, **diffusion: Any) -> FederationConfig:
    model = TINY | ({} if rows is None else {"num_class_embeds": rows})
    tables = {"training": {"epochs": 1, "label_dropout": dropout}, "diffusion": diffusion}
    return from_table({"model": model, "data": {"classes": ["a", "b"]}, **tables}, "test")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("rows", "dropout", "guidance", "says"),
    [
        (2, 0.2, 1.0, "set model.num_class_embeds to 3 (it is 2)"),
        (None, 0.2, 1.0, "set model.num_class_embeds to 3 (it is None)"),
        (3, 0.0, 1.0, "model.num_class_embeds is 3 but data.classes names 2"),
        (2, 0.0, 2.0, "diffusion.guidance needs a null class; set training.label_dropout"),
        (3, 0.2, -0.5, "diffusion.guidance"),
        (3, 0.2, 101.0, "diffusion.guidance"),
        (3, 0.2, float("nan"), "diffusion.guidance"),
        (3, 1.0, 1.0, "training.label_dropout"),
    ],
)
def test_what_makes_no_sense_is_refused(rows: int | None, dropout: float, guidance: float, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        federation(rows, dropout, guidance=guidance)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_classes_has_no_label_to_drop() -> None:
    with pytest.raises(ConfigError, match=r"name them in data\.classes"):
        from_table({"model": TINY, "training": {"epochs": 1, "label_dropout": 0.1}}, "test")


def test_a_dcgan_is_told_no_classes() -> None:
    gan = {"kind": "dcgan", "sample_size": 8, "in_channels": 1, "out_channels": 1, "channels": [8, 4]}
    for tables in ({}, {"data": {"classes": ["a", "b"]}}):
        with pytest.raises(ConfigError, match=r"leave training\.label_dropout out"):
            from_table({"model": gan, "training": {"epochs": 1, "label_dropout": 0.1}, **tables}, "test")


def test_rules_without_it_keep_their_text_and_rules_with_it_say_so() -> None:
    before = json.loads(federation(2, 0.0).canonical())
    assert "label_dropout" not in before["training"]
    assert "guidance" not in before["diffusion"]
    for guidance in (0.0, 2.5):
        config = federation(guidance=guidance)
        assert json.loads(config.canonical())["diffusion"]["guidance"] == guidance
        assert parse(config.canonical()) == config
        assert config.digest != federation().digest


def test_an_image_without_a_label_is_of_the_null_class(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 99).save(tmp_path / name)
    config = federation()
    images = read_images(tmp_path, config)
    assert images.counts == {"": 1, "a": 1, "b": 1}
    told = conditions(config, images.labels, 3)
    assert told is not None
    assert told.tolist() == [2, 0, 1]
    assert validation_loss(config, diffusion.initial_state(config), images.pixels, images.labels, draws=1) > 0
    assert len(read_images(tmp_path, federation(2, 0.0)).pixels) == 2, "and is left out where nobody learns of it"
    for wrong in (None, np.array([0, 1]), np.array([0, 1, 3]), np.array([0, 1, -2])):
        with pytest.raises(DataError, match="label"):
            conditions(config, wrong, 3)


def test_the_two_answers_are_weighed_as_in_the_paper() -> None:
    """At scale 1 and 0 the model is asked once, and the answer is its own, not a sum that rounds to it."""
    asked: list[list[int]] = []

    def model(images: torch.Tensor, timestep: torch.Tensor, classes: torch.Tensor) -> SimpleNamespace:
        asked.append(classes.tolist())
        return SimpleNamespace(sample=images * (1 + classes.float()))

    noisy, classes, at = torch.tensor([0.1, 0.3, 0.7]), torch.tensor([0, 1, 2]), torch.tensor(5)
    told: Any = model
    for scale, expected in ((1.0, noisy * (1 + classes)), (0.0, 3 * noisy), (2.5, noisy * (3 + 2.5 * (classes - 2)))):
        asked.clear()
        found = guided(told, classes, 2, scale)(noisy, at)
        assert asked == {1.0: [[0, 1, 2]], 0.0: [[2, 2, 2]], 2.5: [[2, 2, 2], [0, 1, 2]]}[scale]
        assert torch.equal(found, expected) if scale < 2 else torch.allclose(found, expected)
        w = scale - 1  # Ho & Salimans, eq. 6
        assert torch.allclose(found, (1 + w) * noisy * (1 + classes) - w * noisy * 3)


def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one() -> None:
    config = federation(guidance=3.0)
    plain = federation()
    state = diffusion.initial_state(config)
    draw = lambda rules, **options: diffusion.sample(rules, state, 3, steps=4, device="cpu", **options)  # noqa: E731
    assert np.array_equal(draw(config, guidance=1.0), draw(plain))
    assert np.array_equal(draw(config, guidance=0.0), draw(plain, labels=[2, 2, 2]))
    assert np.array_equal(draw(config), draw(plain, guidance=3.0)), "the rules' scale is the one that is used"
    assert not np.array_equal(draw(config), draw(plain))
    assert np.array_equal(draw(plain), draw(plain, labels=[0, 1, 0])), "the null class is not drawn unasked"
    for wrong in (-0.1, 101.0, float("nan")):
        with pytest.raises(ConfigError, match="guidance must be 0 to 100"):
            draw(plain, guidance=wrong)
    bare = federation(2, 0.0)
    with pytest.raises(ConfigError, match="label_dropout"):
        diffusion.sample(bare, diffusion.initial_state(bare), 1, guidance=2.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_model_draws_what_lies_on_the_line_through_both(
    monkeypatch: pytest.MonkeyPatch, sampler: diffusion.Sampler, prediction: str
) -> None:
    """A model that knows one image of each class draws null + s (class - null), whatever it predicts."""
    config = federation(timesteps=100, schedule="cosine", prediction=prediction, guidance=1.5)
    state = diffusion.initial_state(config)
    ramp = torch.linspace(-0.4, 0.4, 64).reshape(1, 8, 8)
    known = torch.stack([ramp, -ramp, torch.full_like(ramp, 0.2)])
    alphas = diffusion.scheduler(config).alphas_cumprod

    def omniscient(self: UNet2DModel, images: torch.Tensor, at: torch.Tensor, classes: torch.Tensor) -> SimpleNamespace:
        clean, alpha = known[classes], alphas[at]
        noise = (images - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return SimpleNamespace(sample=velocity if prediction == "v" else noise)

    monkeypatch.setattr(UNet2DModel, "__call__", omniscient)
    monkeypatch.setattr(diffusion, "_outline", lambda config: None)
    drawn = diffusion.sample(config, state, 2, steps=20, sampler=sampler, device="cpu")
    expected = 0.2 + 1.5 * (known[:2, 0] - 0.2)
    assert np.abs(drawn[..., 0] - ((expected + 1) * 127.5).round().numpy()).max() <= 1
