"""The local training as the rest of the silo sees it: segments in, segments out.

Joins the model's layout, the images and ``trainer.train``; everything around it (session, transfers, state) needs no
torch, and a benchmark of the transport can put another learner in its place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from feddiff.core.config import FederationConfig
from feddiff.core.segments import F32, Layout
from feddiff.silo import ranks
from feddiff.silo.gauge import Gauge, open_extractor

if TYPE_CHECKING:
    from feddiff.core.images import Images
    from feddiff.silo.source import Source

log = logging.getLogger("feddiff.silo")


@dataclass(frozen=True)
class Lesson:
    """What a round's training is given; weights by segment."""

    round: int
    start: Mapping[str, F32]
    ema: Mapping[str, F32] | None
    """The silo's own moving average so far."""
    seed: int
    checkpoint: Path
    """Where the training keeps its own, to go on from after a kill."""
    shared: Collection[str] = ()
    """Segments that all silos start from the same version of."""
    public: Images | None = None
    """Images from outside, to be mixed with the silo's own."""


@dataclass(frozen=True)
class Learned:
    """What a round's training gives, by segment."""

    weights: Mapping[str, F32]
    ema: Mapping[str, F32] | None
    metrics: Mapping[str, float]


Told = Callable[[int, int, float, float], bool]
"""(step, steps, loss, images per second); False abandons the training."""


class Learner(Protocol):
    """Trains the whole model on what one silo has."""

    @property
    def samples(self) -> int: ...
    @property
    def labels(self) -> Mapping[str, int]: ...
    @property
    def device(self) -> str: ...
    @property
    def layout_digest(self) -> str: ...
    @property
    def gauge(self) -> Gauge | None:
        """What measures its models; None if nothing is to be measured here."""
        ...

    def initial(self) -> Mapping[str, F32]:
        """The model of the federation's seed, by segment in layout order."""
        ...

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        """One round's training; None if ``told`` abandoned it."""
        ...


class ImageLearner:
    """Trains the federation's network on a folder of images, and measures it with the extractor of this file, if any.

    ``cache``: the folder for what scanners' files are decoded to, if it is to be kept. ``processes`` train together, by
    default one, with None as many as silo/ranks.py finds right. Raises DataError if there are no images, ConfigError
    for another extractor than the rules name, or for processes that cannot be.
    """

    def __init__(
        self,
        config: FederationConfig,
        data: Source | Path,
        extractor: Path | None = None,
        processes: int | None = 1,
        cache: Path | None = None,
    ) -> None:
        from feddiff.silo.collection import collect

        self.config = config
        self.extractor = open_extractor(config, extractor)
        collection = collect(data, config, cache)
        self.images, self.inventory = collection.images, collection.inventory
        for line in self.inventory.lines():
            log.info("data: %s", line)
        self.gauge = None if self.extractor is None else Gauge(config, self.images, self.extractor)
        self.samples = len(self.images.pixels)
        self.labels = self.images.counts

        import torch

        from feddiff.core import network

        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self._processes = ranks.processes(config, processes)
        cuda = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
        if self._processes > 1:
            self.device = f"{self._processes} processes on {self.device}"
        self.layout: Layout = network.of(config).layout(config)
        self.layout_digest = self.layout.digest

    def initial(self) -> Mapping[str, F32]:
        from feddiff.core import network

        return self.layout.gather(network.of(self.config).initial_state(self.config))

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        from feddiff.core.pool import mixed
        from feddiff.silo import trainer

        train: Callable[..., trainer.Trained | None] = trainer.train
        if self._processes > 1:
            train = partial(ranks.train, self._processes)
        done = train(
            self.config,
            self.layout.scatter(lesson.start),
            self.images if lesson.public is None else mixed(self.images, lesson.public),
            lesson.seed,
            round=lesson.round,
            shared=[each.name for name in lesson.shared for each in self.layout[name].parameters],
            ema=self.layout.scatter(lesson.ema) if lesson.ema else None,
            checkpoint=lesson.checkpoint,
            progress=lambda at: told(at.step, at.steps, at.loss, at.images_per_second),
        )
        if done is None:
            return None
        return Learned(self.layout.gather(done.state), self.layout.gather(done.ema) if done.ema else None, done.metrics)


def training_seed(federation_seed: int, round: int, silo: str) -> int:
    """63 bits that differ for every silo and round, and are the same on every attempt."""
    text = f"{federation_seed}/{round}/{silo}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
