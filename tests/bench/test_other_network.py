"""A cell of a network that denoises nothing: what is measured and drawn of it, and a dash where it has no number."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feddiff.bench import pictures, table
from feddiff.bench.evaluation import losses
from feddiff.bench.outcome import GLOBAL, Outcome
from feddiff.bench.sections import SamplesSection
from feddiff.bench.table import Entry
from feddiff.core import network
from feddiff.core.config import from_table
from feddiff.core.images import Images


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    torch.set_num_threads(1)
    config = from_table({"preset": "dcgan-8"}, "test")
    state = network.of(config).initial_state(config)
    return Outcome(config, {GLOBAL: lambda: state}, tmp_path, {})


def test_it_has_no_validation_loss_and_the_table_a_dash(outcome: Outcome) -> None:
    images = Images(np.zeros((3, 1, 8, 8), np.uint8), None, {}, ())
    found = losses(outcome, images)
    assert (found["mean"], found["deviation"], found["by"]) == (None, None, {})
    totals = {"images": 5, "down": 1, "up": 1, "raw": 4, "loss": 2.08}
    result = {"totals": totals, "rounds": [1], "quality": {"of": "global", "validation_loss": found}}
    row = table.text([Entry("key", "full", {"seed": 0}, result, "")]).splitlines()[1]
    assert row.split()[-3:] == ["2.0800", "–", "global"]


def test_the_way_from_noise_is_one_still_picture(outcome: Outcome) -> None:
    asked = SamplesSection(count=9)
    drawn = np.asarray(pictures.samples(outcome, asked))
    still = Image.open(io.BytesIO(pictures.denoising(outcome, asked)))
    small = network.of(outcome.config).sample(outcome.config, outcome.models[GLOBAL](), 1)[0, ..., 0]
    assert np.array_equal(drawn[:48:6, :48:6], small)
    scale = 12
    for at in range(getattr(still, "n_frames", 1)):
        still.seek(at)
        assert np.array_equal(np.asarray(still.convert("L"))[: 8 * scale : scale, : 8 * scale : scale], small)
