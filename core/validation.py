"""How well a model denoises images that it was not trained on: one number that two trainings can be compared by.

The training loss of one batch is mostly luck: which noise levels were drawn. Here every image is asked at levels that
are spread evenly, with noise that depends on nothing but the seed, so that a difference between two models is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from feddiff.core.classes import conditions
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.segments import F32

MOST, DRAWS = 500, 40
"""Images that are looked at, at most, evenly spaced; noise levels at which each of them is asked."""
BATCH, PIXELS = 512, 1 << 18
"""Images that are asked together, at most; and pixels, for large images' activations would not fit."""


def validation_loss(
    config: FederationConfig,
    state: Mapping[str, F32],
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64] | None,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The federation's own loss (``diffusion.loss``) of a model on images, uint8 of shape (N, C, S, S).

    More than ``MOST`` images are not all looked at. Each is noised ``draws`` times, once in each of as many equal
    stretches of the T noise levels. ``labels``, shape (N,), for a class-conditional model. Raises DataError for images
    that are not the model's, WrongShape for a foreign state, ConfigError for a network that denoises nothing.
    """
    import torch

    from feddiff.core import diffusion, network

    if not config.denoises:
        raise ConfigError(f"a {config.kind} has no validation loss")
    channels, size = config.model["in_channels"], config.model["sample_size"]
    if not len(pixels) or pixels.shape[1:] != (channels, size, size):
        raise DataError(f"the model takes (N, {channels}, {size}, {size}), not {pixels.shape}")
    labels = conditions(config, labels, len(pixels))
    if len(pixels) > MOST:
        places = np.arange(MOST) * len(pixels) // MOST
        pixels, labels = pixels[places], None if labels is None else labels[places]
    model = diffusion.build(config)
    network.load_state(model, state)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    process, levels = diffusion.scheduler(config), config.diffusion.timesteps
    lossy = {"mse": torch.nn.MSELoss(reduction="sum"), "huber": torch.nn.HuberLoss(reduction="sum", delta=1.0)}
    measure = lossy[config.diffusion.loss]
    generator = torch.Generator().manual_seed(seed)
    batch = max(min(BATCH, PIXELS // size**2), 1)
    total = 0.0
    with torch.inference_mode():
        for draw in range(draws):
            for start in range(0, len(pixels), batch):
                clean = torch.from_numpy(np.array(pixels[start : start + batch])).float().div(127.5).sub(1)
                noise = torch.randn(clean.shape, generator=generator)
                where = (draw + torch.rand(len(clean), generator=generator)) * levels / draws
                times = where.long().clamp(max=levels - 1)
                noisy = process.add_noise(clean, noise, times).to(device)
                velocity = config.diffusion.prediction == "v"
                target = process.get_velocity(clean, noise, times) if velocity else noise
                classes = None
                if labels is not None:
                    classes = torch.from_numpy(np.array(labels[start : start + batch])).to(device)
                output = model(noisy, times.to(device), classes).sample
                total += float(measure(output, target.to(device)))
    return total / (draws * pixels.size)
