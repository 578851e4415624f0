"""bench/reference.py: extractor and features of the real images are made once, and each silo finds its rows."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddiff.bench import dataset
from feddiff.bench.dataset import Dataset
from feddiff.bench.partition import Split
from feddiff.bench.reference import QualitySection, Real, Reference, stage
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, DataError, StoreError
from feddiff.core.features import Extractor
from feddiff.core.images import read_images
from feddiff.core.quality import Features

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CONVNET = QualitySection(extractor="convnet")


def rules(*classes: str) -> FederationConfig:
    model = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    conditional = {"num_class_embeds": len(classes)} if classes else {}
    return from_table({"model": model | conditional, "data": {"classes": list(classes)}}, "test")


def folder(home: Path, *labels: str, count: int = 8) -> Path:
    """Noise, the brighter the later the label."""
    generator = np.random.default_rng(0)
    for place, label in enumerate(labels):
        (home / label).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 90, (8, 8), np.uint8) + np.uint8(80 * place)
            Image.fromarray(pixels).save(home / label / f"{number}.png")
    return home


def staged(tmp_path: Path, source: Path, by_silo: bool = False) -> Dataset:
    return dataset.stage(str(source), None, 4, None, by_silo, tmp_path / "run")


def made(
    asked: QualitySection, images: Dataset, config: FederationConfig, home: Path = Path()
) -> tuple[Reference, list[str]]:
    told: list[str] = []
    return stage(asked, home, images, config, told.append, threading.Event()), told


def script(place: Path, shift: float = 0.0) -> Path:
    """The sum of the pixels, and its square."""

    class Sums(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            total = images.float().flatten(1).sum(1, keepdim=True) + shift
            return torch.cat([total, total * total], 1)

    torch.jit.save(torch.jit.trace(Sums(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), str(place))
    return place


class TestSection:
    def test_the_content_of_the_file_decides_not_its_name(self, tmp_path: Path) -> None:
        one, other = QualitySection(extractor="one.pt"), QualitySection(extractor="other.pt")
        (tmp_path / "one.pt").write_bytes(b"a")
        (tmp_path / "other.pt").write_bytes(b"a")
        assert one.decisive(tmp_path) == other.decisive(tmp_path)
        (tmp_path / "other.pt").write_bytes(b"b")
        assert one.decisive(tmp_path) != other.decisive(tmp_path)
        assert CONVNET.decisive(tmp_path) != QualitySection(extractor="convnet", samples=5).decisive(tmp_path)

    def test_a_file_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"quality\.extractor: .*none\.pt"):
            QualitySection(extractor="none.pt").decisive(tmp_path)


class TestStage:
    def test_a_convnet_is_trained_once_on_the_training_images(self, tmp_path: Path) -> None:
        images, config = staged(tmp_path, folder(tmp_path / "ct", "dark", "light")), rules("dark", "light")
        found, told = made(CONVNET, images, config)
        assert any("12 images" in line for line in told)
        assert found.file.parent == tmp_path / "run" / images.digest[:16]
        assert (found.extractor.name, found.classes) == ("convnet-8x8x1", ("dark", "light"))
        assert (len(found.training.names), len(found.test.names)) == (12, 4)
        before = {path: path.stat().st_mtime_ns for path in found.file.parent.iterdir()}
        again, told = made(CONVNET, images, config)
        assert {path: path.stat().st_mtime_ns for path in found.file.parent.iterdir()} == before
        assert told == []
        assert again.extractor.digest == found.extractor.digest
        np.testing.assert_array_equal(again.training.features.values, found.training.features.values)
        np.testing.assert_array_equal(again.test.features.probabilities, found.test.features.probabilities)

    def test_one_that_was_stopped_leaves_nothing_and_is_trained_anew(self, tmp_path: Path) -> None:
        images, stop = staged(tmp_path, folder(tmp_path / "ct", "dark", "light")), threading.Event()
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            stage(CONVNET, tmp_path, images, rules(), lambda line: None, stop)
        assert sorted(path.name for path in images.test.parent.iterdir()) == ["test", "train"]
        found, _ = made(CONVNET, images, rules())
        assert found.file.exists()

    def test_rows_are_those_of_the_images_of_a_silo(self, tmp_path: Path) -> None:
        folder(tmp_path / "ct", "dark", "light", "other")
        (tmp_path / "ct" / "dark" / "5.png").write_bytes(b"no image")
        images, config = staged(tmp_path, tmp_path / "ct"), rules("dark", "light")
        script(tmp_path / "sums.pt")
        found, _ = made(QualitySection(extractor="sums.pt"), images, config, tmp_path)
        assert found.classes == ()
        counts = images.train.deal(Split("dirichlet", beta=0.5), 2, 0, 2, tmp_path / "dealt")
        extractor = Extractor.load(tmp_path / "sums.pt", device="cpu")
        assert not any(name.startswith("other") or name == "dark/5.png" for name in found.training.names)
        for silo in counts:
            own = found.training.within(tmp_path / "dealt" / silo)
            read = read_images(tmp_path / "dealt" / silo, config)
            np.testing.assert_array_equal(own.features.values, extractor.features(read.pixels).values)
            assert own.features.probabilities is None
        with pytest.raises(StoreError, match="none of the run's images"):
            found.training.within(folder(tmp_path / "others", "else"))

    def test_images_by_silo_are_taken_together(self, tmp_path: Path) -> None:
        for silo in ("north", "south"):
            folder(tmp_path / "ct" / silo, "dark", "light")
        images, config = staged(tmp_path, tmp_path / "ct", by_silo=True), rules("dark", "light")
        found, _ = made(CONVNET, images, config)
        assert len(found.training.names) == 24
        counts = images.train.deal(Split("folders"), 2, 0, 1, tmp_path / "dealt")
        rows = [len(found.training.within(tmp_path / "dealt" / silo).names) for silo in counts]
        assert rows == [sum(by.values()) for by in counts.values()]
        assert sorted(path.suffix for path in found.file.parent.iterdir()) == ["", "", ".npz", ".npz", ".pt"]

    def test_another_extractor_makes_other_features(self, tmp_path: Path) -> None:
        images = staged(tmp_path, folder(tmp_path / "ct", "dark", "light"))
        script(tmp_path / "sums.pt")
        one, _ = made(QualitySection(extractor="sums.pt"), images, rules(), tmp_path)
        script(tmp_path / "sums.pt", shift=5.0)
        other, _ = made(QualitySection(extractor="sums.pt"), images, rules(), tmp_path)
        np.testing.assert_allclose(other.test.features.values[:, 0], one.test.features.values[:, 0] + 5)

    def test_unlabelled_images_are_refused_with_advice(self, tmp_path: Path) -> None:
        place = folder(tmp_path / "ct", "x")
        with pytest.raises(ConfigError, match="LABEL/IMAGE, or name a TorchScript file"):
            made(CONVNET, staged(tmp_path, place), rules())
        with pytest.raises(ConfigError, match="have none"):
            made(CONVNET, staged(tmp_path / "flat", place / "x"), rules())

    def test_too_few_of_a_label_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="5 are the least"):
            made(CONVNET, staged(tmp_path, folder(tmp_path / "ct", "a", "b", count=4)), rules())

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        images = staged(tmp_path, folder(tmp_path / "ct", "dark", "light"))
        script(tmp_path / "sums.pt")
        made(QualitySection(extractor="sums.pt"), images, rules(), tmp_path)
        (place,) = images.test.parent.glob("training-*.npz")
        place.write_bytes(place.read_bytes()[:-200])
        with pytest.raises(StoreError, match=place.name):
            made(QualitySection(extractor="sums.pt"), images, rules(), tmp_path)


class TestLabels:
    def real(self, *counts: int) -> tuple[Real, FederationConfig]:
        config = rules(*(f"class {place}" for place in range(len(counts))))
        names = tuple(f"class {place}/{number}.png" for place, count in enumerate(counts) for number in range(count))
        return Real(names, Features(np.zeros((len(names), 2), np.float32), None, "none", "0" * 64)), config

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.integers(1, 300))
    def test_samples_are_asked_for_in_the_proportion_of_the_images(self, counts: list[int], count: int) -> None:
        real, config = self.real(*counts)
        labels = real.labels(config, count)
        assert labels is not None
        assert len(labels) == count
        for label, images in enumerate(counts):
            assert abs(labels.count(label) - count * images / sum(counts)) < max(1, len(counts) / 2)
            assert images or not labels.count(label)

    @given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 50))
    def test_equal_shares_are_asked_for_cyclically(self, classes: int, images: int, count: int) -> None:
        real, config = self.real(*[images] * classes)
        assert real.labels(config, count) == [place % classes for place in range(count)]

    def test_a_model_without_classes_is_asked_for_none(self) -> None:
        assert self.real(3)[0].labels(rules(), 5) is None
