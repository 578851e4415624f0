"""The network that a federation trains: the one place that knows that there are several.

Everything that makes, draws from or writes a model asks ``of(config)`` for the module of its network; the silo's
training step is its own (silo/trainer.py chooses). A *state* is a whole model's weights: name (as in the model's
``state_dict()``) to float32 array in the model's shape. What a network counts in whole numbers is not in it.

Importing it loads torch, which takes seconds: import it inside the function that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feddiff.core.config import FederationConfig
from feddiff.core.errors import WrongShape
from feddiff.core.segments import F32, Layout

Sampler: TypeAlias = Literal["ddim", "ddpm", "dpm-solver++"]


class Network(Protocol):
    """What the module of a network has. All of it raises ConfigError for rules that mean no network."""

    def build(self, config: FederationConfig) -> nn.Module:
        """The model with its initial weights, float32 on the CPU: the same bits on every call."""

    def layout(self, config: FederationConfig) -> Layout:
        """The segments of the model; costs no memory, whatever its size."""

    def initial_state(self, config: FederationConfig) -> dict[str, F32]:
        """The weights that a federation starts from, as ``build`` draws them."""

    def sample(
        self,
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
        """Draw ``count`` images, uint8 of shape (count, H, W, C), from weights that may be read-only.

        Image i depends on state, seed, i and its label alone. A network that draws in one step passes over ``steps``
        and ``sampler``. ``guidance`` is the rules' if it is not given. ``progress(done, count)`` may raise;
        ``watch(step, images)`` sees how a batch comes about, uint8 (n, H, W, C). ``device`` defaults to a GPU if there
        is one. Raises WrongShape for a foreign state.
        """

    def export(self, config: FederationConfig, state: Mapping[str, npt.NDArray[Any]], folder: Path) -> str:
        """Write a folder of safetensors and JSON; returns how it is loaded. Raises WrongShape for a foreign state."""

    def described(self, config: FederationConfig) -> dict[str, dict[str, Any]]:
        """What JSON files say of a model of these rules: path from the weights' folder to keys and values."""


def of(config: FederationConfig) -> Network:
    """The network of these rules."""
    if config.kind == "dcgan":
        from feddiff.core import dcgan

        return dcgan
    from feddiff.core import diffusion

    return diffusion


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that make its state: parameters, and statistics that it keeps; the model's own memory."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def load_state(model: nn.Module, state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy a state into a model, on whatever device. Raises WrongShape, and copies nothing, on a mismatch."""
    tensors = weights(model)
    odd = sorted(tensors.keys() ^ state.keys())
    if odd:
        raise WrongShape(f"{len(odd)} parameters are missing or not of this model, among them {odd[0]!r}")
    for name, tensor in tensors.items():
        if state[name].shape != tuple(tensor.shape):
            raise WrongShape(f"parameter {name} has shape {state[name].shape}, not {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            # np.array copies: torch cannot wrap an array that is read-only.
            tensor.copy_(torch.from_numpy(np.array(state[name], np.float32)))


def read_state(model: nn.Module) -> dict[str, F32]:
    """A copy of a model's weights, in C order; later training does not change it."""
    return {
        name: np.array(tensor.detach().cpu().numpy(), np.float32, order="C") for name, tensor in weights(model).items()
    }


def source(seed: int, index: int) -> torch.Generator:
    """What image number ``index`` of this seed is drawn with, so that neither count nor batch matters."""
    words = np.random.SeedSequence([seed % (1 << 64), index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """What of float (N, C, H, W) is in [-1, 1], as (N, H, W, C)."""
    found: npt.NDArray[np.uint8] = images.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().numpy()
    return found.transpose(0, 2, 3, 1)
