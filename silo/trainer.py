"""The local training of one round, on this silo's images alone.

Between the weights that came down and the update that goes up: a state and the images in, a state out. A
round starts with a fresh optimizer, so nothing but weights (and the silo's own moving average, which is never
sent) passes from one round to the next. All randomness is drawn from (seed, epoch), never from torch's global
state, and whatever the rest of a round depends on is in its checkpoint: on a CPU, a training that was killed
and resumed ends with the very bits of one that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from feddiff.core.config import FederationConfig
from feddiff.core.diffusion import build, load_state, read_state, scheduler
from feddiff.core.errors import DataError, NotFinite, StoreError
from feddiff.core.images import Images
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, WeightsWriter

REPORT_EVERY = 1.0
"""Seconds between two reports within an epoch."""

logger = logging.getLogger(__name__)


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
    """loss (of the last epoch, perhaps partial), first_loss, seconds, images (with repeats), images_per_second."""


@dataclass
class _Tally:
    """The numbers that a checkpoint carries beside the weights."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    first_loss: float = 0.0


class _Window:
    """A stretch of training: an epoch, or what came since the last report."""

    def __init__(self) -> None:
        self.since, self.images, self.loss = time.monotonic(), 0, 0.0

    def add(self, loss: float, images: int) -> None:
        """``loss`` becomes the mean over all images."""
        self.images += images
        self.loss += (loss - self.loss) * images / self.images

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.since, 1e-9)


def train(
    config: FederationConfig,
    state: Mapping[str, F32],
    images: Images,
    seed: int,
    *,
    ema: Mapping[str, F32] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: float = 30.0,
    progress: Callable[[Progress], bool],
) -> Trained | None:
    """Train the whole model from ``state``; None if ``progress`` said False, which abandons the training.

    ``progress`` is called about every second and at the end of each epoch. ``checkpoint`` is a file that is
    written at an epoch's end, at most every ``checkpoint_every`` seconds; if it is there at the start, and of
    this very training, that goes on from it. The caller deletes it once the result is safe. ``ema`` is the
    moving average that the round before ended with; without one it starts from ``state``.

    Raises DataError if the images are not the model's, WrongShape for a foreign state, NotFinite if the loss
    or the weights become NaN or infinite. A checkpoint that cannot be written is only warned of.
    """
    _check(config, images)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    learner = _Learner(config, state, ema)
    key = _key(config, images, seed, state, ema or {})
    tally = _Tally() if checkpoint is None else learner.restore(checkpoint, key)
    pixels = torch.from_numpy(np.require(images.pixels, requirements="W"))
    labels = torch.from_numpy(np.array(images.labels)) if config.conditional else None
    size = config.training.batch_size
    steps = config.training.steps or (config.training.epochs or 0) * math.ceil(len(pixels) / size)
    saved, recent = time.monotonic(), _Window()

    def told() -> bool:
        nonlocal recent
        report = Progress(tally.step, steps, recent.loss, recent.images / recent.seconds)
        recent = _Window()
        return progress(report)

    while tally.step < steps:
        epoch = _Window()
        with _randomness(seed, tally.epoch, len(pixels), learner.device) as (order, generator):
            batches = torch.split(order, size)[: steps - tally.step]
            for batch in batches:
                loss = learner.step(pixels[batch], None if labels is None else labels[batch], generator)
                tally.step += 1
                if not math.isfinite(loss):
                    raise NotFinite(f"loss {loss} at step {tally.step} of {steps}; lower the learning_rate")
                epoch.add(loss, len(batch))
                recent.add(loss, len(batch))
                if recent.seconds >= REPORT_EVERY and batch is not batches[-1] and not told():
                    return None
        tally.epoch, tally.images, tally.loss = tally.epoch + 1, tally.images + epoch.images, epoch.loss
        tally.first_loss = epoch.loss if tally.epoch == 1 else tally.first_loss
        tally.seconds += epoch.seconds
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_every:
            learner.save(checkpoint, key, tally)
            saved = time.monotonic()
        if not told():
            return None
    return learner.result(tally)


class _Learner:
    """What learns: the model, its optimizer, its moving average."""

    def __init__(self, config: FederationConfig, state: Mapping[str, F32], ema: Mapping[str, F32] | None) -> None:
        training = self._training = config.training
        self._process, self._levels = scheduler(config), config.diffusion.timesteps
        self._velocity = config.diffusion.prediction == "v"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        capable = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self._bf16 = training.precision == "bf16" or (training.precision == "auto" and capable)
        self._model = _model(config, state, self.device)
        self._average = _model(config, ema or state, self.device) if training.ema_decay else None
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
        weights, rate, decay = self._model.parameters(), training.learning_rate, training.weight_decay
        self._optimizer = kind(weights, lr=rate, weight_decay=decay, fused=True)
        # Adam's own beginning, made now so that a checkpoint finds every tensor in its place.
        for weight in self._model.parameters():
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = {"step": torch.zeros((), device=self.device), **moments}
        self._loss = {"mse": nn.MSELoss(), "huber": nn.HuberLoss(delta=1.0)}[config.diffusion.loss]

    def step(self, pixels: Tensor, labels: Tensor | None, generator: torch.Generator) -> float:
        """One step on a batch, uint8 (N, C, S, S); the loss before it. Not taken if that is not finite."""
        clean = pixels.to(self.device).float().div(127.5).sub(1)
        if self._training.horizontal_flip:
            flipped = torch.rand(len(clean), 1, 1, 1, generator=generator, device=self.device) < 0.5
            clean = torch.where(flipped, clean.flip(3), clean)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        times = torch.randint(self._levels, (len(clean),), generator=generator, device=self.device)
        noisy = self._process.add_noise(clean, noise, times)
        target = self._process.get_velocity(clean, noise, times) if self._velocity else noise
        self._optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            output = self._model(noisy, times, None if labels is None else labels.to(self.device)).sample
        loss = self._loss(output.float(), target)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
            self._optimizer.step()
            if self._average is not None:
                with torch.no_grad():
                    for mean, weight in zip(self._average.parameters(), self._model.parameters(), strict=True):
                        mean.lerp_(weight, 1 - self._training.ema_decay)
        return value

    def result(self, tally: _Tally) -> Trained:
        """What came of it. Raises NotFinite if the last step broke the weights."""
        state = read_state(self._model)
        for name, values in state.items():
            if not np.isfinite(values).all():
                raise NotFinite(f"{name} after step {tally.step}; lower the learning_rate")
        metrics = {"loss": tally.loss, "first_loss": tally.first_loss, "seconds": tally.seconds}
        metrics |= {"images": float(tally.images), "images_per_second": tally.images / tally.seconds}
        return Trained(state, None if self._average is None else read_state(self._average), metrics)

    def save(self, path: Path, key: str, tally: _Tally) -> None:
        """Write a checkpoint. It is insurance: that it cannot be written is no reason to stop."""
        vectors = self._vectors()
        sizes = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in vectors.items()}
        try:
            with WeightsWriter(path, sizes, {"training": key, "tally": json.dumps(asdict(tally))}) as writer:
                for name, offset, tensor in _places(vectors):
                    writer.write(name, offset, tensor.detach().reshape(-1).cpu().numpy())
                writer.commit()
        except OSError as error:
            logger.warning("no checkpoint of epoch %d: %s: %s", tally.epoch, path, error.strerror)

    def restore(self, path: Path, key: str) -> _Tally:
        """Go on from a checkpoint; from the beginning if there is none of this training."""
        if not path.exists():
            return _Tally()
        try:
            reader = WeightsReader(path)
        except StoreError as error:
            logger.warning("training starts again, its checkpoint cannot be read: %s", error)
            return _Tally()
        with reader, torch.no_grad():
            if reader.metadata.get("training") != key:
                logger.info("%s is of another training and is not used", path)
                return _Tally()
            for name, offset, tensor in _places(self._vectors()):
                values = torch.from_numpy(reader.read(name, offset, tensor.numel()))
                tensor.copy_(values.view(tensor.shape))
            return _Tally(**json.loads(reader.metadata["tally"]))

    def _vectors(self) -> dict[str, list[Tensor]]:
        """All tensors that a checkpoint holds, by the name of the vector that they make up in it."""
        weights = list(self._model.parameters())
        vectors: dict[str, list[Tensor]] = {"weights": [*weights]}
        for name in ("step", "exp_avg", "exp_avg_sq"):
            vectors[name] = [self._optimizer.state[weight][name] for weight in weights]
        if self._average is not None:
            vectors["average"] = [*self._average.parameters()]
        return vectors


def _model(config: FederationConfig, state: Mapping[str, F32], device: torch.device) -> UNet2DModel:
    model = build(config)
    load_state(model, state)
    # Channels last is faster on a GPU's tensor cores; on a CPU no gain was measured.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model.to(device=device, memory_format=layout).train()
    return model


def _places(vectors: Mapping[str, list[Tensor]]) -> Iterator[tuple[str, int, Tensor]]:
    """Every tensor, with its vector and its offset there."""
    for name, tensors in vectors.items():
        offset = 0
        for tensor in tensors:
            yield name, offset, tensor
            offset += tensor.numel()


def _check(config: FederationConfig, images: Images) -> None:
    """Raises DataError for images that are not the model's."""
    size, channels = config.model["sample_size"], config.model["in_channels"]
    if not len(images.pixels) or images.pixels.shape[1:] != (channels, size, size):
        raise DataError(f"the model takes (N, {channels}, {size}, {size}), not {images.pixels.shape}")
    if config.conditional:
        known, labels = np.arange(config.model["num_class_embeds"]), images.labels
        if labels is None or len(labels) != len(images.pixels) or not np.isin(labels, known).all():
            raise DataError("the model is class-conditional, and not every image has one of its labels")


def _key(config: FederationConfig, images: Images, seed: int, *states: Mapping[str, F32]) -> str:
    """SHA-256 of all that decides a training's outcome: a checkpoint of another one must not be taken up."""
    digest = hashlib.sha256(f"{config.digest} {seed} {images.pixels.shape}".encode())
    labels = () if images.labels is None else (images.labels,)
    weights = (state[name] for state in states for name in sorted(state))
    for values in (images.pixels, *labels, *weights):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


@contextmanager
def _randomness(seed: int, epoch: int, images: int, device: torch.device) -> Iterator[tuple[Tensor, torch.Generator]]:
    """An epoch's order of the images and its source of noise; within, dropout is seeded as well."""
    sequence = np.random.SeedSequence([seed % (1 << 64), epoch])
    order = torch.from_numpy(np.random.default_rng(sequence).permutation(images))
    word = int(sequence.generate_state(1, np.uint64)[0])
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    # Dropout takes no generator: it draws from the global state, which is lent for the epoch and given back.
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(word)
        if gpus:
            torch.cuda.manual_seed(word)
        yield order, torch.Generator(device).manual_seed(word)
