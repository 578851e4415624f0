"""What the models of a run are measured with and against: an extractor, and what it makes of the run's real images.

Made once for a run, after its images are staged (bench/dataset.py) and before its cells; what is there whole is not
made again, so that a run that goes on, and a cell in a process of its own, find what the first one made.

RUN/data/DIGEST/convnet-8x8x1.pt     with ``extractor = "convnet"``: trained on the run's training images
RUN/data/DIGEST/training-KEY.npz     the features of the training images and their names; test-KEY.npz: held-out ones
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from feddiff.bench.dataset import Dataset, folder
from feddiff.bench.partition import Split
from feddiff.core import console
from feddiff.core.classes import proportional
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError, StoreError
from feddiff.core.quality import Features
from feddiff.core.sections import Section
from feddiff.core.store import write_atomic

if TYPE_CHECKING:
    from feddiff.core.features import Extractor

CONVNET = "convnet"
SMALLEST, LARGEST = 8, 32
"""Pixels of the images that a convnet is made for: smaller are enlarged, larger would cost more than cells."""
PIXELS_A_THREAD = 8
"""Of an image's side."""
QUIET_S = 10.0
"""Least time between two lines about the progress of one thing."""


class QualitySection(Section):
    """``[quality]`` of a sweep file: how models are measured, beside their validation loss (core/quality.py)."""

    extractor: Annotated[str, Field(min_length=1)]
    """``convnet``, or a TorchScript file, relative to the sweep's file."""
    kind: Literal["torchscript", "inception"] = "torchscript"
    samples: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Drawn of each model."""
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Or as many as the diffusion has."""
    every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Federations also measure after every so many rounds; 0: only their last models are measured."""
    silos: bool = False
    """Then silos measure their own models, too, as the strategy of a federation may want."""
    copies: bool = True
    """Look for copies of training images among the samples."""
    personal: bool = False
    """Hold the silos' own last models against the global one; costs the samples of each silo once or twice more."""

    @model_validator(mode="after")
    def _inception_is_a_file(self) -> Self:
        if self.extractor == CONVNET and self.kind != "torchscript":
            raise ValueError(f'kind "{self.kind}" is that of a file; a convnet is none')
        if self.silos and not self.every:
            raise ValueError("silos measure while a federation trains; say how often, every = 1")
        return self

    def file(self, home: Path) -> Path:
        """The extractor's file; ``home`` is the folder of the sweep's file."""
        return home / self.extractor

    def table(self, digest: str, timesteps: int) -> dict[str, Any]:
        """``[quality]`` of a federation that measures while it trains, with the extractor of this SHA-256."""
        table = self.model_dump(include={"kind", "every", "samples", "sampler"})
        return {
            "extractor": digest,
            **table,
            "steps": min(self.steps, timesteps),
            **({"silos": True} if self.silos else {}),
        }

    def decisive(self, home: Path) -> str:
        """What decides the outcome: these settings and the file's content. Raises ConfigError if it is not there."""
        if self.extractor == CONVNET:  # of the images, which decide anyway
            return self._text()
        try:
            with self.file(home).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(
                f"quality.extractor: {self.file(home)}: {error.strerror}; name a file, or convnet"
            ) from None
        return self.model_copy(update={"extractor": digest})._text()

    def _text(self) -> str:
        return self.model_dump_json(exclude=None if self.silos else {"silos"})  # as before there was such a key


@dataclass(frozen=True, eq=False)
class Real:
    """Features of real images."""

    names: tuple[str, ...]
    """LABEL/IMAGE, in order."""
    features: Features

    def within(self, place: Path) -> Real:
        """Those that lie in a folder LABEL/IMAGE too: a silo's. Raises StoreError if none does."""
        there = {image.as_posix() for image in folder(place).images}
        found = self._only([row for row, name in enumerate(self.names) if name in there])
        if found is None:
            raise StoreError(f"{place} holds none of the run's images")
        return found

    def labels(self, config: FederationConfig, count: int) -> list[int] | None:
        """Classes for ``count`` samples, in the proportion of these images; None for a model without classes."""
        if not config.conditional:
            return None
        of = Counter(name.partition("/")[0] for name in self.names)
        return proportional([of[name] for name in config.data.classes], count)

    def among(self, others: Real) -> Real:
        """Those of labels that the others have, too; all, if there are none."""
        labels = {name.partition("/")[0] for name in others.names}
        return self._only([row for row, name in enumerate(self.names) if name.partition("/")[0] in labels]) or self

    def _only(self, rows: Sequence[int]) -> Real | None:
        if not rows:
            return None
        values, likely = self.features.values[rows], self.features.probabilities
        kept = replace(self.features, values=values, probabilities=None if likely is None else likely[rows])
        return Real(tuple(self.names[row] for row in rows), kept)


@dataclass(frozen=True, eq=False)
class Reference:
    """A run's extractor, and what it makes of the real images."""

    asked: QualitySection
    file: Path
    extractor: Extractor
    classes: tuple[str, ...]
    """What the extractor tells apart; () if it is not ours, and they are not known."""
    training: Real
    test: Real


def stage(
    asked: QualitySection,
    home: Path,
    images: Dataset,
    config: FederationConfig,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Reference:
    """Make what is not there yet of the reference for models of ``config``; ``home``: the folder of the sweep's file.

    Real images are taken at the model's size and channels. Raises ConfigError, DataError for images or an extractor
    that will not do, StoreError for a damaged file, KeyboardInterrupt when ``stop`` is set.
    """
    import torch

    from feddiff.core.features import Extractor

    torch.set_num_threads(threads(config))
    classes: tuple[str, ...] = ()
    file = asked.file(home)
    if asked.extractor == CONVNET:
        file, classes = _convnet(images, config, say, stop)
    extractor = Extractor.load(file, asked.kind)
    read = (extractor.digest, asked.kind, config.model["sample_size"], config.model["in_channels"])
    labelled = config.conditional if config.null_class is None else "with a null class"
    key = hashlib.sha256(json.dumps([*read, config.data.classes, labelled]).encode()).hexdigest()[:16]
    found = []
    sources: dict[str, AbstractContextManager[Path]] = {"training": _pooled(images), "test": nullcontext(images.test)}
    for part, source in sources.items():
        place = images.test.parent / f"{part}-{key}.npz"
        told = progress(f"features of {part} images", say, stop)
        found.append(_real(place, source, extractor, config, told))
    return Reference(asked, file, extractor, classes, *found)


def threads(config: FederationConfig, jobs: int = 1) -> int:
    """To sample and measure with: a cell's share of the CPUs, but of small images no more than can be kept busy."""
    # Threads that wait for each other spin; beside other work that made 8x8 images ten to thirty times slower.
    return max(min(console.cpus() // jobs, int(config.model["sample_size"]) // PIXELS_A_THREAD), 1)


def progress(what: str, say: Callable[[str], None], stop: threading.Event) -> Callable[[int, int], None]:
    """Tells (done, count) now and then, if it takes long. Raises KeyboardInterrupt when ``stop`` is set."""
    said = time.monotonic()

    def told(done: int, count: int) -> None:
        nonlocal said
        if stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() - said > QUIET_S:
            said = time.monotonic()
            say(f"{what}: {done} of {count}")

    return told


def _convnet(
    images: Dataset, config: FederationConfig, say: Callable[[str], None], stop: threading.Event
) -> tuple[Path, tuple[str, ...]]:
    """The network's file and its classes; trained if it is not there."""
    from feddiff.bench import features

    labels = sorted({images.train.label(image) for image in images.train.images})
    if len([label for label in labels if label]) < 2:
        raise ConfigError(
            'quality.extractor = "convnet" learns to tell labels apart, and these images have '
            f"{'none' if labels == [''] else f'only {labels}'}; arrange them as LABEL/IMAGE, or name a TorchScript file"
        )
    size, channels = min(max(config.model["sample_size"], SMALLEST), LARGEST), config.model["in_channels"]
    file = images.test.parent / f"{CONVNET}-{size}x{size}x{channels}.pt"
    if not file.exists():
        with _pooled(images) as training:
            told = progress("training the convnet, epochs", say, stop)
            say(f"training the convnet on {len(images.train.images)} images")
            try:
                say(str(features.train(training, file, size, channels, progress=told)))
            except DataError as error:
                raise DataError(f'quality.extractor = "convnet": {error}; take more images, or name a file') from None
    return file, tuple(label for label in labels if label)


def _real(
    place: Path,
    source: AbstractContextManager[Path],
    extractor: Extractor,
    config: FederationConfig,
    told: Callable[[int, int], None],
) -> Real:
    """The features of a folder's images, from their file if it is there."""
    from feddiff.core.images import read_images

    if not place.exists():
        with source as root:
            read = read_images(root, config)
            skipped = {path for path, _ in read.skipped}
            names = [image.as_posix() for image in folder(root).images if image not in skipped]
        found = extractor.features(read.pixels, progress=told)
        arrays: dict[str, npt.NDArray[np.generic]] = {"names": np.array(names), "values": found.values}
        if found.probabilities is not None:
            arrays["probabilities"] = found.probabilities
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomic(place, buffer.getvalue())
    try:
        with np.load(place, allow_pickle=False) as kept:
            likely = kept.get("probabilities")
            features = Features(kept["values"], likely, extractor.name, extractor.digest, extractor.caution)
            return Real(tuple(kept["names"].tolist()), features)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{place} is damaged: {error}; remove it and run the sweep again") from None


@contextmanager
def _pooled(images: Dataset) -> Iterator[Path]:
    """A folder LABEL/IMAGE of all training images, named as they are when they are dealt to one silo."""
    if not images.train.silos:
        yield images.train.root
        return
    with tempfile.TemporaryDirectory(dir=images.test.parent) as place:
        (silo,) = images.train.deal(Split("iid"), 1, 0, 1, Path(place))
        yield Path(place) / silo
