"""A few steps of training on noise, in a process of its own: what this machine can do, before the first round.

    doctor ── rules ──► python -m feddiff.silo.rehearsal ── a line of JSON each: devices, layout, runs ──► doctor

A child, so that torch and the model are out of memory afterwards, and a machine that is too small kills the child
and not the doctor. It trains on noise of the images' shape: no image is read here.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.segments import Layout

if TYPE_CHECKING:
    from feddiff.core.config import FederationConfig

LIMIT_S = 45.0
"""Time for all of it; what has been told until then counts."""
STEPS = 3
SLOWEST_S = 20.0
"""A run that would take longer, by what single images took, is not begun."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    """Bytes, as is ``free``."""
    free: int


@dataclass(frozen=True)
class Run:
    """Some steps, with batches of so many images."""

    batch: int
    images_s: float
    peak: int
    """Bytes of memory that the process came to, on its GPU if it has one."""


@dataclass(frozen=True)
class Rehearsal:
    """What the child told."""

    threads: int = 0
    gpus: tuple[Gpu, ...] = ()
    blind: bool = False
    """There is a driver for an NVIDIA GPU, and torch cannot use it."""
    layout: Layout | None = None
    runs: tuple[Run, ...] = ()
    failure: str = ""
    """Why it ended early; empty if it did not."""
    late: bool = False
    """It was ended because it took too long."""


def rehearse(rules: bytes, steps: bool, limit_s: float = LIMIT_S) -> Rehearsal:
    """Look at the devices, cut the model of these rules, and train some ``steps``. Without rules: devices only."""
    command = [sys.executable, "-m", "feddiff.silo.rehearsal", *(["--steps"] if steps else [])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    failure, late = "", False
    try:
        said, complaint = child.communicate(rules, limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        said, complaint = child.communicate()
        failure, late = f"it was not done in {limit_s:.0f} s", True
    if child.returncode and not failure:
        last = (complaint.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        failure = f"killed by signal {-child.returncode}" if child.returncode < 0 else last[:300]
    return _heard([json.loads(line) for line in said.splitlines() if line.endswith(b"}")], failure, late)


def _heard(lines: list[dict[str, Any]], failure: str, late: bool) -> Rehearsal:
    told: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
    return Rehearsal(
        threads=told.get("threads", 0),
        gpus=tuple(Gpu(**each) for each in told.get("gpus", ())),
        blind=told.get("blind", False),
        layout=Layout.from_json(told["layout"]) if "layout" in told else None,
        runs=tuple(Run(**line["run"]) for line in lines if "run" in line),
        failure=told.get("error", failure),
        late=late,
    )


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _devices() -> None:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, memory = torch.cuda.mem_get_info(number)
            gpus.append({"name": torch.cuda.get_device_name(number), "memory": memory, "free": free})
    blind = not gpus and Path("/proc/driver/nvidia/version").exists()
    _tell(threads=torch.get_num_threads(), gpus=gpus, blind=blind)


def _train(config: FederationConfig, batch: int, steps: int) -> Run:
    import numpy as np
    import torch

    from feddiff.core import network
    from feddiff.core.images import Images
    from feddiff.silo import trainer

    size, channels = int(config.model["sample_size"]), int(config.model["in_channels"])
    noise = np.random.default_rng(0).integers(0, 256, (batch, channels, size, size), np.uint8)
    labels = np.zeros(batch, np.int64) if config.data.classes else None
    images = Images(noise, labels, {}, ())
    how = {"epochs": None, "steps": steps, "batch_size": batch, "accumulate": 1}
    short = config.model_copy(update={"training": config.training.model_copy(update=how)})
    state = network.of(config).initial_state(config)
    done = trainer.train(short, state, images, 0, progress=lambda _: True)
    assert done is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_reserved()
    return Run(batch, done.metrics["images_per_second"], peak)


def main() -> None:
    from feddiff.core.config import parse

    os.nice(10)  # a daemon may be at work
    rules = sys.stdin.buffer.read()
    _devices()
    if not rules:
        return
    config = parse(rules)
    from feddiff.core import network

    _tell(layout=network.of(config).layout(config).to_json())
    if "--steps" not in sys.argv:
        return
    batch = config.training.batch_size
    _train(config, 1, 1)  # what is only done once is not measured
    single = _train(config, 1, STEPS)
    _tell(run=vars(single))
    if batch > 1 and batch / single.images_s <= SLOWEST_S:
        began = time.monotonic()
        _tell(run=vars(_train(config, batch, 1)))
        room = SLOWEST_S - (time.monotonic() - began)
        again = min(STEPS, math.floor(room / (time.monotonic() - began)))
        if again > 0:
            _tell(run=vars(_train(config, batch, again)))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        _tell(error=str(error))
    except FedDiffError as error:
        _tell(error=f"{error.sentence}")
    except (MemoryError, RuntimeError) as error:  # torch says so when a GPU's memory is too small
        _tell(error=str(error).splitlines()[0][:300])
        sys.exit(StoreError.exit_code)
