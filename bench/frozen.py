"""What freezing the first n segments saves a silo: time and memory of a step, as shares of those with n = 0.

``python -m feddiff.bench.frozen [--preset ct-64-small] [--batch 8] [--steps 10]`` takes the steps of a silo's own
training (silo/descent.py) on noise, those of all n by turns, so that whatever else the machine does slows them all.

    trained      parameters that still learn
    step         time: the median; of the CPU, with one thread, or on a GPU of the clock
    optimizer    bytes of Adam's moments; gradients are half as many
    backward     bytes of activations that a step keeps for its backward pass, weights not counted
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from feddiff.core import console
from feddiff.core.config import FederationConfig, from_table


@dataclass(frozen=True)
class Cost:
    """Of training with the first ``frozen`` segments left alone."""

    frozen: int
    last: str
    """The last of them."""
    trained: int
    """Parameters."""
    seconds: float
    optimizer: int
    """Bytes."""
    backward: int
    """Bytes."""


def rules(preset: str, batch: int, frozen: int) -> FederationConfig:
    """Of a preset, with so many frozen segments. Raises ConfigError for more than there are."""
    return from_table({"preset": preset, "frozen": frozen, "training": {"batch_size": batch}}, "frozen")


def measured(preset: str, batch: int, steps: int) -> list[Cost]:
    """One row for each n from 0 to all segments but one."""
    import torch

    from feddiff.core import diffusion
    from feddiff.silo.descent import Descent

    torch.set_num_threads(1)
    whole = rules(preset, batch, 0)
    names, state = diffusion.layout(whole).names, diffusion.initial_state(whole)
    descents = [Descent(rules(preset, batch, n), state, None, 1, ()) for n in range(len(names))]
    device, shape = descents[0].device, (batch, whole.model["in_channels"], *[whole.model["sample_size"]] * 2)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    labels = torch.arange(batch) % len(whole.data.classes) if whole.conditional else None
    generator = torch.Generator(device).manual_seed(0)
    kept: list[int] = []
    for descent in descents:  # also the first, slow step of each
        storages: dict[int, int] = {}

        def note(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            descent.step(pixels, labels, generator)
        kept.append(sum(storages.values()))
    seconds: list[list[float]] = [[] for _ in descents]
    for _ in range(steps):
        for place, descent in enumerate(descents):
            clock = time.perf_counter if device.type == "cuda" else time.process_time
            began = clock()
            descent.step(pixels, labels, generator)  # which waits for a GPU: it reads the loss
            seconds[place].append(clock() - began)
    found = []
    for n, descent in enumerate(descents):
        vectors = descent.vectors()
        moments = sum(each.nbytes for name in ("exp_avg", "exp_avg_sq") for each in vectors[name])
        trained = sum(each.numel() for each in vectors["weights"])
        found.append(Cost(n, names[n - 1] if n else "", trained, statistics.median(seconds[n]), moments, kept[n]))
    return found


def table(found: list[Cost]) -> str:
    """Markdown; the first row in numbers, the others in percent of it."""
    whole = found[0]
    lines = ["| n | frozen up to | trained | step | optimizer | backward |", "|---|---|---|---|---|---|"]
    lines.append(
        f"| 0 | – | {whole.trained:,} | {1000 * whole.seconds:.0f} ms | {whole.optimizer / 1e6:.2f} MB"
        f" | {whole.backward / 1e6:.1f} MB |"
    )
    for each in found[1:]:
        shares = (
            each.trained / whole.trained,
            each.seconds / whole.seconds,
            each.optimizer / whole.optimizer,
            each.backward / whole.backward,
        )
        lines.append(f"| {each.frozen} | {each.last} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff.bench.frozen", description="What frozen segments save a silo.")
    parser.add_argument("--preset", default="ct-64-small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")

    def command() -> int:
        print(table(measured(options.preset, options.batch, options.steps)))
        return 0

    return console.run("feddiff.bench.frozen", command)


if __name__ == "__main__":
    sys.exit(main())
