"""What a finished cell's models draw: a grid of images, and the way there, from noise, as an animation.

Beside a result's numbers (bench/result.py), for eyes. Both show the same attempts: image i begins as the same noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.bench.outcome import Outcome
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
    drawn = [_drawn(outcome, name, asked, count) for name in list(outcome.models)[:DRAWN]]
    return grid(np.concatenate(drawn), columns, _scale(outcome, SIDE))


def denoising(outcome: Outcome, asked: SamplesSection) -> bytes:
    """An animated PNG of a few images, from noise to the end; of silos' models one row each.

    What shows no animation shows the end.
    """
    from feddiff.core.grid import grid

    names = list(outcome.models)[: MOVING // 4]
    columns = min(outcome.config.columns(SQUARE), MOVING) if len(names) == 1 else MOVING // len(names)
    count = columns if len(names) > 1 else columns * (MOVING // columns)
    stages: list[list[Pixels]] = []
    for name in names:
        stages.append([])
        # At most MOVING images: one batch.
        _drawn(outcome, name, asked, count, lambda _, noisy: stages[-1].append(noisy))
    shown = np.unique(np.linspace(0, len(stages[0]) - 1, FRAMES).round().astype(int))
    scale = _scale(outcome, MOVING_SIDE)
    small = [grid(np.concatenate([each[at] for each in stages]), columns) for at in shown]
    # Enlarged with the gap between images, which one pixel would hardly show.
    frames = [each.resize((each.width * scale, each.height * scale), 0) for each in small]
    buffer = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[-1].save(
        buffer, "PNG", save_all=True, default_image=True, append_images=frames, duration=times, loop=0, optimize=True
    )
    return buffer.getvalue()


def _drawn(
    outcome: Outcome,
    name: str,
    asked: SamplesSection,
    count: int,
    watch: Callable[[int, Pixels], None] | None = None,
) -> Pixels:
    """A model's images (count, H, W, C)."""
    from feddiff.core import network

    config = outcome.config
    steps = min(asked.steps, config.diffusion.timesteps)
    state = outcome.models[name]()
    model = network.of(config)
    return model.sample(config, state, count, steps=steps, sampler=asked.sampler, seed=config.seed, watch=watch)


def _scale(outcome: Outcome, side: int) -> int:
    return max(1, round(side / int(outcome.config.model["sample_size"])))
