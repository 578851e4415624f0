"""One federation that really trains, on scikit-learn's digits: what it cost on the wire, and how good its model became.

A federator and the silos' daemons as they are in production, on loopback over mutual TLS; silos share a few processes
to save imports. A fifth of the digits is held out; the others are dealt by Dirichlet(0.5) over their labels. The bytes
are the ledger's, the loss is that of the published model on the held-out digits.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feddiff.bench.loopback import free_port
from feddiff.bench.partition import dirichlet
from feddiff.core.config import load
from feddiff.core.errors import FedDiffError
from feddiff.core.validation import validation_loss
from feddiff.federator import desk, site

BETA = 0.5
HELD_OUT = 5
"""One in so many digits."""
PROCESSES = 2
PATIENCE_S = 1800.0


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
    names = deal(folder / "data", silos, seed)
    home, port = folder / "federator", free_port()
    site.init(home, "trial", "digits-8", f"127.0.0.1:{port}", [])
    config = home / "federation.toml"
    config.write_text(rules)
    load(config)
    tokens = [f"{name}={site.invite(config, name, '1d')}" for name in names]
    python = [sys.executable, "-m"]
    commands = {"federator": ["feddiff.federator.cli", "serve", "--config", str(config)]}
    for number in range(PROCESSES):
        hosted = tokens[number::PROCESSES]
        where = [f"127.0.0.1:{port}", str(folder / "silos"), "--data", str(folder / "data")]
        if hosted:
            commands[f"silos-{number + 1}"] = ["feddiff.bench.host", *where, *hosted]
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            processes[name] = stack.enter_context(
                _ending(subprocess.Popen([*python, *command], stdout=log, stderr=log))
            )
        for name, process in processes.items():
            if process.wait(PATIENCE_S):
                raise FedDiffError(f"{name} ended with {process.returncode}; its log is {folder / name}.log")
    return _outcome(config)


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stopped when the block ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


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
