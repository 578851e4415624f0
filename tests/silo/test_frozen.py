"""Frozen segments in a silo's training: not a bit of them changes, and they cost neither moments nor gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY

from feddiff.core import diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.images import Images
from feddiff.core.store import WeightsReader
from feddiff.silo.descent import Descent
from feddiff.silo.trainer import Trained, train

GENERATOR = np.random.default_rng(0)
IMAGES = Images(GENERATOR.integers(0, 256, (20, 1, 8, 8), np.uint8), None, {}, ())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def federation(frozen: int | list[str], **training: Any) -> FederationConfig:
    rules = {"batch_size": 8, "learning_rate": 2e-3, "epochs": 2, **training}
    return from_table({"model": TINY, "training": rules, "frozen": frozen}, "test")


def trained(config: FederationConfig, checkpoint: Path | None = None) -> Trained:
    state = diffusion.initial_state(config)
    found = train(config, state, IMAGES, 1, checkpoint=checkpoint, checkpoint_every=0, progress=lambda _: True)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("frozen", "names"),
    [
        (2, {"encoder.in", "encoder.0"}),
        (["decoder", "encoder.in"], {"encoder.in", "decoder.0", "decoder.1", "decoder.out"}),
        (6, {"encoder.in", "encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1"}),
    ],
)
@pytest.mark.parametrize("training", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "ema_decay": 0.5}])
def test_they_stay_to_the_bit_and_all_others_move(
    frozen: int | list[str], names: set[str], training: dict[str, Any]
) -> None:
    config = federation(frozen, **training)
    start, found = diffusion.initial_state(config), trained(config)
    for segment in diffusion.layout(config).segments:
        for state in (found.state, *([found.ema] if found.ema else [])):
            same = segment.gather(state).tobytes() == segment.gather(start).tobytes()
            assert same == (segment.name in names), segment.name


def test_they_have_no_moments_and_no_place_in_the_checkpoint(tmp_path: Path) -> None:
    config = federation(3)
    trained(config, tmp_path / "checkpoint")
    free = sum(each.size for each in diffusion.layout(config).segments[3:])
    with WeightsReader(tmp_path / "checkpoint") as reader:
        assert {name: reader.size(name) for name in ("exp_avg", "exp_avg_sq", "weights")} == dict.fromkeys(
            ("exp_avg", "exp_avg_sq", "weights"), free
        )
    assert 0 < free < diffusion.layout(config).size


def test_a_step_keeps_nothing_for_their_gradients() -> None:
    """What the backward pass needs of a layer is kept for the layers that learn, and for what lies behind those."""

    def kept(frozen: int) -> int:
        config, sizes = federation(frozen), []

        def watched(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        descent = Descent(config, diffusion.initial_state(config), None, 1, ())
        with torch.autograd.graph.saved_tensors_hooks(watched, lambda tensor: tensor):
            descent.step(torch.from_numpy(IMAGES.pixels[:8]), None, torch.Generator().manual_seed(0))
        return sum(sizes)

    assert kept(6) < kept(3) < kept(0)


ATTENTIVE = {
    **TINY,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
}


def test_a_step_moves_the_others_as_if_nothing_were_frozen() -> None:
    """Adam's first step of a parameter depends on its own gradient alone. Attention is what torch stumbled over."""
    text = f"""
import torch, numpy as np
from feddiff.core import diffusion
from feddiff.core.config import from_table
from feddiff.silo.descent import Descent
torch.set_num_threads(1)
pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8))
rules = {{"batch_size": 4, "learning_rate": 1e-2, "epochs": 1}}
for precision, frozen in [(precision, frozen) for precision in ("fp32", "bf16") for frozen in range(7)]:
    rules["precision"], whole = precision, whole if frozen else None
    config = from_table({{"model": {ATTENTIVE!r}, "training": rules, "frozen": frozen}}, "test")
    start, layout = diffusion.initial_state(config), diffusion.layout(config)
    descent = Descent(config, start, None, 1, ())
    descent.step(pixels, None, torch.Generator().manual_seed(0))
    moved = layout.gather(descent.state())
    whole = whole or moved
    for place, name in enumerate(layout.names):
        begun = layout[name].gather(start)
        step, expected = moved[name] - begun, whole[name] - begun
        if place < frozen:
            assert not step.any(), (frozen, name)
        else:  # its direction; where a gradient is all but nothing, Adam makes a whole step of its rounding
            assert np.mean(np.abs(step - expected) > 1e-3) < 0.02, (frozen, name)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)  # it may crash
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_killed_training_ends_with_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    config = federation(2, ema_decay=0.9)
    whole, start = trained(config), diffusion.initial_state(config)

    def dying(report: Any) -> bool:
        if report.step == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        train(config, start, IMAGES, 1, checkpoint=tmp_path / "c", checkpoint_every=0, progress=dying)
    seen: list[int] = []
    again = train(
        config, start, IMAGES, 1, checkpoint=tmp_path / "c", progress=lambda report: seen.append(report.step) is None
    )
    assert again is not None
    assert seen[0] > 3, "it began from the beginning"
    for name, values in whole.state.items():
        assert np.array_equal(again.state[name], values), name
