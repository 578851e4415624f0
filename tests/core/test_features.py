"""core/features.py with small TorchScript modules: what goes in, what comes out, what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from feddiff.core import features
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.features import Extractor

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

GREY = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 3, 9, 4), np.uint8)


class Means(torch.nn.Module):
    """The mean of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(1, 2)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = images.float().mean((1, 2, 3)).unsqueeze(1) / 255
        return found, self.output(found)


class LikeInception(torch.nn.Module):
    """Takes what the published module takes, and gives it as that does."""

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(3, 4)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        assert img.shape[1] == 3
        found = (img.to(torch.float32) - 128).div(128).mean((2, 3))
        if return_features:
            return found
        if no_output_bias:
            return torch.nn.functional.linear(found, self.output.weight).softmax(1)
        return self.output(found).softmax(1)


def written(folder: Path, module: torch.nn.Module, name: str = "network.pt") -> Path:
    torch.jit.script(module).save(str(folder / name))
    return folder / name


@pytest.mark.parametrize("images", [GREY, COLOUR])
def test_a_module_sees_the_images_as_they_are(tmp_path: Path, images: npt.NDArray[np.uint8]) -> None:
    path = written(tmp_path, Means())
    extractor = Extractor.load(path, device="cpu")
    assert (extractor.name, extractor.digest) == ("network", hashlib.sha256(path.read_bytes()).hexdigest())
    found = extractor.features(images, batch=3)
    np.testing.assert_allclose(found.values, images.mean(axis=(2, 3)), rtol=1e-5)
    assert found.values.dtype == np.float32
    assert found.probabilities is None
    assert (found.extractor, found.digest, found.caution) == (extractor.name, extractor.digest, "")


def test_logits_become_probabilities(tmp_path: Path) -> None:
    found = Extractor.load(written(tmp_path, Classifier()), device="cpu").features(COLOUR, batch=2)
    assert found.probabilities is not None
    assert found.probabilities.shape == (5, 2)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(found.probabilities[:, 0]) > 0


@pytest.mark.parametrize("images", [GREY, COLOUR])
def test_inception_is_asked_as_published(tmp_path: Path, images: npt.NDArray[np.uint8]) -> None:
    module = LikeInception()
    extractor = Extractor.load(written(tmp_path, module), "inception", device="cpu")
    found = extractor.features(images, batch=4)
    whole = torch.from_numpy(images).expand(-1, 3, -1, -1)
    with torch.no_grad():
        values, chances = module(whole, return_features=True), module(whole, no_output_bias=True)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.values, values.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.probabilities, chances.numpy(), rtol=1e-5)


def test_only_the_published_file_is_taken_for_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LikeInception())
    other = Extractor.load(path, "inception", device="cpu")
    assert other.name == "inception"
    assert "not the published" in other.features(GREY).caution
    monkeypatch.setattr(features, "INCEPTION", other.digest)
    assert Extractor.load(path, "inception", device="cpu").features(GREY).caution == ""


def test_progress_follows_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    extractor = Extractor.load(written(tmp_path, Means()), device="cpu")
    extractor.features(GREY, batch=3, progress=lambda done, count: told.append((done, count)))
    assert told == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(
    "images",
    [GREY[:0], GREY[:, 0], GREY.astype(np.float32), np.zeros((2, 2, 8, 8), np.uint8), GREY.transpose(0, 2, 3, 1)],
)
def test_other_images_are_refused(tmp_path: Path, images: npt.NDArray[Any]) -> None:
    extractor = Extractor.load(written(tmp_path, Means()), device="cpu")
    with pytest.raises(DataError, match="uint8"):
        extractor.features(images)


class Pixels(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class One(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 5)


class ColourOnly(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1] == 3
        return images.float().mean((2, 3))


@pytest.mark.parametrize(
    ("module", "words"), [(Pixels(), "must give"), (One(), "must give"), (ColourOnly(), "cannot take")]
)
def test_other_modules_are_refused(tmp_path: Path, module: torch.nn.Module, words: str) -> None:
    extractor = Extractor.load(written(tmp_path, module), device="cpu")
    with pytest.raises(ConfigError, match=words):
        extractor.features(GREY)


def test_a_module_of_another_kind_is_no_inception(tmp_path: Path) -> None:
    extractor = Extractor.load(written(tmp_path, Means()), "inception", device="cpu")
    with pytest.raises(ConfigError, match="cannot take"):
        extractor.features(GREY)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="name the extractor's"):
        Extractor.load(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="regular file"):
        Extractor.load(tmp_path)
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(ConfigError, match="not even an archive"):
        Extractor.load(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ConfigError, match="no TorchScript"):
        Extractor.load(tmp_path / "zip.pt")
    path = written(tmp_path, Means())
    monkeypatch.setattr(features, "MAX_NETWORK_BYTES", path.stat().st_size - 1)
    with pytest.raises(ConfigError, match="at most"):
        Extractor.load(path)


def test_an_archive_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    monkeypatch.setattr(features, "MAX_NETWORK_BYTES", 1 << 16)
    with pytest.raises(ConfigError, match="unpacks to more"):
        Extractor.load(tmp_path / "bomb.pt")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    """torch.save's files are archives too, with a pickle that may run anything."""
    torch.save(Means(), tmp_path / "pickled.pt")
    with pytest.raises(ConfigError, match="no TorchScript"):
        Extractor.load(tmp_path / "pickled.pt")
