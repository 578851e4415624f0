"""A round without training: what the federator needs of time, CPU, memory and wire, by number of silos and model size.

``python -m feddiff.bench.transport --silos 2,8`` runs the daemons of production, silos hosted in one process each,
and prints one line for each number of silos. The model is as large as ``--parameters`` says, cut like a UNet;
``--largest`` puts that many of them into one single tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from feddiff.bench.loopback import free_port
from feddiff.core import console
from feddiff.core.config import load
from feddiff.core.errors import FedDiffError
from feddiff.core.segments import Layout, cut
from feddiff.core.store import WeightsWriter, write_atomic
from feddiff.federator import site
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal
from feddiff.federator.ledger import Ledger

CIFAR_32 = 35_746_307
_TICK = os.sysconf("SC_CLK_TCK")

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


@dataclass(frozen=True)
class Measured:
    """One federation. Memory in MB (1e6), times in seconds, ``wire`` in MB a round and direction."""

    silos: int
    parameters: int
    codec: str
    round_s: float
    cpu_round_federator_s: float
    down_mb: float
    up_mb: float
    federator_idle_mb: float
    federator_peak_mb: float
    silo_peak_mb: float


def layout_of(parameters: int, largest: int) -> Layout:
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


def measure(silos: int, layout: Layout, rounds: int, codec: str, folder: Path) -> Measured:
    """Run one federation in an empty folder. Raises FedDiffError if it does not finish."""
    fed = folder / "federator"
    port = free_port()
    site.init(fed, "transport", "digits-16", f"127.0.0.1:{port}", [])
    config = fed / "federation.toml"
    config.write_text(_RULES.format(codec=codec, rounds=rounds, silos=silos))
    load(config)
    prepare(fed, layout)
    names = [f"silo-{number:02}" for number in range(1, silos + 1)]
    tokens = {name: site.invite(config, name, "1d") for name in names}
    with (folder / "federator.log").open("w") as log:
        federator = subprocess.Popen(
            [sys.executable, "-m", "feddiff.federator.cli", "serve", "--config", str(config)],
            stdout=log,
            stderr=log,
        )
    hosts: list[subprocess.Popen[bytes]] = []
    try:
        _wait_for(folder / "federator.log", f"port {port}")
        idle, peak, silo_peak, cpu = _memory(federator.pid, "VmRSS"), 0.0, 0.0, 0.0
        for name in names:
            with (folder / f"{name}.log").open("w") as log:
                command = [sys.executable, "-m", "feddiff.bench.host", f"127.0.0.1:{port}", str(folder / "silos")]
                hosts.append(subprocess.Popen([*command, f"{name}={tokens[name]}"], stdout=log, stderr=log))
        while federator.poll() is None:
            peak, cpu = max(peak, _memory(federator.pid, "VmHWM")), max(cpu, _cpu(federator.pid))
            silo_peak = max([silo_peak, *(_memory(each.pid, "VmHWM") for each in hosts)])
            time.sleep(0.1)
        if federator.returncode or any(each.wait(60) for each in hosts):
            raise FedDiffError(f"the federation did not finish ({federator.returncode}); its logs are in {folder}")
    finally:
        for each in (federator, *hosts):
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
                each.wait(30)
    database = Database(fed / "federation.db")
    closed = [each.closed_at or 0.0 for each in Journal(database).rounds()]
    first = Journal(database).rounds()[0].opened_at
    ledger = Ledger(database)
    down, up = ledger.wire("down") / rounds / 1e6, ledger.wire("up") / rounds / 1e6
    database.close()
    seconds = (closed[-1] - first) / rounds
    return Measured(silos, layout.size, codec, seconds, cpu / rounds, down, up, idle, peak, silo_peak)


def _memory(pid: int, key: str) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0.0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + 120
    while text not in log.read_text():
        if time.monotonic() > until:
            raise FedDiffError(f"the federator did not start; see {log}")
        time.sleep(0.05)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-transport", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--silos", default="2,8", help="one or several numbers (default: 2,8)")
    parser.add_argument("--parameters", type=int, default=CIFAR_32, help="values in the model (default: cifar-32's)")
    parser.add_argument("--largest", type=int, default=0, help="values in its largest tensor (default: a tenth)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--keep", type=Path, help="keep the folders and logs here")
    options = parser.parse_args(arguments)
    layout = layout_of(options.parameters, options.largest)

    def run() -> int:
        for silos in (int(number) for number in options.silos.split(",")):
            folder = Path(tempfile.mkdtemp(prefix="feddiff-transport-", dir=options.keep))
            measured = measure(silos, layout, options.rounds, options.codec, folder)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(measured).items()}))
            if options.keep is None:
                shutil.rmtree(folder)
        return 0

    return console.run("feddiff-bench-transport", run)


if __name__ == "__main__":
    sys.exit(main())
