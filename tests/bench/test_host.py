"""bench/host.py: several silos in one process, which ends with the first of them that fails."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from feddiff.bench import host, trial
from feddiff.bench.loopback import free_port
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import FedDiffError, IdentityError
from feddiff.core.features import Extractor
from feddiff.core.identity import Invitation
from feddiff.core.images import Images
from feddiff.silo.gauge import Gauge
from feddiff.silo.learner import ImageLearner, Learner, Lesson

RULES = """\
preset = "digits-8"
rounds = {count = 50, participants = 2}
training = {steps = 1000, threads = 1}
"""


def test_one_that_fails_stops_those_that_wait(tmp_path: Path) -> None:
    """Nobody answers at the address, where the others would ask for ever."""
    address = f"127.0.0.1:{free_port()}"
    tokens = {name: Invitation(name, address, bytes(32), bytes(32)).token() for name in ("a", "b", "c")}
    tokens["b"] = "fdi1_rubbish"

    def learner(name: str, config: FederationConfig) -> Learner:
        raise AssertionError

    before = set(threading.enumerate())
    failed = host.host(address, tmp_path, tokens, learner)
    assert list(failed) == ["b"]
    assert isinstance(failed["b"], IdentityError)
    assert set(threading.enumerate()) == before


def test_a_federation_ends_with_the_silo_that_has_no_images(tmp_path: Path) -> None:
    """Real daemons; the other silo of the process would train for long."""
    names = trial.deal(tmp_path / "data", 2, seed=0)
    for image in (tmp_path / "data" / names[1]).rglob("*.png"):
        image.write_bytes(b"nothing")
    with pytest.raises(FedDiffError, match=rf"silos-1 ended with 1: {names[1]}: The images cannot be used: ") as ended:
        trial.federate(RULES, names, tmp_path, processes=1)
    assert f"log is {tmp_path / 'silos-1.log'}" in str(ended.value)


def test_silos_train_and_measure_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody has the only turn, nobody else measures or describes images."""
    turns, held = threading.Semaphore(1), list[str]()
    monkeypatch.setattr(ImageLearner, "__init__", bare)

    def noted(what: str) -> Callable[..., object]:
        def note(*_: object) -> object:
            held.append(what if not turns.acquire(blocking=False) else f"{what} out of turn")
            return None

        return note

    for kind, what in ((ImageLearner, "learn"), (Gauge, "measure"), (Gauge, "statistics")):
        monkeypatch.setattr(kind, what, noted(what))
    rules = from_table({"preset": "digits-8", "quality": {"extractor": "ab" * 32}}, "test")
    learner = host.HostedLearner(rules, tmp_path, tmp_path, turns)
    assert learner.gauge is not None
    learner.learn(Lesson(1, {}, None, 0, tmp_path), lambda *_: True)
    learner.gauge.measure({}, 0, tmp_path, lambda *_: True)
    learner.gauge.statistics(tmp_path, lambda *_: True)
    assert held == ["learn", "measure", "statistics"]
    assert turns.acquire(blocking=False), "the turn was given back"


def bare(learner: ImageLearner, config: FederationConfig, folder: Path, extractor: Path | None = None) -> None:
    """A learner without images or network."""
    learner.config, learner.extractor = config, cast(Extractor, extractor)
    learner.images = cast(Images, None)


@pytest.mark.parametrize(("jobs", "hosts", "trainings"), [(1, 2, "3"), (3, 2, "1"), (7, 1, "1")])
@pytest.mark.slow
def test_a_cell_takes_no_more_than_its_share_of_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, hosts: int, trainings: str
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], **_: object) -> None:
        started.append(command)
        if len(started) == 1 + hosts:
            raise FedDiffError("enough")

    monkeypatch.setattr("feddiff.core.console.cpus", lambda: 6)
    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr(trial, "_ending", contextlib.nullcontext)
    with pytest.raises(FedDiffError, match="enough"):
        trial.federate(RULES, ["silo-1", "silo-2", "silo-3"], tmp_path, processes=2, jobs=jobs)
    hosting = [command for command in started if "feddiff.bench.host" in command]
    assert [command[command.index("--trainings") + 1] for command in hosting] == [trainings] * hosts
    assert sum("=" in word for command in hosting for word in command[4:]) == 3
