"""bench/evaluation.py, pictures.py and result.py: what a finished cell's models are measured by, and how they look."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from feddiff.bench import dataset, pictures, result, sweep
from feddiff.bench.evaluation import Evaluation
from feddiff.bench.outcome import Outcome
from feddiff.bench.partition import Split
from feddiff.bench.reference import QualitySection, Reference, stage
from feddiff.bench.sections import SamplesSection
from feddiff.core import diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.moments import Moments
from feddiff.core.moments import fid as fid_of
from feddiff.core.quality import Measured, measure

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
NUMBERS = {"fid", "kid", "precision", "recall", "inception_score", "class_kl"}
COPIES = {"memorised", "copying", "authentic"}
SWEEP = """\
name = "tiny"
baselines = []
processes = 1
[federation]
preset = "digits-8"
[federation.rounds]
count = 1
[federation.training]
steps = 2
batch_size = 8
[data]
images = 120
[samples]
count = 10
steps = 3
[quality]
extractor = "convnet"
samples = 30
steps = 2
every = 1
personal = true
[grid]
silos = [2]
codec = ["int8"]
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Measuring takes all CPUs, which tests must not leave behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> FederationConfig:
    return from_table({"preset": "digits-8", "plan": "udec"}, "test")


def images(place: Path, config: FederationConfig, **counts: int) -> Path:
    """Noise for each class of each silo: SILO/LABEL/IMAGE."""
    generator = np.random.default_rng(7)
    for silo, count in counts.items():
        for number in range(count):
            home = place / silo / config.data.classes[number % 10]
            home.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 50, (8, 8), np.uint8) + np.uint8(20 * (number % 10))
            Image.fromarray(pixels).save(home / f"{number}.png")
    return place


def reference(
    asked: QualitySection, home: Path, config: FederationConfig, held: int = 140, **counts: int
) -> tuple[Reference, Path]:
    """Of silos with so many images, and so many held out; and the folder of what was dealt to the silos."""
    test = images(home / "held", config, all=held) / "all"
    staged = dataset.stage(str(images(home / "images", config, **counts)), str(test), 2, None, True, home / "run")
    staged.train.deal(Split("folders"), len(counts), 0, 1, home / "dealt")
    return stage(asked, home, staged, config, lambda line: None, threading.Event()), home / "dealt"


def evaluated(outcome: Outcome, held: Reference) -> dict[str, Any]:
    found = Evaluation(outcome, held, lambda line: None, threading.Event()).table()
    json.dumps(found, allow_nan=False)
    return found


def planted(config: FederationConfig, data: Path, *names: str, **more: Any) -> Outcome:
    """Models nobody trained, each with other weights."""

    def state(factor: float) -> Any:
        return lambda: {name: array * np.float32(factor) for name, array in diffusion.initial_state(config).items()}

    return Outcome(config, {name: state(1 + place / 4) for place, name in enumerate(names)}, data, {}, **more)


class TestEvaluation:
    def test_a_number_is_the_mean_of_those_of_the_models(self, config: FederationConfig, tmp_path: Path) -> None:
        asked = QualitySection(extractor="convnet", samples=24, steps=2)
        held, data = reference(asked, tmp_path, config, north=60, south=80)
        outcome = planted(config, data, "north", "south")
        found = evaluated(outcome, held)
        assert {(row["metric"], row["against"]) for row in found["metrics"]} == (
            {(name, against) for name in NUMBERS - {"inception_score"} for against in ("training", "test")}
            | {("inception_score", "")}
            | {(name, "training") for name in COPIES}
        )
        rows = {(row["metric"], row["against"]): row for row in found["metrics"]}
        for row in rows.values():
            assert row.keys() == {*Measured.__dataclass_fields__, "by"}
            together = row["against"] != "training"
            assert list(row["by"]) == (["silos together"] if together else ["north", "south"])
            assert row["value"] == pytest.approx(sum(row["by"].values()) / len(row["by"]))
            assert (row["samples"], row["extractor"]) == (24, "convnet-8x8x1")
            assert row["digest"] == held.extractor.digest
        assert rows["fid", "training"]["reference"] == 70
        assert rows["fid", "test"]["reference"] == 140
        assert rows["fid", "training"]["spread"] == pytest.approx(
            np.std(list(rows["fid", "training"]["by"].values()), ddof=1)
        )
        # The same samples by hand, against the silo's own images.
        own = held.training.within(data / "south")
        drawn = diffusion.sample(
            config, outcome.models["south"](), 24, steps=2, labels=own.labels(config, 24), batch=512, device="cpu"
        )
        features = held.extractor.features(drawn.transpose(0, 3, 1, 2))
        (fid, *_) = measure(features, own.features, "training")
        assert rows["fid", "training"]["by"]["south"] == pytest.approx(fid.value, rel=1e-4)
        # Against what is held out they stand together: of each as many as its share of the images is.
        other = held.training.within(data / "north")
        drawn = diffusion.sample(
            config, outcome.models["north"](), 24, steps=2, labels=other.labels(config, 24), batch=512, device="cpu"
        )
        mixed = held.extractor.features(drawn.transpose(0, 3, 1, 2)).values[:10], features.values[:14]
        together = fid_of(Moments.of(np.concatenate(mixed), "x"), Moments.of(held.test.features.values, "x"))
        assert rows["fid", "test"]["value"] == pytest.approx(together, rel=1e-4)
        assert found["classes"]["names"] == list(config.data.classes)
        assert {name: sum(counts) for name, counts in found["classes"]["samples"].items()} == {"north": 24, "south": 24}
        assert sum(found["classes"]["reference"]) == 140
        assert set(found["memorisation"]) == {"north", "south"}
        assert (found["sampler"], found["steps"]) == ("ddim", 2)

    def test_too_few_images_are_a_caution_and_no_failure(self, config: FederationConfig, tmp_path: Path) -> None:
        asked = QualitySection(extractor="convnet", samples=24, steps=2)
        held, data = reference(asked, tmp_path, config, held=62, north=60, south=1)
        found = evaluated(planted(config, data, "north", "south"), held)
        rows = {(row["metric"], row["against"]): row for row in found["metrics"]}
        fid = rows["fid", "training"]
        assert fid["by"]["south"] is None
        assert fid["value"] == fid["by"]["north"]
        assert any(caution.startswith("south: ") for caution in fid["cautions"])
        assert rows["fid", "test"]["value"] is not None
        # 62 images held out: none of them is the first hundredth.
        assert found["memorisation"] == {}
        assert rows["memorised", "training"]["value"] is None
        assert "held-out images" in rows["memorised", "training"]["cautions"][0]

    def test_too_few_samples_leave_a_row_that_says_so(self, config: FederationConfig, tmp_path: Path) -> None:
        asked = QualitySection(extractor="convnet", samples=3, steps=2, copies=False)
        held, data = reference(asked, tmp_path, config, north=60)
        found = evaluated(planted(config, data, "global"), held)
        assert {row["metric"] for row in found["metrics"]} == {"fid", "kid", "class_kl"}
        cautions = [" ".join(row["cautions"]) for row in found["metrics"] if row["metric"] == "fid"]
        assert len(cautions) == 2
        assert all("needs as many samples" in each and "3 samples" in each for each in cautions)
        assert "memorisation" not in found

    def test_silos_own_models_are_held_against_the_global_one(self, config: FederationConfig, tmp_path: Path) -> None:
        asked = QualitySection(extractor="convnet", samples=24, steps=2, personal=True)
        held, data = reference(asked, tmp_path, config, north=60, south=60, west=1)
        outcome = planted(config, data, "global")
        same = replace(outcome, own={"north": outcome.models["global"], "west": outcome.models["global"]})
        gain = evaluated(same, held)["personalisation"]
        assert (gain["api"], gain["mpi"], gain["pui"]) == (0, 0, 0)
        assert list(gain["by"]) == ["north"]
        assert gain["cautions"][0].startswith("west: ")
        assert "personalisation" not in evaluated(outcome, held)

    def test_they_are_held_against_the_model_that_they_began_with(
        self, config: FederationConfig, tmp_path: Path
    ) -> None:
        """Also where there is no global model: each silo by itself (Hadjigeorgiou's isolation)."""
        asked = QualitySection(extractor="convnet", samples=24, steps=2, personal=True, copies=False)
        held, data = reference(asked, tmp_path, config, north=60, south=60)
        alone = planted(config, data, "north", "south")
        assert "personalisation" not in evaluated(alone, held)
        gain = evaluated(replace(alone, before=alone.models["north"]), held)["personalisation"]
        assert gain["against"] == "before"
        assert gain["by"]["north"]["own"] == pytest.approx(gain["by"]["north"]["global"])
        one = gain["by"]["south"]
        expected = 100 * (one["global"] - one["own"]) / one["global"]
        assert abs(expected) > 1
        assert (gain["api"], gain["mpi"]) == (
            pytest.approx(expected / 2, abs=1e-3),
            pytest.approx(expected / 2, abs=1e-3),
        )
        assert gain["pui"] == (50 if expected > 0 else 0)

    def test_a_stop_is_obeyed_while_it_samples(self, config: FederationConfig, tmp_path: Path) -> None:
        asked, stop = QualitySection(extractor="convnet", samples=24, steps=2), threading.Event()
        held, data = reference(asked, tmp_path, config, north=60)
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            Evaluation(planted(config, data, "global"), held, lambda line: None, stop).table()


class TestPictures:
    @pytest.mark.parametrize("names", [("global",), ("north", "south")])
    def test_the_denoising_moves_from_noise_to_the_grid(
        self, names: tuple[str, ...], config: FederationConfig, tmp_path: Path
    ) -> None:
        asked = SamplesSection(count=20, steps=30)
        outcome = planted(config, tmp_path, *names)
        (tmp_path / "moving.png").write_bytes(pictures.denoising(outcome, asked))
        with Image.open(tmp_path / "moving.png") as moving:
            frames = []
            for at in range(getattr(moving, "n_frames", 1)):
                moving.seek(at)
                frames.append((np.array(moving.convert("L")), moving.info.get("duration")))
        still, *moved = frames
        assert len(moved) == pictures.FRAMES
        assert np.array_equal(still[0], moved[-1][0])  # what programs show that know no animation
        assert [time for _, time in moved] == [pictures.FRAME_MS] * (pictures.FRAMES - 1) + [pictures.LAST_MS]
        assert not np.array_equal(moved[0][0], moved[-1][0])
        grid = np.array(pictures.samples(outcome, asked).convert("L"))
        small = pictures.SIDE // 8
        first = grid[:48:small, :48:small]
        scale = pictures.MOVING_SIDE // 8
        assert np.array_equal(still[0][: 8 * scale : scale, : 8 * scale : scale], first)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A federation of real daemons, run and measured."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    asked = sweep.load(tmp_path / "sweep.toml")
    staged = asked.images(tmp_path / "data")
    (cell,) = asked.cells(staged.digest)
    (tmp_path / "work").mkdir()
    stop = threading.Event()
    return result.run(cell, asked, staged, tmp_path / "work", lambda line: None, stop, jobs=64)


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_federation_becomes_a_result_with_its_quality(finished: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    found, drawn = finished
    assert drawn.keys() == {"png", "denoising.png", "colours.png"}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    json.dumps(found, allow_nan=False)
    quality = found["quality"]
    assert quality.keys() == {
        "of", "validation_loss", "sampler", "steps", "metrics", "classes", "memorisation", "personalisation",
    }  # fmt: skip
    assert quality["of"] == "global"
    assert {row["metric"] for row in quality["metrics"]} == NUMBERS | COPIES
    assert set(quality["personalisation"]["by"]) == {"silo-1", "silo-2"}
    digest = found["rules"]["quality"]["extractor"]
    for each in found["rounds"]:
        readings = {row["metric"]: row for row in each["quality"]}
        assert readings.keys() >= NUMBERS
        assert {row["of"] for row in each["quality"]} == {"global"}
        assert (readings["fid"]["digest"], readings["fid"]["samples"]) == (digest, 30)
        assert each["up_parameters"] == 2 * found["parameters"]
    assert {row["digest"] for row in quality["metrics"]} == {digest}
    assert found["totals"]["up_parameters"] == 2 * found["parameters"]
    assert found["totals"]["down_parameters"] >= found["totals"]["up_parameters"]
