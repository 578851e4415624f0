"""The queue of measurements: what may pass is tried again, what is too much is dropped, and the end always comes."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from feddiff.core.config import from_table
from feddiff.core.quality import Measured
from feddiff.core.segments import cut
from feddiff.core.store import WeightsReader, save
from feddiff.federator import gauging
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.gauging import ATTEMPTS, WAITING, Gauging

LAYOUT = cut([("conv_in.weight", (3,)), ("mid_block.a", (4,)), ("up_blocks.0.a", (5,))])
NUMBER = Measured("fid", 12.5, None, 20, 31, "reference", "tiny", "ab" * 32)
CHILD = """\
#!/bin/sh
# In the place of Python: -m feddiff.federator.gauge FOLDER ...
echo "$3" >> {log}
if [ "$(wc -l < {log})" -le {killed} ]; then kill -9 $$; fi
cp {numbers} "$3/numbers.json"
"""


class Queue:
    """Measurements of a federation, by a child that is killed so many times before it measures."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, killed: int = 0, **quality: object) -> None:
        table = {
            "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
            "rounds": {"count": 50},
            "quality": {"extractor": "ab" * 32, **quality},
        }
        self.home, self.reference = folder / "federator", folder / "reference"
        self.home.mkdir()
        self.reference.mkdir()
        (folder / "numbers").write_text(json.dumps([asdict(NUMBER)]))
        self.log, child = folder / "log", folder / "child"
        self.log.touch()
        child.write_text(CHILD.format(log=self.log, killed=killed, numbers=folder / "numbers"))
        child.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(child))
        monkeypatch.setattr(gauging, "AGAIN_S", 0.05)
        database = Database(self.home / "federation.db")
        self.federation = Federation(self.home, from_table(table, "test"), LAYOUT, database)
        initial = save(folder / "initial", {each.name: np.zeros(each.size, np.float32) for each in LAYOUT.segments})
        with WeightsReader(initial) as reader:
            for name in LAYOUT.names:
                self.federation.versions.publish_initial(name, reader)
        self.federation.current = dict.fromkeys(LAYOUT.names, 0)
        self.made: list[Gauging] = []

    def gauging(self) -> Gauging:
        self.made.append(Gauging(self.federation, self.home / "network.pt", self.reference))
        return self.made[-1]

    @property
    def measured(self) -> list[int]:
        return [each.round for each in self.federation.ledger.quality()]

    @property
    def attempts(self) -> list[int]:
        return [int(Path(line).name.removeprefix("round-")) for line in self.log.read_text().splitlines()]

    @property
    def kept(self) -> set[str]:
        return {path.name for path in (self.home / "measuring").iterdir()}


@pytest.fixture
def made() -> Iterator[list[Queue]]:
    found: list[Queue] = []
    yield found
    for queue in found:
        for each in queue.made:
            each.close()


def patience(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def test_a_child_that_is_killed_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue]
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch, killed=ATTEMPTS - 1))
    one = queue.gauging()
    one.keep(3)
    one.start()
    one.wait(lambda: False)
    assert queue.attempts == [3] * ATTEMPTS
    assert queue.measured == [3]
    assert not queue.kept


def test_what_fails_each_time_is_given_up_and_lets_the_others_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue], caplog: pytest.LogCaptureFixture
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch))
    (queue.reference).rmdir()
    one = queue.gauging()
    for number in (3, 4):
        one.keep(number)
    with caplog.at_level(logging.WARNING, "feddiff.federator"):
        one.start()
        one.wait(lambda: False)
    assert not queue.measured
    assert not queue.attempts, "no process is started for images that are not there"
    assert not queue.kept
    for number in (3, 4):
        assert f"round {number} is not measured, after {ATTEMPTS} attempts: {queue.reference} is not" in caplog.text


def test_attempts_are_counted_across_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue]
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch, killed=100))
    monkeypatch.setattr(gauging, "AGAIN_S", 1000.0)
    for life in range(1, ATTEMPTS + 1):
        one = queue.gauging()
        if life == 1:
            one.keep(3)
        assert queue.kept == {"round-3"}
        one.start()
        until = patience()
        count = queue.home / "measuring" / "round-3" / gauging.FAILED
        while time.monotonic() < until and one.waiting() and (not count.exists() or count.read_text() != str(life)):
            time.sleep(0.01)
        one.close()
    assert queue.attempts == [3] * ATTEMPTS
    assert not queue.kept


def test_images_that_come_back_are_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue], caplog: pytest.LogCaptureFixture
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch))
    queue.reference.rmdir()
    one = queue.gauging()
    with caplog.at_level(logging.WARNING, "feddiff.federator"):
        one.keep(3)
        one.start()
        until = patience()
        while "round 3 is not measured yet" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
    queue.reference.mkdir()
    one.keep(4)
    one.wait(lambda: False)
    assert sorted(queue.measured) == [3, 4]


def test_at_the_end_nobody_waits_for_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue], caplog: pytest.LogCaptureFixture
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch, reference="federated"))
    monkeypatch.setattr(gauging, "AGAIN_S", 1000.0)
    one = queue.gauging()
    with caplog.at_level(logging.WARNING, "feddiff.federator"):
        one.keep(3)
        one.start()
        until = patience()
        while "not measured yet: no silo has sent" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
        one.wait(lambda: False)
    assert not queue.kept
    assert not queue.measured


def test_the_oldest_make_room_when_rounds_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Queue], caplog: pytest.LogCaptureFixture
) -> None:
    made.append(queue := Queue(tmp_path, monkeypatch))
    one = queue.gauging()
    with caplog.at_level(logging.WARNING, "feddiff.federator"):
        for number in range(1, WAITING + 3):
            one.keep(number)
    newest = [*range(3, WAITING + 3)]
    assert one.waiting() == newest
    assert queue.kept == {f"round-{number}" for number in newest}
    assert [record.args[0] for record in caplog.records if record.args] == [1, 2]  # type: ignore[index]
    assert "quality.every" in caplog.text
    one.start()
    one.wait(lambda: False)
    assert queue.measured == newest
