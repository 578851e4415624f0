"""Fifty silos on a small machine: hosted together they train in turns, and each round takes ten of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from feddiff.bench import dataset, trial
from feddiff.bench.host import HostedLearner
from feddiff.bench.partition import Split
from feddiff.core.config import from_table
from feddiff.federator import desk
from feddiff.silo.learner import Lesson

SILOS, SAMPLED, ROUNDS = 50, 10, 5
LARGEST_MB = 1500
"""Of the largest process: torch alone takes a third of it, and fifty digits' networks at work would take more."""
RULES = f"""\
preset = "digits-8"
[training]
epochs = 1
threads = 1
[rounds]
count = {ROUNDS}
participants = {SILOS}
sampled = {SAMPLED}
"""


def test_trainings_in_one_process_take_turns(tmp_path: Path) -> None:
    images = dataset.stage("digits", None, 5, 8, False, tmp_path)
    config = from_table({"preset": "digits-8", "training": {"epochs": 3, "threads": 1}}, "rules.toml")
    turns, said, both = threading.Semaphore(1), list[str](), threading.Barrier(2)

    def train(name: str) -> None:
        learner = HostedLearner(config, images.train.root, None, turns)
        start = learner.initial()
        both.wait(60)

        def told(step: int, steps: int, loss: float, speed: float) -> bool:
            said.append(name)
            time.sleep(0.1)  # the other one would come in between
            return True

        assert learner.learn(Lesson(1, start, None, 1, tmp_path / f"{name}.safetensors"), told) is not None

    threads = [threading.Thread(target=train, args=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "".join(said) in ("aaabbb", "bbbaaa")


def largest(folder: Path) -> int:
    """The most MB that any process of which the command line names this folder ever had resident."""
    found = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (place / "cmdline").read_bytes():
                lines = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
                found = max(found, int(lines["VmHWM"].split()[0]) * 1024 // 10**6)
        except (OSError, KeyError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_silos_fit_and_ten_of_them_take_part(tmp_path: Path) -> None:
    images = dataset.stage("digits", None, 5, None, False, tmp_path / "data")
    names = list(images.train.deal(Split("iid"), SILOS, 0, 1, tmp_path / "run" / "data"))
    peaks: list[int] = []
    config = trial.federate(RULES, names, tmp_path / "run", told=lambda line: peaks.append(largest(tmp_path / "run")))
    federation = desk.opened(config)

    rounds = federation.journal.rounds()
    assert [len(each.silos) for each in rounds] == [SAMPLED] * ROUNDS
    assert sorted(name for each in rounds for name in each.silos) == sorted(names)
    for each in rounds:
        paid = {entry.silo for entry in federation.ledger.entries(each.round) if entry.segment}
        assert paid == set(each.silos)
        assert {name for name, by in federation.journal.metrics(each.round)[each.round].items() if "loss" in by} == paid
    assert 50 < max(peaks) < LARGEST_MB
