"""A small classifier of one's own images, whose last hidden layer serves as features where Inception means little.

``train`` reads a folder with one sub-folder for each class, trains a few convolutions and writes a TorchScript file for
core/features.py. It is deterministic: the same images, settings, machine and torch give the same network, if not the
same file, which names the process's classes. Values measured with it compare models of the same data and the same
file, and nothing else: train once and share the file between those who compare.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.core.config import MAX_SAMPLE_SIZE, from_table
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.images import Images, read_images
from feddiff.core.store import write_atomic

FEATURES = 64
WIDTHS = (32, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64)
"""Channels of each convolution; the first keeps the size, each further one halves it, down to MAP."""
MAP = 4
HELD_OUT = 5
"""One in so many images of each class is not trained on. Slices of one patient fall on both sides."""
IMAGES_SEEN = 60_000
"""What the default number of epochs comes to, within 3 and 40: minutes on a CPU up to 64x64."""
BATCH = 64
LEARNING_RATE = 3e-3
NOISE_WEIGHT = 4.0
"""Of the squared error of the noise's share, beside the class's cross entropy."""


@dataclass(frozen=True)
class Trained:
    """A classifier's file, and how far to trust it."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    accuracy: float
    """Share of the held-out images whose class it names."""
    images: int
    held_out: int
    classes: tuple[str, ...]
    size: int
    channels: int
    epochs: int

    def __str__(self) -> str:
        shape = f"{self.size}x{self.size}x{self.channels}"
        return (
            f"{self.path}: {FEATURES} features of {shape}, {len(self.classes)} classes, "
            f"{100 * self.accuracy:.1f} % of {self.held_out} held-out images right, after {self.epochs} epochs of "
            f"{self.images} others; SHA-256 {self.digest}"
        )


def train(
    data: Path,
    out: Path,
    size: int = 32,
    channels: int = 1,
    epochs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on the labelled folder ``data``, write ``out``.

    Images of any size are brought to ``size`` pixels and 1 (grey) or 3 ``channels``, as a silo brings its own; so does
    the network with those it is given later. ``progress(done, epochs)`` follows each epoch. Raises DataError for fewer
    than two classes or too few images of one, ConfigError for settings that cannot be.
    """
    if not 8 <= size <= MAX_SAMPLE_SIZE or channels not in (1, 3) or (epochs is not None and epochs < 1):
        raise ConfigError(f"size must be 8 to {MAX_SAMPLE_SIZE}, channels 1 or 3, epochs 1 or more")
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"{out}: the name of a file in a folder that exists was expected, e.g. convnet.pt")
    images, classes = labelled(data, size, channels)
    if images.labels is None or len(classes) < 2:
        raise DataError(f"{data} must hold a folder for each of at least two classes")
    training, held_out = _split(images.labels, classes, seed)
    epochs = epochs or min(max(round(IMAGES_SEEN / len(training)), 3), 40)
    network = _fit(images.pixels[training], images.labels[training], len(classes), epochs, seed, progress)
    script, accuracy = _script(network, images.pixels[held_out], images.labels[held_out])
    write_atomic(out, script)
    digest = hashlib.sha256(script).hexdigest()
    return Trained(out, digest, accuracy, len(training), len(held_out), classes, size, channels, epochs)


def labelled(data: Path, size: int, channels: int) -> tuple[Images, tuple[str, ...]]:
    """The images of a folder with a sub-folder for each class, and the classes, in the order of their names.

    Raises DataError as ``read_images`` does.
    """
    classes = (
        sorted(each.name for each in data.iterdir() if each.is_dir() and each.name[:1] != ".") if data.is_dir() else []
    )
    model = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    config = from_table({"model": model, "data": {"classes": classes}}, str(data))
    return read_images(data, config), tuple(classes)


def _split(
    labels: npt.NDArray[np.int64], classes: tuple[str, ...], seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places (to train on, held out), sorted; images outside all classes are in neither."""
    generator = np.random.default_rng(seed)
    training, held_out = list[npt.NDArray[np.intp]](), list[npt.NDArray[np.intp]]()
    for label, name in enumerate(classes):
        places = generator.permutation(np.flatnonzero(labels == label))
        if len(places) < HELD_OUT:
            raise DataError(f"class {name!r} has {len(places)} usable images; {HELD_OUT} are the least")
        training.append(places[len(places) // HELD_OUT :])
        held_out.append(places[: len(places) // HELD_OUT])
    return np.sort(np.concatenate(training)), np.sort(np.concatenate(held_out))


def _network(size: int, channels: int, classes: int) -> Any:
    """The classifier: uint8 (N, 1 or 3, H, W) to (features (N, FEATURES), logits (N, classes)), both float32."""
    import torch
    from torch import nn

    class ConvNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, given, side = list[nn.Module](), channels, size
            for place, width in enumerate(WIDTHS):
                if place and side <= MAP:
                    break
                stride = 2 if place else 1
                layers += [nn.Conv2d(given, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
                given, side = width, -(-side // stride)
            self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(MAP), nn.Flatten())
            self.features = nn.Sequential(nn.Linear(given * MAP * MAP, FEATURES), nn.SiLU())
            self.output = nn.Linear(FEATURES, classes)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # Without a condition, so that what is traced of one kind of images holds for the other.
            pixels = images.float().div(127.5).sub(1)
            pixels = pixels.mean(1, keepdim=True) if channels == 1 else pixels.expand(-1, 3, -1, -1)
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
            features = self.features(self.layers(pixels))
            return features, self.output(features)

    return ConvNet()


def _fit(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    classes: int,
    epochs: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Any:
    """The trained network, on the CPU: a GPU's sums come in no fixed order.

    Half of the images are blended with noise, and a second output, which is not kept, must tell how much. A classifier
    that saw nothing but clean images may put noise among them, and then the precision of bad samples is high.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _network(pixels.shape[2], pixels.shape[1], classes)
        grade = torch.nn.Linear(FEATURES, 1)
    order, chance = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([*network.parameters(), *grade.parameters()], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * -(-len(pixels) // BATCH) + 1
    )
    measure = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    for epoch in range(epochs):
        shuffled = order.permutation(len(pixels))
        for start in range(0, len(pixels), BATCH):
            places = np.sort(shuffled[start : start + BATCH])
            clean = torch.from_numpy(pixels[places])
            level = torch.rand(len(clean), 1, generator=chance).mul(2).sub(1).clamp(min=0)
            noise = torch.randint(0, 256, clean.shape, generator=chance).float()
            features, logits = network(torch.lerp(clean.float(), noise, level[..., None, None]))
            named = measure(logits, torch.from_numpy(labels[places])) * (1 - level[:, 0])
            loss = named.mean() + NOISE_WEIGHT * (grade(features) - level).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    return network.eval()


def _script(network: Any, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> tuple[bytes, float]:
    """The network as a TorchScript file, and its accuracy, measured on what the file says."""
    import torch

    buffer, right = io.BytesIO(), 0
    with torch.inference_mode(), warnings.catch_warnings():
        # The trace keeps what a group normalisation finds in order of one shape; it does of all.
        warnings.filterwarnings("ignore", category=Warning, module="torch.nn.functional")
        script = torch.jit.trace(network, torch.from_numpy(pixels[:2]))
        for start in range(0, len(pixels), 256):
            _, logits = script(torch.from_numpy(pixels[start : start + 256]))
            right += int((logits.argmax(1).numpy() == labels[start : start + 256]).sum())
    torch.jit.save(script, buffer)
    return buffer.getvalue(), right / len(pixels)
