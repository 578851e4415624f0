"""A learner that does not train: it moves every weight a little, seeded, so that only the transport is measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from feddiff.core.segments import F32
from feddiff.silo.learner import Learned, Lesson, Told

PERIODS = (65_521, 49_999)
"""The noise is the sum of two blocks that repeat themselves, both a prime long: together they do not repeat within a
chunk, where zstd would find it and flatter us."""
SIZE = 1e-3
"""Standard deviation of a weight's move in one round."""


def noise(seed: int, samples: int) -> list[F32]:
    """What one training adds to every segment: a block for each of ``PERIODS``."""
    generator = np.random.Generator(np.random.PCG64([seed, samples]))
    scale = np.float32(SIZE / len(PERIODS) ** 0.5)
    return [generator.standard_normal(period, dtype=np.float32) * scale for period in PERIODS]


class Perturber:
    """Stands where ``ImageLearner`` stands; ``samples`` is its weight in the average."""

    labels: Mapping[str, int] = {}
    device = "none"
    layout_digest = ""
    gauge = None

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def initial(self) -> Mapping[str, F32]:
        """Nothing: this learner knows no model."""
        return {}

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        """What it starts from plus noise, changed in place."""
        for block in noise(lesson.seed, self.samples):
            for vector in lesson.start.values():
                for at in range(0, vector.size, block.size):
                    part = vector[at : at + block.size]
                    part += block[: part.size]
        return Learned(lesson.start, None, {"loss": 0.0})
