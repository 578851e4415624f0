"""One federation that really trains: daemons as in production, on loopback over mutual TLS.

``federate`` runs any federation over images that were dealt to folders; silos share a few processes to save imports.
``run`` is the smallest use of it: scikit-learn's digits, a fifth held out, the others dealt by Dirichlet(0.5) over
their labels; the bytes are the ledger's, the loss is that of the published model on the held-out digits.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feddiff.bench.loopback import free_port
from feddiff.bench.partition import dirichlet
from feddiff.core import console
from feddiff.core.config import load
from feddiff.core.errors import FedDiffError
from feddiff.core.validation import validation_loss
from feddiff.federator import desk, site

BETA = 0.5
HELD_OUT = 5
"""One in so many digits."""
PROCESSES = 2
PATIENCE_S = 1800.0
"""Without a closed round, or a word of one that is measured, for so long, a federation is given up."""
_NEWS = re.compile(r"^round .*|(?<= )round \d+: .*")
"""Of the federator's output: what it says of a closed round, and its log of one that it measures."""
_LOOK_S = 0.1
TIED = (
    "import ctypes, runpy, signal, sys; "
    "tie = getattr(ctypes.CDLL(None), 'prctl', None); tie and tie(1, signal.SIGTERM); "
    "del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""Runs a module that ends with the process that started it, even one that was killed (PR_SET_PDEATHSIG, Linux)."""


@dataclass(frozen=True)
class Outcome:
    """What one federation came to."""

    loss: float
    """Validation loss of the published model."""
    up: int
    """Bytes on the wire, all rounds and silos, from enrolment on."""
    down: int
    rounds: int
    parameters: int
    seconds: float
    """From the first round's opening to the last one's end."""

    @property
    def wire(self) -> int:
        return self.up + self.down


def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All 1,797 of them: uint8 (N, 8, 8), and what they show."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.clip(found.images * 16, 0, 255).astype(np.uint8), found.target.astype(np.int64)


def split(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(for training, held out): places of the digits, the same for all trials."""
    order = np.random.default_rng(12345).permutation(count)
    return np.sort(order[count // HELD_OUT :]), np.sort(order[: count // HELD_OUT])


def deal(folder: Path, silos: int, seed: int) -> list[str]:
    """Write each silo's digits as ``folder/SILO/LABEL/NUMBER.png``; returns the silos' names."""
    from PIL import Image

    images, labels = digits()
    training, _ = split(len(images))
    names = [f"silo-{number}" for number in range(1, silos + 1)]
    for name, part in zip(names, dirichlet(labels[training], silos, BETA, 1000 + seed, least=100), strict=True):
        for index in training[part]:
            place = folder / name / str(labels[index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(place / f"{index:04}.png")
    return names


def run(rules: str, silos: int, seed: int, folder: Path) -> Outcome:
    """Run the federation of these rules (TOML) in an empty folder. Raises FedDiffError if it does not finish."""
    return _outcome(federate(rules, deal(folder / "data", silos, seed), folder))


def federate(
    rules: str,
    names: Sequence[str],
    folder: Path,
    *,
    processes: int = PROCESSES,
    jobs: int = 1,
    patience_s: float = PATIENCE_S,
    told: Callable[[str], None] = lambda line: None,
    stop: threading.Event | None = None,
    extractor: Path | None = None,
    reference: Path | None = None,
    initial: Path | None = None,
    pool: Path | None = None,
) -> Path:
    """Run the federation of these rules (TOML) to its end; returns its federation.toml, whose folder has all it left.

    Silo NAME trains on ``folder/data/NAME`` and keeps its state in ``folder/silos/NAME``; they share ``processes``,
    but no more than there are CPUs for one of ``jobs`` federations at a time, and train as many at once as those are.
    ``told`` gets the federator's lines about closed rounds and what it measures of them. Rules with ``[quality]`` need
    the ``extractor``'s file, and the federator's ``reference`` images; ``initial``: the published model to begin with,
    for rules that want one; ``pool``: public images for those that share them, which every silo accepts. Raises
    ConfigError for wrong rules, FedDiffError if a process ends with an error or no round closes for ``patience_s``,
    KeyboardInterrupt when ``stop`` is set.
    """
    home, port = folder / "federator", free_port()
    site.init(home, "trial", "digits-8", f"127.0.0.1:{port}", [])
    config = home / "federation.toml"
    config.write_text(rules)
    load(config)
    tokens = [f"{name}={site.invite(config, name, '7d')}" for name in names]
    seeing = [] if extractor is None else ["--extractor", str(extractor)]
    held = [] if reference is None else ["--reference", str(reference)]
    begun = [] if initial is None else ["--initial", str(initial)]
    begun += [] if pool is None else ["--pool", str(pool)]
    cpus = max(console.cpus() // jobs, 1)
    processes = min(processes, cpus)
    commands = {"federator": ["feddiff.federator.cli", "serve", "--config", str(config), *seeing, *held, *begun]}
    for number in range(processes):
        hosted = tokens[number::processes]
        where = [f"127.0.0.1:{port}", str(folder / "silos"), "--data", str(folder / "data"), *seeing]
        where += ["--trainings", str(cpus // processes), *([] if pool is None else ["--accept-pool"])]
        if hosted:
            commands[f"silos-{number + 1}"] = ["feddiff.bench.host", *where, *hosted]
    with contextlib.ExitStack() as stack:
        running = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            python = [sys.executable, "-c", TIED, *command]
            running[name] = stack.enter_context(_ending(subprocess.Popen(python, stdout=log, stderr=log)))
        said = stack.enter_context((folder / "federator.log").open())
        heard, part = time.monotonic(), ""

        def listen() -> None:
            nonlocal heard, part
            *lines, part = (part + said.read()).split("\n")
            for line in lines:
                if news := _NEWS.search(line):
                    heard = time.monotonic()
                    told(news.group())

        while any(process.poll() is None for process in running.values()):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            listen()
            _check(running, folder)
            if time.monotonic() - heard > patience_s:
                raise FedDiffError(f"no round closed for {patience_s:.0f} s; the logs are {folder}/*.log")
            time.sleep(_LOOK_S)
        _check(running, folder)
        listen()
    return config


def _check(running: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Raises FedDiffError if a process has ended with an error."""
    for name, process in running.items():
        if process.poll():
            log = folder / f"{name}.log"
            lines = log.read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1][:300]}" if lines else ""
            raise FedDiffError(f"{name} ended with {process.returncode}{last}; its log is {log}")


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stopped when the block ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _outcome(config: Path) -> Outcome:
    federation = desk.opened(config)
    images, labels = digits()
    _, held_out = split(len(images))
    pixels = images[held_out][:, np.newaxis]
    loss = validation_loss(federation.config, desk.global_state(federation), pixels, labels[held_out], draws=40)
    rounds = federation.journal.rounds()
    ledger = federation.ledger
    seconds = (rounds[-1].closed_at or 0.0) - rounds[0].opened_at
    return Outcome(loss, ledger.wire("up"), ledger.wire("down"), len(rounds), federation.layout.size, seconds)
