"""One federation of our own daemons, without training, measured from outside.

The federator is ``feddiff-federator serve``; a silo is a process of ``bench.host``: production's code with a learner
that only moves the weights a little. The result is compared with the exact weighted average.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from feddiff.bench.loopback import free_port
from feddiff.bench.network import Place
from feddiff.bench.perturb import PERIODS, noise
from feddiff.bench.processes import Processes
from feddiff.bench.row import FEDERATOR, Row, observed
from feddiff.core.config import load
from feddiff.core.segments import Layout, cut
from feddiff.core.store import WeightsReader, WeightsWriter, write_atomic
from feddiff.federator import site
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal, Round
from feddiff.federator.ledger import Ledger
from feddiff.federator.versions import Versions
from feddiff.silo.learner import training_seed

PATIENCE_S = 1800.0
_RULES = """\
name = "transport"
preset = "digits-16"
[codec]
up = "{codec}"
down = "{codec}"
[rounds]
count = {rounds}
participants = {silos}
"""


def layout_of(parameters: int, largest: int = 0) -> Layout:
    """A UNet-like layout of exactly this many values; the bottleneck has one tensor of ``largest`` (0: a tenth)."""
    largest = largest or parameters // 10
    rest = parameters - largest
    parts = {"conv_in.weight": 1, "down_blocks.0.weight": 2, "down_blocks.1.weight": 4, "up_blocks.0.weight": 6}
    shapes = [(name, (rest * share // 14,)) for name, share in parts.items()]
    used = sum(shape[0] for _, shape in shapes)
    return cut([*shapes, ("mid_block.weight", (largest,)), ("conv_out.weight", (rest - used,))])


def prepare(folder: Path, layout: Layout) -> None:
    """Put a model in place of the one that the federator would make."""
    sizes = {segment.name: segment.size for segment in layout.segments}
    generator = np.random.default_rng(0)
    with WeightsWriter(folder / "initial.safetensors", sizes) as writer:
        for name, size in sizes.items():
            for start in range(0, size, 1 << 20):
                count = min(1 << 20, size - start)
                values = generator.standard_normal(count, dtype=np.float32) * np.float32(0.05)
                writer.write(name, start, values)
        writer.commit()
    write_atomic(folder / "layout.json", layout.to_json().encode())


def found(folder: Path, layout: Layout, rounds: int, codec: str, places: Sequence[Place]) -> tuple[Path, str]:
    """Make the federator's folder, for the first place. Returns its config and where silos reach it."""
    port = free_port()
    site.init(folder, "transport", "digits-16", f"{places[0].address}:{port}", [])
    config = folder / "federation.toml"
    config.write_text(_RULES.format(codec=codec, rounds=rounds, silos=len(places) - 1))
    load(config)
    prepare(folder, layout)
    return config, f"{places[0].address}:{port}"


def measure(layout: Layout, rounds: int, codec: str, places: Sequence[Place], folder: Path) -> Row:
    """Run one federation in an empty folder, the federator in the first place and a silo in each of the others.

    Raises FedDiffError if it does not finish.
    """
    home = folder / "federator"
    config, address = found(home, layout, rounds, codec, places)
    tokens = {f"silo-{number:02}": site.invite(config, f"silo-{number:02}", "1d") for number in range(1, len(places))}
    row = Row(f"feddiff {codec}", len(tokens), layout.size)
    python = (sys.executable, "-m")
    with Processes(folder) as processes:
        serve = ("feddiff.federator.cli", "serve", "--config", str(config))
        processes.start(FEDERATOR, [*places[0].prefix, *python, *serve])
        processes.wait_for(FEDERATOR, "port ")
        ready = time.time()
        for (name, token), place in zip(tokens.items(), places[1:], strict=True):
            host = ("feddiff.bench.host", address, str(folder / "silos"), f"{name}={token}")
            processes.start(name, [*place.prefix, *python, *host])
        for name in (FEDERATOR, *tokens):
            processes.wait(name, PATIENCE_S)
    database = Database(home / "federation.db")
    try:
        journal, ledger = Journal(database), Ledger(database)
        done = journal.rounds()
        later = [each.round for each in done[1:]] or [1]
        return replace(
            observed(row, processes, done[0].opened_at, [each.closed_at or 0.0 for each in done], ready),
            down_mb=sum(ledger.wire("down", each) for each in later) / len(later) / 1e6,
            up_mb=sum(ledger.wire("up", each) for each in later) / len(later) / 1e6,
            first_down_mb=ledger.wire("down", 1) / 1e6,
            max_error=max_error(home, layout, done, Versions(home, layout, load(config)), journal.current()),
        )
    finally:
        database.close()


def max_error(home: Path, layout: Layout, done: Sequence[Round], versions: Versions, current: dict[str, int]) -> float:
    """Largest distance of the published model from the initial one plus every round's weighted mean of the noise."""
    steps = [np.zeros(period) for period in PERIODS]
    for each in done:
        total = sum(each.weights[silo] for silo in each.silos)
        for silo in each.silos:
            samples = each.weights[silo]
            for step, block in zip(steps, noise(training_seed(0, each.round, silo), samples), strict=True):
                step += samples / total * block
    worst = 0.0
    with WeightsReader(home / "initial.safetensors") as initial:
        for segment in layout.segments:
            with WeightsReader(versions.weights(segment.name, current[segment.name])) as result:
                for at in range(0, segment.size, 1 << 20):
                    count = min(1 << 20, segment.size - at)
                    want = initial.read(segment.name, at, count).astype(np.float64)
                    for step in steps:
                        want += step[np.arange(at, at + count) % step.size]
                    worst = max(worst, float(np.abs(want - result.read(segment.name, at, count)).max()))
    return worst
