"""Another network through the same federation: generator and discriminator, their statistics, what came of them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from noise import Noise
from PIL import Image
from stage import FEDERATOR, SILO, Stage, images

from feddiff.core import network
from feddiff.core.config import load
from feddiff.core.errors import ConfigError
from feddiff.core.presets import PRESETS
from feddiff.core.segments import F32
from feddiff.federator import desk, tables
from feddiff.silo.learner import ImageLearner, Learned, Lesson, Told
from feddiff.silo.trained import Trained

ROUNDS = 2
IMAGES = {"hospital-a": 20, "hospital-b": 12}
MODEL = "".join(f"{key} = {json.dumps(value)}\n" for key, value in PRESETS["dcgan-8"]["model"].items())


class Kept(ImageLearner):
    """A silo's training that remembers what it gave, by round."""

    results: dict[int, Learned]

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        learned = super().learn(lesson, told)
        assert learned is not None
        self.results[lesson.round] = learned
        return learned


def test_what_is_published_is_the_mean_of_what_silos_trained_statistics_included(stage: Stage, tmp_path: Path) -> None:
    stage.found(rounds=ROUNDS, unet=MODEL, training="steps = 6\nlearning_rate = 0.001")
    config = load(stage.rules)
    layout = stage.layout = network.of(config).layout(config)
    learners = {}
    server = stage.serve()
    for seed, (name, count) in enumerate(IMAGES.items()):
        images(stage.folder / "data" / name, count, seed)
        learner = learners[name] = Kept(config, stage.folder / "data" / name)
        learner.results = {}
        stage.hospital(name).learner = cast(Noise, learner)
        stage.hospitals[name].start()
    assert server.wait() == 0

    start = network.of(config).initial_state(config)
    for round in range(1, ROUNDS + 1):
        given = {name: layout.scatter(dict(each.results[round].weights)) for name, each in learners.items()}
        found = layout.scatter({name: stage.published(name, round) for name in layout.names})
        for name, before in start.items():
            mean = sum(IMAGES[silo] * state[name].astype(np.float64) for silo, state in given.items()) / 32
            np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)
            assert not np.array_equal(given["hospital-a"][name], given["hospital-b"][name]), name
            assert not np.array_equal(found[name], before), f"{name} does not arrive"
        start = found
    assert sum(name.endswith(("running_mean", "running_var")) for name in start) == 6

    sent = {(each["round"], each["silo"], each["direction"], each["segment"]) for each in stage.ledger()}
    segments = ("generator", "discriminator")
    assert {each for each in sent if each[3]} == {
        (round, silo, way, name)
        for round in range(1, ROUNDS + 1)
        for silo in IMAGES
        for way in ("down", "up")
        for name in segments
    }
    sizes = {name: layout[name].size for name in segments}
    assert all(each["parameters"] == sizes[each["segment"]] for each in stage.ledger() if each["segment"])
    for of in stage.opened().journal.metrics()[ROUNDS].values():
        assert of["loss"] == pytest.approx(of["generator_loss"] + of["discriminator_loss"])
    table = tables.by_segment(desk.story(stage.opened(), []))
    assert "generator" in table
    assert "discriminator" in table

    _drawn_and_written(stage, start, tmp_path)


def _drawn_and_written(stage: Stage, state: dict[str, F32], folder: Path) -> None:
    """The commands, at both ends, with the global model that is there."""
    config = load(stage.rules)
    drawn = network.of(config).sample(config, state, 4, seed=3, device="cpu")
    stage.operate("sample", "--out", str(folder / "grid.png"), "--count", "4", "--seed", "3")
    assert np.array_equal(np.asarray(Image.open(folder / "grid.png"))[:8, :8], drawn[0, ..., 0])
    said = stage.operate("export", str(folder / "published"))
    assert "load it with feddiff.core.dcgan.DCGAN" in said
    assert {each.name for each in (folder / "published").iterdir()} == {"config.json", "model.safetensors"}
    stage.operate("report", "--out", str(folder / "report"), "--samples", str(folder / "grid.png"))
    assert "discriminator" in (folder / "report" / "report.html").read_text()
    own = stage.folder / "hospital-a"
    done = stage.call(SILO, "export", "--state", str(own), str(folder / "own"))
    assert (done.code, Trained(own).round) == (0, ROUNDS), done.err

    again = Stage(folder / "again").found(rounds=1, unet=MODEL, training="steps = 1")
    again.rules.write_text('initial = "file"\n' + again.rules.read_text())
    server = again.serve("--initial", str(folder / "published"))
    server.terminate()
    layout = again.opened().layout
    begun = layout.scatter({name: again.published(name, 0) for name in layout.names})
    assert all(np.array_equal(begun[name], state[name]) for name in begun)


def test_a_plan_that_it_cannot_follow_is_refused_before_anything_begins(stage: Stage) -> None:
    stage.found("udec", unet=MODEL)
    assert tomllib.loads(stage.rules.read_text())["plan"] == "udec"
    refused = stage.call(FEDERATOR, "serve", "--config", str(stage.rules))
    assert refused.code == ConfigError.exit_code
    assert 'it needs plan = "full"' in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert not (stage.home / "layout.json").exists()
