"""bench/colours.py: the clusters of planted colours are found, and stand beside the samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from feddiff.bench import colours
from feddiff.bench.outcome import Outcome
from feddiff.bench.sections import SamplesSection
from feddiff.core import diffusion
from feddiff.core.config import from_table

MODEL = {**TINY, "in_channels": 3, "out_channels": 3}


def test_planted_colours_come_out_with_their_shares() -> None:
    images = np.empty((10, 8, 8, 3), np.uint8)
    images[:5], images[5:8], images[8:] = (200, 30, 40), (10, 220, 90), (0, 0, 250)
    found = colours.dominant(images, clusters=3)
    assert [each.value for each in found] == [(200, 30, 40), (10, 220, 90), (0, 0, 250)]
    assert [each.share for each in found] == pytest.approx([0.5, 0.3, 0.2])


def test_near_colours_are_one_cluster_at_their_mean() -> None:
    images = np.array([98, 102, 200], np.uint8).repeat(64).reshape(3, 8, 8, 1)
    assert [each.value for each in colours.dominant(images, clusters=2)] == [(100,), (200,)]


def test_fewer_colours_than_clusters_are_no_error() -> None:
    (only,) = colours.dominant(np.full((2, 8, 8, 1), 7, np.uint8))
    assert (only.value, only.share) == ((7,), 1.0)


def test_the_picture_has_a_row_for_the_global_and_for_each_own_model(tmp_path: Path) -> None:
    """The bar of a model holds its samples' dominant colours, in their order and length."""
    config = from_table({"model": MODEL, "diffusion": {"timesteps": 10}}, "test")
    state = diffusion.initial_state(config)
    other = {name: 3 * values for name, values in state.items()}
    outcome = Outcome(config, {"global": lambda: state}, tmp_path, {}, {"north": lambda: state, "south": lambda: other})
    asked = SamplesSection(count=8, steps=2)
    whole = np.array(Image.open(io.BytesIO(colours.picture(outcome, asked))))
    row = colours.LINE + 48
    assert whole.shape == (3 * row + 2 * colours.GAP, 8 * 49 - 1 + colours.GAP + colours.BAR, 3)
    bars = []
    for place in range(3):
        bar = whole[place * (row + colours.GAP) + colours.LINE :][:48, -colours.BAR :]
        assert (bar == bar[:1]).all()
        bars.append(bar[0])
    assert np.array_equal(bars[0], bars[1])  # the same model
    assert not np.array_equal(bars[1], bars[2])
    drawn = diffusion.sample(config, other, 8, steps=2, seed=config.seed)
    largest = colours.dominant(drawn)[0]
    assert tuple(bars[2][0]) == largest.value
    assert abs((bars[2] == bars[2][0]).all(1).mean() - largest.share) < 0.01
    samples = whole[2 * (row + colours.GAP) + colours.LINE :][:48:6, : 8 * 49 - 1]
    assert np.array_equal(samples[:, :48:6], drawn[0])


def test_a_silos_model_is_asked_for_the_classes_that_the_silo_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_table({"preset": "digits-8"}, "test")
    for label in "73":
        (tmp_path / "north" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "north" / label / "1.png")
    asked: list[object] = []
    whole = diffusion.sample

    def watched(*arguments: Any, labels: Any = None, **more: Any) -> Any:
        asked.append(labels)
        return whole(*arguments, labels=labels, **more)

    monkeypatch.setattr(diffusion, "sample", watched)
    state = diffusion.initial_state(config)
    outcome = Outcome(config, {"global": lambda: state}, tmp_path, {}, {"north": lambda: state})
    colours.picture(outcome, SamplesSection(count=8, steps=1))
    assert asked == [None, [3, 7, 3, 7, 3, 7, 3, 7]]
