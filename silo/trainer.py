"""The local training of one round, on this silo's images alone.

Between the weights that came down and the update that goes up: a state and the images in, a state out. A
round starts with a fresh optimizer, so nothing but weights (and the silo's own moving average, which is never
sent) passes from one round to the next. All randomness is drawn from (seed, epoch), never from torch's global
state, and whatever the rest of a round depends on is in its checkpoint: on a CPU, a training that was killed
and resumed ends with the very bits of one that was left alone.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feddiff.core.classes import conditions
from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError, NotFinite
from feddiff.core.images import Images
from feddiff.core.kinds import Kind
from feddiff.core.segments import F32
from feddiff.silo.adversaries import Adversaries
from feddiff.silo.checkpoint import Tally, restore, save
from feddiff.silo.descent import Descent
from feddiff.silo.group import ALONE, Group

_STEPS: Mapping[Kind, type[Descent] | type[Adversaries]] = {"unet": Descent, "dcgan": Adversaries}
"""What learns, by network."""
REPORT_EVERY = 1.0
"""Seconds between two reports within an epoch."""


@dataclass(frozen=True)
class Progress:
    """How far the training is; loss (a mean) and speed are those since the last report."""

    step: int
    steps: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class Trained:
    """What a round's training gives."""

    state: dict[str, F32]
    ema: dict[str, F32] | None
    """The moving average of the weights; None without ``training.ema_decay``."""
    metrics: dict[str, float]
    """loss (of the last epoch, perhaps partial), first_loss, seconds, images (with repeats), images_per_second; of a
    DCGAN generator_loss and discriminator_loss, too, whose sum loss is."""


class _Window:
    """A stretch of training: an epoch, or what came since the last report."""

    def __init__(self) -> None:
        self.since, self.images, self.loss = time.monotonic(), 0, 0.0
        self.losses: dict[str, float] = {}

    def add(self, loss: float, losses: Mapping[str, float], images: int) -> None:
        """``loss`` and each of ``losses`` become the mean over all images."""
        self.images += images
        self.loss += (loss - self.loss) * images / self.images
        for name, value in losses.items():
            before = self.losses.get(name, 0.0)
            self.losses[name] = before + (value - before) * images / self.images

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.since, 1e-9)


def train(
    config: FederationConfig,
    state: Mapping[str, F32],
    images: Images,
    seed: int,
    *,
    round: int = 1,
    shared: Collection[str] = (),
    ema: Mapping[str, F32] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: float = 30.0,
    group: Group = ALONE,
    progress: Callable[[Progress], bool],
) -> Trained | None:
    """Train the whole model from ``state``; None if ``progress`` said False, which abandons the training.

    ``round`` decides the learning rate, where the rules have it change; ``shared`` are the parameters that all silos
    start from, which the proximal term holds there, if there is one. The loss that is told is without that term.
    ``progress`` is called about every second and at the end of each epoch. ``checkpoint`` is a file that is
    written at an epoch's end, at most every ``checkpoint_every`` seconds; if it is there at the start, and of
    this very training, that goes on from it. The caller deletes it once the result is safe. ``ema`` is the
    moving average that the round before ended with; without one it starts from ``state``. ``group``: each of its
    processes is called with the same; the first one alone writes the checkpoint and has a moving average.

    Raises DataError if the images are not the model's, WrongShape for a foreign state, NotFinite if the loss
    or the weights become NaN or infinite, Lost. A checkpoint that cannot be written is only warned of.
    """
    _check(config, images)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    descent = _STEPS[config.kind](config, state, ema, round, shared, group)
    key = _key(config, images, f"{seed} {round} {sorted(shared)}", state, ema or {})
    tally = Tally() if checkpoint is None else restore(checkpoint, key, descent.vectors())
    group.check_agree(tally.step, descent.device)
    pixels = torch.from_numpy(np.require(images.pixels, requirements="W"))
    classes = conditions(config, images.labels, len(images.pixels))
    labels = None if classes is None else torch.from_numpy(np.array(classes))
    size = config.training.batch_size * config.training.accumulate
    steps = config.training.steps or (config.training.epochs or 0) * math.ceil(len(pixels) / size)
    saved, recent = time.monotonic(), _Window()

    def told() -> bool:
        nonlocal recent
        report = Progress(tally.step, steps, recent.loss, recent.images / recent.seconds)
        recent = _Window()
        return progress(report)

    while tally.step < steps:
        epoch = _Window()
        with _randomness(seed, tally.epoch, len(pixels), descent.device, group.rank) as (order, generator):
            batches = torch.split(order, size)[: steps - tally.step]
            for batch in batches:
                loss = descent.step(pixels[batch], None if labels is None else labels[batch], generator)
                tally.step += 1
                if not math.isfinite(loss):
                    raise NotFinite(f"loss {loss} at step {tally.step} of {steps}; lower the learning_rate")
                epoch.add(loss, descent.losses, len(batch))
                recent.add(loss, {}, len(batch))
                if recent.seconds >= REPORT_EVERY and batch is not batches[-1] and not told():
                    return None
        tally.epoch, tally.images, tally.loss = tally.epoch + 1, tally.images + epoch.images, epoch.loss
        tally.first_loss = epoch.loss if tally.epoch == 1 else tally.first_loss
        tally.losses, tally.seconds = epoch.losses, tally.seconds + epoch.seconds
        if checkpoint is not None and group.leads and time.monotonic() - saved >= checkpoint_every:
            save(checkpoint, key, tally, descent.vectors())
            saved = time.monotonic()
        if not told():
            return None
    return _result(descent, tally)


def _result(descent: Descent | Adversaries, tally: Tally) -> Trained:
    """What came of it. Raises NotFinite if the last step broke the weights."""
    state = descent.state()
    for name, values in state.items():
        if not np.isfinite(values).all():
            raise NotFinite(f"{name} after step {tally.step}; lower the learning_rate")
    metrics = {"loss": tally.loss, **tally.losses, "first_loss": tally.first_loss, "seconds": tally.seconds}
    metrics |= {"images": float(tally.images), "images_per_second": tally.images / tally.seconds}
    return Trained(state, descent.average(), metrics)


def _check(config: FederationConfig, images: Images) -> None:
    """Raises DataError for images that are not of the model's shape."""
    size, channels = config.model["sample_size"], config.model["in_channels"]
    if not len(images.pixels) or images.pixels.shape[1:] != (channels, size, size):
        raise DataError(f"the model takes (N, {channels}, {size}, {size}), not {images.pixels.shape}")


def _key(config: FederationConfig, images: Images, chosen: str, *states: Mapping[str, F32]) -> str:
    """SHA-256 of all that decides a training's outcome: a checkpoint of another one must not be taken up."""
    digest = hashlib.sha256(f"{config.digest} {chosen} {images.pixels.shape}".encode())
    labels = () if images.labels is None else (images.labels,)
    weights = (state[name] for state in states for name in sorted(state))
    for values in (images.pixels, *labels, *weights):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


@contextmanager
def _randomness(
    seed: int, epoch: int, images: int, device: torch.device, rank: int
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """An epoch's order of the images and its source of noise; within, dropout is seeded as well, for each rank anew."""
    sequence = np.random.SeedSequence([seed % (1 << 64), epoch])
    order = torch.from_numpy(np.random.default_rng(sequence).permutation(images))
    word = int(sequence.generate_state(1, np.uint64)[0])
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    # Dropout takes no generator: it draws from the global state, which is lent for the epoch and given back.
    with torch.random.fork_rng(devices=gpus):
        own = (word + rank) % (1 << 64)
        torch.default_generator.manual_seed(own)
        if gpus:
            torch.cuda.manual_seed(own)
        yield order, torch.Generator(device).manual_seed(word)
