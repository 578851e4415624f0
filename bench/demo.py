"""``make demo``: one federator and three silos, four processes, train one diffusion model over mutual TLS.

Everything goes through the commands that people type; only the data is made here: scikit-learn's handwritten digits
(real scans), dealt to the silos by a seeded Dirichlet label skew and written as PNG files.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from feddiff.bench.loopback import free_port
from feddiff.core import console
from feddiff.core.config import POLICIES
from feddiff.core.errors import ConfigError, FedDiffError

SILOS = ("hospital-a", "hospital-b", "hospital-c")
BETA = 0.5
SEED = 7
_MARK = "feddiff demo\n"

_RULES = """\
name = "demo"
preset = "digits-16"
plan = "{plan}"
seed = {seed}

[training]
epochs = {epochs}
threads = 1

[rounds]
count = {rounds}
participants = {silos}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", choices=POLICIES, default="full")
    parser.add_argument("--out", type=Path, default=Path("demo-run"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args(arguments)
    return console.run("feddiff-demo", lambda: run(options.plan, options.out, options.rounds, options.epochs))


def run(plan: str, out: Path, rounds: int, epochs: int) -> int:
    """Run the federation in a fresh ``out`` and leave samples, charts and report there."""
    began = time.monotonic()
    _fresh(out)
    counts = deal_digits(out / "data")
    fed, rules = out / "federator", out / "federator" / "federation.toml"
    port = free_port()
    _call("feddiff.federator.cli", "init", str(fed), "--address", f"localhost:{port}", "--name", "demo")
    rules.write_text(_RULES.format(plan=plan, seed=SEED, epochs=epochs, rounds=rounds, silos=len(SILOS)))
    print(f"one federator and {len(SILOS)} silos on this machine, plan {plan}, mutual TLS on port {port}")
    for name in SILOS:
        print(f"  {name}: {sum(counts[name]):>4} scans; of the digits 0-9: {' '.join(f'{n:>3}' for n in counts[name])}")
    with contextlib.ExitStack() as running:
        server = running.enter_context(
            _process(out / "federator.log", "feddiff.federator.cli", "serve", "--config", str(rules))
        )
        silos = {}
        for name in SILOS:
            token = _call("feddiff.federator.cli", "invite", name, "--config", str(rules), "--token-only").strip()
            silos[name] = running.enter_context(
                _process(
                    out / f"{name}.log",
                    "feddiff.silo.cli",
                    *("--data", str(out / "data" / name), "--federator", f"localhost:{port}"),
                    *("--join", token, "--state", str(out / name)),
                )
            )
        _follow(server, silos, out)
    _pictures(plan, out, rules)
    print()
    print((out / "summary.txt").read_text().rstrip())
    print(f"{time.monotonic() - began:.0f} s in all; look at {out}/samples.png and {out}/report.html")
    return 0


def deal_digits(folder: Path) -> dict[str, list[int]]:
    """Write each silo's scans as ``folder/SILO/DIGIT/NUMBER.png``; returns how many of each digit it has."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from feddiff.bench.partition import dirichlet

    digits = load_digits()
    counts = {}
    for name, indices in zip(SILOS, dirichlet(digits.target, len(SILOS), BETA, SEED, least=300), strict=True):
        for index in indices:
            place = folder / name / str(digits.target[index])
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(digits.images[index] * 16, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{index:04}.png")
        counts[name] = [int(np.sum(digits.target[indices] == digit)) for digit in range(10)]
    return counts


def _fresh(out: Path) -> None:
    mark = out / ".feddiff-demo"
    if out.exists() and not mark.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not a demo's folder and is not empty; give another with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.write_text(_MARK)


def _call(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedDiffError(f"{module} {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextlib.contextmanager
def _process(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon of its own; stopped by SIGTERM when the block ends."""
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=lines, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _follow(server: subprocess.Popen[str], silos: dict[str, subprocess.Popen[str]], out: Path) -> None:
    """Print the federator's line for each round. Raises FedDiffError when it, or a silo, ends before its time."""
    import threading

    def watch() -> None:
        while server.poll() is None:
            for name, silo in silos.items():
                if silo.poll() not in (None, 0):
                    print(f"{name} ended with {silo.returncode}; see {out / name}.log", file=sys.stderr)
                    server.terminate()
                    return
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    assert server.stdout is not None
    closed = 0
    for line in server.stdout:
        if line.startswith("round"):
            closed += 1
            print(line, end="", flush=True)
    if server.wait() or any(silo.wait() for silo in silos.values()) or not closed:
        raise FedDiffError(f"the federation did not finish; its logs are {out}/*.log")


def _pictures(plan: str, out: Path, rules: Path) -> None:
    """samples.png, the charts, report.html and summary.txt. Without a global model each silo draws its own."""
    grids = []
    drawing = ("--count", "100", "--steps", "50", "--scale", "3")
    if plan in ("ulatdec", "udec"):
        for name in SILOS:
            grids.append(out / f"samples-{name}.png")
            _call("feddiff.silo.cli", "sample", "--state", str(out / name), "--out", str(grids[-1]), *drawing)
        shutil.copy(grids[0], out / "samples.png")
    else:
        grids.append(out / "samples.png")
        _call("feddiff.federator.cli", "sample", "--config", str(rules), "--out", str(grids[0]), *drawing)
    shown = [part for grid in grids for part in ("--samples", str(grid))]
    text = _call("feddiff.federator.cli", "report", "--config", str(rules), "--out", str(out), *shown)
    (out / "summary.txt").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
