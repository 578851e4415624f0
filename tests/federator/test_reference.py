"""federator/reference.py: features of reference images are made once, and anew when anything they rest on changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.features import Extractor
from feddiff.core.images import read_images
from feddiff.core.quality import Features
from feddiff.federator.reference import CACHE, features

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Rows(torch.nn.Module):
    """The first row of pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0].float()


class Classified(torch.nn.Module):
    """The same, and two classes."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, 0, 0].float(), images[:, 0, 0, :2].float()


class Place:
    """A federation's folder, and reference images."""

    def __init__(self, folder: Path) -> None:
        self.home, self.images = folder / "home", folder / "images"
        self.made = 0
        for each in (self.home, self.images):
            each.mkdir()
        for number in range(5):
            Image.new("L", (8, 8), 10 * number).save(self.images / f"{number}.png")

    @property
    def config(self) -> FederationConfig:
        return from_table({"model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}}, "test")

    def features(self, extractor: Extractor) -> Features:
        def told(done: int, count: int) -> None:
            self.made += done == count

        pixels = read_images(self.images, self.config)
        return features(self.home, self.images, pixels, extractor, self.config, told)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def extractor(folder: Path, module: type[torch.nn.Module]) -> Extractor:
    path = folder / f"{module.__name__}.pt"
    torch.jit.save(torch.jit.script(module()), path)
    return Extractor.load(path, device="cpu")


@pytest.mark.parametrize("module", [Rows, Classified])
def test_are_made_once(place: Place, tmp_path: Path, module: type[torch.nn.Module]) -> None:
    network = extractor(tmp_path, module)
    first, second = place.features(network), place.features(network)
    assert place.made == 1
    assert np.array_equal(first.values, second.values)
    assert (first.probabilities is None) == (second.probabilities is None) == (module is Rows)
    if first.probabilities is not None and second.probabilities is not None:
        assert np.array_equal(first.probabilities, second.probabilities)
    assert (second.extractor, second.digest) == (network.name, network.digest)


def test_another_extractor_makes_its_own(place: Place, tmp_path: Path) -> None:
    place.features(extractor(tmp_path, Rows))
    assert place.features(extractor(tmp_path, Classified)).probabilities is not None
    assert place.made == 2


def test_changed_images_are_seen(place: Place, tmp_path: Path) -> None:
    network, changed = extractor(tmp_path, Rows), place.images / "3.png"
    place.features(network)
    Image.new("L", (8, 8), 200).save(changed)
    assert place.features(network).values[3, 0] == 200
    (place.images / "4.png").unlink()
    assert len(place.features(network).values) == 4
    os.utime(changed, ns=(0, 0))
    place.features(network)
    assert place.made == 4


def test_a_damaged_file_is_made_anew(place: Place, tmp_path: Path) -> None:
    network = extractor(tmp_path, Rows)
    expected = place.features(network).values
    whole = (place.home / CACHE).read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[: len(whole) // 2]):
        (place.home / CACHE).write_bytes(damaged)
        assert np.array_equal(place.features(network).values, expected)
    assert place.made == 4
