"""Labels are dropped in training as often as the rules say, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from test_trainer import blobs, federation, run

from feddiff.core.config import FederationConfig
from feddiff.core.diffusion import initial_state
from feddiff.core.images import Images

ROWS = "class_embedding.weight"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def guided(share: float, **training: Any) -> FederationConfig:
    rules = {"epochs": 1, "label_dropout": share, **training}
    return federation({"num_class_embeds": 3}, rules, data={"classes": ["left", "right"]})


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_the_share_of_dropped_labels_is_the_rules(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Within four standard deviations; others keep their own, and the next epoch drops others."""
    images, seen = blobs(2000), list[torch.Tensor]()
    assert images.labels is not None
    forward = UNet2DModel.forward

    def watched(self: UNet2DModel, noisy: torch.Tensor, times: torch.Tensor, classes: torch.Tensor) -> Any:
        if classes.device.type != "meta":  # where only shapes are asked for
            seen.append(classes)
        return forward(self, noisy, times, classes)

    monkeypatch.setattr(UNet2DModel, "forward", watched)
    run(guided(share, epochs=2, batch_size=500), images)
    epochs = torch.cat(seen).reshape(2, -1)
    for told in epochs:
        dropped = int((told == 2).sum())
        assert abs(dropped - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5
        lefts = np.count_nonzero(images.labels == 0) * (1 - share)
        assert abs(int((told == 0).sum()) - lefts) < 6 * lefts**0.5
    assert not torch.equal(*(told == 2 for told in epochs))


def test_an_image_without_a_label_trains_the_null_class_alone() -> None:
    config, images = guided(0.1), blobs(16)
    start = initial_state(config)[ROWS]
    unlabelled = Images(images.pixels, np.full(16, -1), {}, ())
    moved = run(config, unlabelled).state[ROWS]
    assert np.array_equal(moved[:2], start[:2])
    assert not np.array_equal(moved[2], start[2])
