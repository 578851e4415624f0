"""Two strikes, whole federations long: who is warned, who is out and when, what is said, what a kill -9 changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from stage import FEDERATOR, SEED, Hospital, Process, Stage

from feddiff.core.quality import OWN_IMAGES, Measured
from feddiff.silo.gauge import Gauge, Told
from feddiff.silo.learner import training_seed
from feddiff.silo.readings import Reading

DIGEST = "ab" * 32
A, B, C, D = NAMES = [f"hospital-{letter}" for letter in "abcd"]


class Scripted:
    """Tells a precision for each round, or nothing, as if it had measured."""

    def __init__(self, name: str, values: Sequence[float | None]) -> None:
        self._values = dict(enumerate(values, 1))
        self._rounds = {training_seed(SEED, number, name): number for number in self._values}

    def due(self, round: int) -> bool:
        return self._values.get(round) is not None

    def measure(self, vectors: object, seed: int, folder: Path, told: Told) -> Reading:
        value = self._values[self._rounds[seed]]
        assert value is not None
        return Reading((Measured("precision", value, None, 16, 12, OWN_IMAGES, "none", DIGEST),))


def found(stage: Stage, rounds: int, quorum: int, rule: str, scripts: dict[str, Sequence[float | None]]) -> Process:
    """The federator, and all silos begun."""
    measured = f'[quality]\nextractor = "{DIGEST}"\nsamples = 16\n'
    more = f"quorum = {quorum}\ngrace = 600\n{measured}[filter]\n{rule}\n"
    server = stage.found("udec", rounds=rounds, silos=len(scripts), more=more).serve()
    for name, values in scripts.items():
        begun(stage, name, values)
    return server


def begun(stage: Stage, name: str, values: Sequence[float | None]) -> Hospital:
    hospital = stage.hospital(name, 10)
    hospital.learner.gauge = cast(Gauge, Scripted(name, values))
    return hospital


def taken(stage: Stage) -> list[str]:
    """The silos of each round, by their last letters."""
    return ["".join(name[-1] for name in each.silos) for each in stage.opened().journal.rounds()]


def test_out_at_the_second_strike_in_a_row_and_back_by_the_operator(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "feddiff.silo")
    scripts: dict[str, Sequence[float | None]] = {
        A: [0.9] * 7,
        B: [0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],  # poor before the filter begins
        C: [0.9, 0.8, 0.5, 0.5, 0.9, 0.9, 0.9],  # the lowest in round 4 only
        D: [0.9, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9],  # the lowest in rounds 2 and 3
    }
    server = found(stage, 7, 2, "since = 2", scripts)
    held = {number: threading.Event() for number in (3, 4)}
    for name in NAMES:
        stage.hospitals[name].gate.update(held if name == A else {})
        stage.hospitals[name].start()

    stage.until("round 3 trains", lambda: stage.hospitals[A].training(3))
    first = "precision 0.2 in round 2 is the lowest of 4 silos"
    assert stage.silo_status(D)["note"] == f"warned: {first}; once more in a row and it is out for good"
    stage.until("the others are done", lambda: all(stage.silo_status(name)["committed"] for name in (B, C, D)))
    server.kill()
    server = stage.serve()
    assert stage.silo_status(D)["note"].startswith("warned"), "the round is still open"
    held[3].set()

    stage.until("round 4 trains", lambda: stage.hospitals[A].training(4))
    out = f"out for good: precision 0.3 in round 3 is the lowest of 4 silos; before, {first}"
    stage.until("d hears of it", lambda: any(f"task filtered: {out}" in each.message for each in caplog.records))
    status = stage.silo_status(D)
    assert (status["reachable"], status["planned"], status["note"]) == (True, False, out)
    assert f"filtered out: {D}" in stage.opened().journal.rounds()[3].reason
    told = stage.operate("status")
    assert out in told
    server.kill()  # what was decided is not decided again
    server = stage.serve()
    assert stage.silo_status(D)["note"] == out
    refused = stage.call(FEDERATOR, "reinstate", A, "--config", str(stage.rules))
    assert (refused.code, refused.err.count("\n")) == (78, 1)
    assert f"'{A}' is not out; filtered out: {D}" in refused.err
    stage.operate("reinstate", D)
    stage.until("d is back", lambda: stage.silo_status(D)["reachable"])
    assert (stage.silo_status(D)["note"], stage.silo_status(D)["planned"]) == ("", False)
    held[4].set()
    assert server.wait() == 0

    assert taken(stage) == ["abcd", "abcd", "abcd", "abc", "abcd", "abcd", "abcd"]
    decided = [(each.round, each.silo, each.kind) for each in stage.opened().verdicts.all()]
    assert decided == [(2, D, "warned"), (3, D, "out"), (3, D, "reinstated"), (4, C, "warned"), (5, C, "cleared")]
    assert not stage.hospitals[D].training(4)
    page = stage.folder / "report"
    stage.operate("report", "--out", str(page))
    assert "Silos warned and left out" in (page / "report.html").read_text()


def test_for_a_round_and_who_tells_nothing_keeps_its_warning(stage: Stage) -> None:
    server = found(
        stage,
        7,
        2,
        'rule = "threshold"\nthreshold = 0.5\nsince = 1\nout = "round"',
        {
            A: [0.9] * 7,
            B: [0.4, None, 0.4, 0.9, 0.4, 0.4, 0.4],  # warned, silent, out of round 4, and clean again
            C: [0.4, 0.5, 0.4, 0.5, 0.4, 0.5, 0.4],  # never twice in a row
        },
    )
    for name in (A, B, C):
        stage.hospitals[name].start()
    assert server.wait() == 0
    assert taken(stage) == ["abc", "abc", "abc", "ac", "abc", "abc", "ac"]
    log = server.told()
    assert f"round 2: {B} told no precision; that is no strike, and a warning stands" in log
    assert f"{B} is out for a round: precision 0.4 in round 3 is below 0.5; before, precision 0.4 in round 1 is" in log


def test_never_below_the_quorum_and_a_round_that_lacks_silos_says_who_is_filtered(stage: Stage) -> None:
    rule = 'rule = "threshold"\nthreshold = 0.5\nsince = 1'
    poor: list[float | None] = [0.1] * 4
    server = found(stage, 4, 2, rule, {A: [0.3] * 4, B: [0.2] * 4, C: poor})
    gate = threading.Event()
    stage.hospitals[A].gate[3] = gate
    for name in (A, B, C):
        stage.hospitals[name].start()
    stage.until("round 3 trains", lambda: stage.hospitals[A].training(3))
    # All three were poor twice: the worst is out, and the others cannot be.
    assert stage.silo_status(C)["note"].startswith("out for good: precision 0.1")
    for name in (A, B):
        assert stage.silo_status(name)["note"].startswith("kept: ")
        assert "without it only 1 would be left of the 2 that a round needs" in stage.silo_status(name)["note"]
    stage.until("b is in", lambda: stage.silo_status(B)["committed"])
    stage.hospitals[B].stop()
    stage.operate("revoke", B)
    gate.set()
    stage.until(
        "it says what it waits for",
        lambda: f"round 4 needs 2 silos; 1 here: {A}; filtered out: {C}" in stage.status()["reason"],
    )
    stage.operate("reinstate", C)
    assert server.wait() == 0
    assert taken(stage)[3] == "ac"
