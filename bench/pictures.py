"""What a finished cell's models draw: a grid of images, and the way there, from noise, as an animation.

Beside a result's numbers (bench/result.py), for eyes. Both show the same attempts: image i begins as the same noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.bench.outcome import Outcome, State
from feddiff.bench.sections import SamplesSection

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
DRAWN = 8
"""Models of which the grid has a row each, at most."""
SQUARE = 64
"""Grids are as wide as one of so many images would be."""
SIDE = 48
"""Pixels to which small images are enlarged in grids, about."""
MOVING = 16
"""Images that are shown while they come out of the noise, at most."""
MOVING_SIDE = 96
FRAMES = 24
FRAME_MS, LAST_MS = 80, 1500


def samples(outcome: Outcome, asked: SamplesSection) -> Image:
    """A grid of the global model's images; of silos' models one row each."""
    from feddiff.core.grid import grid

    columns = outcome.config.columns(SQUARE)
    count = columns if outcome.of == "silos" else min(asked.count, 1024)
    rows = [drawn(outcome, read, asked, count) for read in list(outcome.models.values())[:DRAWN]]
    return grid(np.concatenate(rows), columns, scale(outcome, SIDE))


def denoising(outcome: Outcome, asked: SamplesSection) -> bytes:
    """An animated PNG of a few images, from noise to the end; of silos' models one row each.

    What shows no animation shows the end.
    """
    from feddiff.core.grid import grid

    models = list(outcome.models.values())[: MOVING // 4]
    columns = min(outcome.config.columns(SQUARE), MOVING) if len(models) == 1 else MOVING // len(models)
    count = columns if len(models) > 1 else columns * (MOVING // columns)
    stages: list[list[Pixels]] = []
    for read in models:
        stages.append([])
        # At most MOVING images: one batch.
        drawn(outcome, read, asked, count, lambda _, noisy: stages[-1].append(noisy))
    shown = np.unique(np.linspace(0, len(stages[0]) - 1, FRAMES).round().astype(int))
    times = scale(outcome, MOVING_SIDE)
    small = [grid(np.concatenate([each[at] for each in stages]), columns) for at in shown]
    # Enlarged with the gap between images, which one pixel would hardly show.
    frames = [each.resize((each.width * times, each.height * times), 0) for each in small]
    buffer = io.BytesIO()
    lengths = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[-1].save(
        buffer, "PNG", save_all=True, default_image=True, append_images=frames, duration=lengths, loop=0, optimize=True
    )
    return buffer.getvalue()


def drawn(
    outcome: Outcome,
    read: State,
    asked: SamplesSection,
    count: int,
    watch: Callable[[int, Pixels], None] | None = None,
    labels: Sequence[int] | None = None,
) -> Pixels:
    """A model's images (count, H, W, C); of all classes by turns, or of ``labels``."""
    from feddiff.core import network

    config = outcome.config
    steps = min(asked.steps, config.diffusion.timesteps)
    return network.of(config).sample(
        config, read(), count, steps=steps, sampler=asked.sampler, seed=config.seed, labels=labels, watch=watch
    )


def scale(outcome: Outcome, side: int) -> int:
    """How many times images are enlarged to be about so many pixels wide."""
    return max(1, round(side / int(outcome.config.model["sample_size"])))
