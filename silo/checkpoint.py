"""A training's checkpoint: its tensors and numbers in one file, so that a killed one goes on from its last epoch.

Written between epochs by the training (silo/trainer.py), read when the same training begins again. It is insurance:
that it cannot be written, or read, is warned of and stops nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from feddiff.core.errors import StoreError
from feddiff.core.store import WeightsReader, WeightsWriter

logger = logging.getLogger(__name__)
Vectors = Mapping[str, Sequence[Tensor]]
"""All tensors of a training, by the name of the vector that they make up in the file."""


@dataclass
class Tally:
    """The numbers that a checkpoint carries beside the tensors."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    first_loss: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    """What the loss is made of, by name, if it is a sum."""


def save(path: Path, key: str, tally: Tally, vectors: Vectors) -> None:
    """Write a checkpoint of the training that ``key`` stands for."""
    sizes = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in vectors.items()}
    try:
        with WeightsWriter(path, sizes, {"training": key, "tally": json.dumps(asdict(tally))}) as writer:
            for name, offset, tensor in _places(vectors):
                writer.write(name, offset, tensor.detach().reshape(-1).cpu().numpy())
            writer.commit()
    except OSError as error:
        logger.warning("no checkpoint of epoch %d: %s: %s", tally.epoch, path, error.strerror)


def restore(path: Path, key: str, vectors: Vectors) -> Tally:
    """Fill the tensors from a checkpoint; they stay as they are if there is none of this training."""
    if not path.exists():
        return Tally()
    try:
        reader = WeightsReader(path)
    except StoreError as error:
        logger.warning("training starts again, its checkpoint cannot be read: %s", error)
        return Tally()
    with reader, torch.no_grad():
        if reader.metadata.get("training") != key:
            logger.info("%s is of another training and is not used", path)
            return Tally()
        for name, offset, tensor in _places(vectors):
            values = torch.from_numpy(reader.read(name, offset, tensor.numel()))
            tensor.copy_(values.view(tensor.shape))
        return Tally(**json.loads(reader.metadata["tally"]))


def _places(vectors: Vectors) -> Iterator[tuple[str, int, Tensor]]:
    """Every tensor, with its vector and its offset there."""
    for name, tensors in vectors.items():
        offset = 0
        for tensor in tensors:
            yield name, offset, tensor
            offset += tensor.numel()
