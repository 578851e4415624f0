"""A learner that does not train: it moves every weight a little, seeded, so that only the transport is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from feddiff.core.segments import F32
from feddiff.silo.learner import Learned, Told

_BLOCK = 65_521  # a prime: the repeated block never lines up with a tensor


class Perturber:
    """Stands where ``ImageLearner`` stands; ``samples`` is its weight in the average."""

    labels: Mapping[str, int] = {}
    device = "none"
    layout_digest = ""

    def __init__(self, samples: int, size: float = 1e-3) -> None:
        self.samples, self._size = samples, size

    def initial(self) -> Mapping[str, F32]:
        """Nothing: this learner knows no model."""
        return {}

    def learn(
        self, start: Mapping[str, F32], ema: Mapping[str, F32] | None, seed: int, checkpoint: Path, told: Told
    ) -> Learned | None:
        """``start`` plus noise, changed in place."""
        generator = np.random.Generator(np.random.PCG64([seed, self.samples]))
        block = generator.standard_normal(_BLOCK, dtype=np.float32) * np.float32(self._size)
        for vector in start.values():
            for at in range(0, vector.size, _BLOCK):
                part = vector[at : at + _BLOCK]
                part += block[: part.size]
        return Learned(start, None, {"loss": 0.0})
