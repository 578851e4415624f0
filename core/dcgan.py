"""A DCGAN: a generator that draws images in one step, and the discriminator that it is trained against.

The second network of a federation (core/network.py), Phoenix's baseline (arXiv 2306.04098), after Radford, Metz,
Chintala, arXiv 1511.06434: strided convolutions, batch normalisation but for the generator's output and the
discriminator's input, ReLU there and leaky ReLU here, weights drawn from N(0, 0.02). Each is a segment. Running means
and variances are in it like parameters, behind them: they come and go and are averaged as weights are, and without
them no other site's generator draws. How many batches made them is left out, for nothing asks.

Importing it loads torch, which takes seconds: import it inside the function that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from feddiff.core import kinds, network
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError
from feddiff.core.network import Sampler, load_state, read_state
from feddiff.core.segments import F32, Layout, cut
from feddiff.core.store import write_atomic

WEIGHTS = "model.safetensors"


class DCGAN(nn.Module):
    """Both networks. The keys of an exported ``config.json`` are its arguments."""

    def __init__(
        self, sample_size: int, in_channels: int, out_channels: int, channels: Sequence[int], latent: int = 100
    ) -> None:
        super().__init__()
        start = sample_size >> len(channels)
        up: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
        up += [nn.ConvTranspose2d(latent, channels[0], start, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(True)]
        for wide, narrow in pairwise(channels):
            up += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(True)]
        self.generator = nn.Sequential(*up, nn.ConvTranspose2d(channels[-1], out_channels, 4, 2, 1), nn.Tanh())
        """From N(0, 1), (N, latent), to images in [-1, 1], (N, C, S, S)."""
        down: list[nn.Module] = [nn.Conv2d(in_channels, channels[-1], 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for narrow, wide in pairwise(reversed(channels)):
            down += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2, True)]
        self.discriminator = nn.Sequential(*down, nn.Conv2d(channels[0], 1, start), nn.Flatten(0))
        """From images to logits of being real, (N,)."""


def build(config: FederationConfig) -> DCGAN:
    """Both networks with their initial weights, float32 on the CPU: the same bits on every call."""
    model = _outline(config).to_empty(device="cpu")
    source = torch.Generator().manual_seed(config.seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02, source)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, source)
            module.reset_running_stats()
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def layout(config: FederationConfig) -> Layout:
    """Two segments. In each the statistics come last: their values are of other sizes than weights, and codecs that
    quantise blocks would coarsen both."""
    model = _outline(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.weights(model).items()}
    names = dict.fromkeys([name for name, _ in model.named_parameters()]) | dict.fromkeys(shapes)
    return cut((name, shapes[name]) for name in names)


def initial_state(config: FederationConfig) -> dict[str, F32]:
    """The weights that a federation starts from, as ``build`` draws them."""
    return read_state(build(config))


def loaded(config: FederationConfig, state: Mapping[str, npt.NDArray[Any]]) -> DCGAN:
    """Both networks with these weights. Raises WrongShape for a foreign state."""
    model = build(config)
    load_state(model, state)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.clamp_(min=0)  # which a codec that loses something may have written below it
    return model


@torch.inference_mode()
def sample(
    config: FederationConfig,
    state: Mapping[str, npt.NDArray[Any]],
    count: int,
    *,
    steps: int = 50,
    sampler: Sampler = "ddim",
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[int, npt.NDArray[np.uint8]], None] | None = None,
    device: str | torch.device | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw ``count`` images, uint8 of shape (count, H, W, C), each in one step, whatever ``steps`` and ``sampler``.

    Normalised by the running statistics, so image i depends on state, seed and i alone. There are no classes:
    ``labels`` and ``guidance`` must be None. ``watch`` sees each batch once. Raises ConfigError for arguments
    that cannot be, WrongShape for a foreign state.
    """
    if count < 1 or batch < 1 or labels is not None or guidance is not None:
        raise ConfigError(
            f"count and batch must be at least 1 (got {count} and {batch}), and a DCGAN has no labels and no guidance"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = loaded(config, state).generator.to(device).eval()
    latent, (channels, size) = kinds.dcgan(config).latent, (config.model["out_channels"], config.model["sample_size"])
    images = np.empty((count, size, size, channels), np.uint8)
    for start in range(0, count, batch):
        end = min(start + batch, count)
        chosen = [torch.randn(latent, generator=network.source(seed, index)) for index in range(start, end)]
        images[start:end] = network.pixels(generator(torch.stack(chosen).to(device)))
        if watch is not None:
            watch(1, images[start:end])
        if progress is not None:
            progress(end, count)
    return images


def export(config: FederationConfig, state: Mapping[str, npt.NDArray[Any]], folder: Path) -> str:
    """Write ``config.json``, the arguments of ``DCGAN``, and its weights; ``initial = "file"`` takes the folder."""
    from safetensors.torch import save_file

    model = loaded(config, state)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.weights(model), folder / WEIGHTS)
    write_atomic(folder / "config.json", json.dumps(described(config)["config.json"], indent=2).encode())
    return "load it with feddiff.core.dcgan.DCGAN (docs/strategies.md says how)"


def described(config: FederationConfig) -> dict[str, dict[str, Any]]:
    """Of an exported folder."""
    return {"config.json": kinds.dcgan(config).model_dump(mode="json", exclude={"kind"})}


def _outline(config: FederationConfig) -> DCGAN:
    """Both without memory for their weights."""
    with torch.device("meta"):
        return DCGAN(**kinds.dcgan(config).model_dump(exclude={"kind"}))
