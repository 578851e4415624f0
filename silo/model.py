"""The silo's own model after its last training: sampled and exported where it lies.

Under ULATDEC and UDEC this is the only whole model there is. With a moving average, that is the one used.
"""

from __future__ import annotations

from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import StoreError
from feddiff.core.segments import F32
from feddiff.silo.trained import Trained


def _state(folder: Path) -> tuple[FederationConfig, dict[str, F32]]:
    from feddiff.core import config, network

    if not (folder / "rules.json").exists():
        raise StoreError(f"{folder} holds no silo that has joined a federation")
    rules = config.parse((folder / "rules.json").read_bytes())
    trained = Trained(folder)
    vectors = trained.averages() or trained.weights()
    return rules, network.of(rules).layout(rules).scatter(vectors)


def sample(folder: Path, out: Path, count: int, steps: int, seed: int, scale: int) -> None:
    """Draw a grid of images. Raises StoreError if nothing was trained yet."""
    rules, state = _state(folder)
    from feddiff.core.grid import draw

    draw(rules, state, out, count, steps, seed, scale)


def export(folder: Path, target: Path) -> str:
    """Write it; returns how it is loaded."""
    rules, state = _state(folder)
    from feddiff.core import network

    return network.of(rules).export(rules, state, target)
