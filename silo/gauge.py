"""How good a silo's own model is, seen on the silo's own images; and what its images are, as moments of features.

After the training of a round that is to be measured: samples of the trained model and the silo's images go through the
extractor that the silo's administrator gave (``--extractor``), and what leaves the silo are numbers, perhaps a grid of
samples. For a federated reference the moments of the images' features leave it once (core/moments.py says what they
give away). Without the file nothing is measured.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feddiff.core.classes import conditions, proportional
from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError, FedDiffError, StoreError
from feddiff.core.features import Extractor, check_digest
from feddiff.core.quality import OWN_IMAGES, Features, measure
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, save, write_atomic
from feddiff.core.wire import MAX_GRID_BYTES, MAX_GRID_SIDE
from feddiff.silo.readings import Reading

if TYPE_CHECKING:
    from feddiff.core.images import Images

BATCH = 64
"""Images sampled at once, at most: no more than are trained on at once, which needs more memory."""
GRID = 64
"""Samples in a grid, or as many as fit into its bytes."""

Told = Callable[[int, int, str], bool]
"""(step, steps, what is done); False abandons the measurement."""

log = logging.getLogger("feddiff.silo")


class Abandoned(Exception):
    """Nobody waits for this measurement any more."""


class Gauge:
    """Measures for one silo. ``folder`` keeps the features of its images, which are made once."""

    def __init__(self, config: FederationConfig, images: Images, extractor: Extractor) -> None:
        assert config.quality is not None
        self._config, self._quality = config, config.quality
        self._images, self._extractor = images, extractor

    def due(self, round: int) -> bool:
        """Whether the silo's model is measured after this round."""
        return self._config.silos_measure and self._quality.due(round, self._config.rounds.count)

    def measure(self, vectors: Mapping[str, F32], seed: int, folder: Path, told: Told) -> Reading:
        """Of a whole model, by segment. Raises DataError for too few images, Abandoned if ``told`` said so."""
        from feddiff.core import network

        model = network.of(self._config)

        def drawing(done: int, count: int) -> None:
            _tell(told, done, count, "sampling")

        samples = model.sample(
            self._config,
            model.layout(self._config).scatter(vectors),
            self._quality.samples,
            steps=self._quality.steps,
            sampler=self._quality.sampler,
            seed=seed,
            labels=self._labels(),
            batch=min(BATCH, self._config.training.batch_size),
            progress=drawing,
        )
        found = self._features(np.ascontiguousarray(samples.transpose(0, 3, 1, 2)), "features of samples", told)
        numbers = measure(found, self.reference(folder, told), OWN_IMAGES)
        return Reading(numbers, self._grid(samples) if self._quality.grids else b"")

    def reference(self, folder: Path, told: Told) -> Features:
        """Of the silo's own images, made anew only for another extractor or other images. Raises Abandoned."""
        path = self._cached(folder, "safetensors")
        try:
            with WeightsReader(path) as reader:
                count = len(self._images.pixels)
                arrays = {name: reader.read(name).reshape(count, -1) for name in reader.names}
            basis = (self._extractor.name, self._extractor.digest, self._extractor.caution)
            return Features(arrays["values"], arrays.get("probabilities"), *basis)
        except (StoreError, ValueError, KeyError):  # not there yet, or damaged
            pass
        made = self._features(self._images.pixels, "features of the silo's images", told)
        vectors = {"values": made.values} | (
            {} if made.probabilities is None else {"probabilities": made.probabilities}
        )
        try:
            path.parent.mkdir(exist_ok=True)
            for old in path.parent.iterdir():
                old.unlink()
            save(path, {name: array.reshape(-1) for name, array in vectors.items()})
        except (FedDiffError, OSError) as error:
            log.warning("the features of the images are not kept: %s", error)
        return made

    def statistics(self, folder: Path, told: Told) -> bytes:
        """The moments of all images' features, the same bytes each time. Raises DataError, StoreError, Abandoned."""
        path = self._cached(folder, "moments")
        if path.exists():
            return path.read_bytes()
        found = self.reference(folder, told)
        count, size = found.values.shape
        if count <= size:
            raise DataError(
                f"moments of {count} images give their features away, for an image has {size};"
                f" at least {size + 1} images are needed, or an extractor of fewer features"
            )
        data = found.moments().to_bytes()
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)
        return data

    def _features(self, images: npt.NDArray[np.uint8], what: str, told: Told) -> Features:
        return self._extractor.features(images, progress=lambda done, count: _tell(told, done, count, what))

    def _cached(self, folder: Path, kind: str) -> Path:
        pixels = self._images.pixels
        digest = hashlib.sha256(f"{self._extractor.digest} {self._extractor.kind} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return folder / f"{digest.hexdigest()[:32]}.{kind}"

    def _labels(self) -> list[int] | None:
        """A class for each sample, in the proportions of the silo's images."""
        classes = conditions(self._config, self._images.labels, len(self._images.pixels))
        return None if classes is None else proportional(np.bincount(classes).tolist(), self._quality.samples)

    def _grid(self, samples: npt.NDArray[np.uint8]) -> bytes:
        """A PNG of the first samples; of fewer, if it would be too large. Empty if not even one fits."""
        from feddiff.core.grid import grid

        count = min(GRID, len(samples))
        while count:
            columns = max(round(count**0.5), 1)
            picture, buffer = grid(samples[:count], columns), io.BytesIO()
            picture.save(buffer, "PNG")
            if buffer.tell() <= MAX_GRID_BYTES and max(picture.size) <= MAX_GRID_SIDE:
                return buffer.getvalue()
            count //= 2
        return b""


def open_extractor(config: FederationConfig, path: Path | None) -> Extractor | None:
    """The extractor that a silo was given, if it is of use; who gives none does not consent to measuring.

    Raises ConfigError for another file than the one that the rules name.
    """
    quality = config.quality
    if quality is None:
        if path is not None:
            log.warning("--extractor %s is not used: this federation's rules have no [quality]", path)
        return None
    asked = {
        "the quality of this silo's model": config.silos_measure,
        "a grid of its model's samples": config.silos_measure and quality.grids,
        "statistics of its images": config.wants_statistics,
    }
    wanted = [what for what, whether in asked.items() if whether]
    if path is None:
        if wanted:
            log.warning(
                "the federation asks for %s; to measure it, give --extractor FILE, the TorchScript file of SHA-256 %s;"
                " without it this silo takes part and tells nothing of this",
                " and ".join(wanted),
                quality.extractor,
            )
        return None
    check_digest(path, quality.extractor)  # before it is loaded: a network is code
    log.info("this silo will tell the federator %s", " and ".join(wanted) or "nothing of its quality: nobody asks")
    return Extractor.load(path, quality.kind)


def _tell(told: Told, done: int, count: int, what: str) -> None:
    if not told(done, count, what):
        raise Abandoned
