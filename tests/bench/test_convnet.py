"""bench/features.py on small folders; slowly, on all of scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feddiff.bench import trial
from feddiff.bench.features import FEATURES, train
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.features import Extractor
from feddiff.core.neighbours import precision_recall

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def folder(home: Path, count: int, size: int = 10, classes: int = 2) -> Path:
    """Noise, the brighter the higher the class."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (home / f"class-{label}").mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (size, size), np.uint8) + np.uint8(150 * label // (classes - 1))
            Image.fromarray(pixels).save(home / f"class-{label}" / f"{number}.png")
    return home


def digits(home: Path, each: int) -> Path:
    """A folder of scikit-learn's, at most ``each`` of a label."""
    images, labels = trial.digits()
    for label in range(10):
        (home / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[:each]:
            Image.fromarray(images[index]).save(home / str(label) / f"{index}.png")
    return home


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trained_file_takes_any_size_grey_or_colour(tmp_path: Path, channels: int) -> None:
    data = folder(tmp_path / "data", 20)
    told: list[tuple[int, int]] = []
    result = train(data, tmp_path / "convnet.pt", 8, channels, epochs=4, progress=lambda *done: told.append(done))
    assert (result.images, result.held_out, result.classes) == (32, 8, ("class-0", "class-1"))
    assert result.accuracy == 1
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    extractor = Extractor.load(tmp_path / "convnet.pt", device="cpu")
    assert (extractor.name, extractor.digest) == ("convnet", result.digest)
    bright = np.full((2, 1, 31, 17), 200, np.uint8)
    for images in (bright, bright.repeat(3, axis=1), bright[:, :, :8, :8], bright.repeat(2, axis=3)):
        found = extractor.features(images)
        assert found.values.shape == (2, FEATURES)
        assert found.probabilities is not None
        assert found.probabilities.argmax(axis=1).tolist() == [1, 1]
    np.testing.assert_allclose(
        extractor.features(bright).values, extractor.features(bright.repeat(3, axis=1)).values, atol=1e-5
    )


def test_a_seed_gives_one_network(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 10)
    before = torch.random.get_rng_state()
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8)
    found = []
    for number, seed in enumerate((5, 5, 6)):
        train(data, tmp_path / f"{number}.pt", 8, epochs=1, seed=seed)
        found.append(Extractor.load(tmp_path / f"{number}.pt", device="cpu").features(images).values)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_digits_are_told_apart(tmp_path: Path) -> None:
    result = train(digits(tmp_path / "data", 60), tmp_path / "convnet.pt", 8, epochs=12)
    assert result.accuracy > 0.85
    assert "held-out images right" in str(result)


@pytest.mark.slow
def test_all_digits_are_told_apart_well(tmp_path: Path) -> None:
    result = train(digits(tmp_path / "data", 1000), tmp_path / "convnet.pt", 8)
    assert result.images + result.held_out == 1797
    assert result.accuracy > 0.95
    extractor = Extractor.load(tmp_path / "convnet.pt", device="cpu")
    generator = np.random.default_rng(0)
    real = trial.digits()[0][generator.permutation(1797)[:800], np.newaxis]
    noise = generator.integers(0, 256, real.shape, np.uint8)
    precision, recall = precision_recall(extractor.features(noise).values, extractor.features(real).values)
    assert precision < 0.05  # a classifier of clean images alone came to 0.1 to 0.8
    assert recall < 0.05


def test_what_cannot_be_classified_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "convnet.pt"
    with pytest.raises(DataError, match="at least two"):
        train(folder(tmp_path / "one", 5, classes=2) / "class-0", out)
    with pytest.raises(DataError, match="'class-0' has 4"):
        train(folder(tmp_path / "few", 4), out)
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "nothing", out)
    assert not out.exists()


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 5)
    for settings in ({"size": 4}, {"channels": 2}, {"epochs": 0}):
        with pytest.raises(ConfigError, match="size must be"):
            train(data, tmp_path / "convnet.pt", **settings)
    with pytest.raises(ConfigError, match="the name of a file"):
        train(data, tmp_path / "none" / "convnet.pt")
