"""Silos that average for each other and die, lie, or do not reach each other: the round ends right, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stage import SEED, Hospital, Stage

from feddiff.core.config import FederationConfig
from feddiff.core.peers import Folding
from feddiff.core.segments import F32
from feddiff.silo.learner import training_seed
from feddiff.silo.peers.circle import Circle

SAMPLES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}
NOBODY = "127.0.0.1:1"
"""An address at which nothing listens."""
PEER = 'topology = "peer"\npeer.checkpoint = 1\n'


def found(stage: Stage, rounds: int = 1, silos: int = 3, quorum: int = 2, more: str = PEER) -> Stage:
    stage.found(rounds=rounds, silos=silos, more=f"quorum = {quorum}\ngrace = 6\n", scale=2)
    stage.rules.write_text(f"{more}{stage.rules.read_text()}")
    stage.peers = True
    return stage


def check(stage: Stage) -> list[tuple[str, ...]]:
    """What is published is the mean of what the silos that count made of the version before, to the bit."""
    version = 0
    rounds = stage.opened().journal.rounds()
    for each in rounds:
        if not each.silos:
            continue
        vectors: dict[str, list[tuple[int, F32]]] = {}
        for silo in sorted(each.silos):
            random = np.random.default_rng(training_seed(SEED, each.round, silo))
            for name in sorted(stage.layout.names):
                start = stage.published(name, version)
                made = start + np.float32(0.01) * random.standard_normal(start.size, np.float32)
                vectors.setdefault(name, []).append((SAMPLES[silo], made))
        version += 1
        for name, made in vectors.items():
            total = np.zeros(made[0][1].size)
            for samples, vector in made:
                total += samples * vector.astype(np.float64)
            mean = (total / sum(samples for samples, _ in made)).astype(np.float32)
            assert np.array_equal(stage.published(name, version), mean), (each.round, name)
    assert set(stage.opened().journal.current().values()) == {version}
    return [each.silos for each in rounds]


@pytest.mark.parametrize(
    "phase", ["take", "check", *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("fold", "share"))]
)
def test_an_owner_is_killed(stage: Stage, phase: str) -> None:
    server = found(stage).serve()
    for name in ("hospital-a", "hospital-b"):
        stage.hospital(name, SAMPLES[name]).start()
    victim = stage.noise("hospital-c", SAMPLES["hospital-c"], 0.0, "--die", phase)
    stage.until("the rounds are done", lambda: "rounds are done" in server.told(), 170)
    assert server.terminate() == 0  # it would wait for the victim to hear of it
    assert victim.code == -9
    assert f"killed in phase {phase}" in victim.told()
    assert "those of hospital-c go to others" in server.told()
    assert ("hospital-a", "hospital-b") in check(stage)


def lying(circle: Circle) -> None:
    """Averages with other weights than it was told."""
    begin = circle.begin

    def begun(config: FederationConfig) -> None:
        begin(config)
        honest = circle.owner.fold

        def fold(folding: Folding, *rest: Any) -> Any:
            first, *others = folding.inputs
            return honest(replace(folding, inputs=(replace(first, weight=7 * first.weight), *others)), *rest)

        circle.owner.fold = fold  # type: ignore[method-assign]

    circle.begin = begun  # type: ignore[method-assign]


def test_an_owner_lies(stage: Stage) -> None:
    server = found(stage, quorum=3).serve()
    hospitals = [stage.hospital(name, samples) for name, samples in SAMPLES.items()]
    hospitals[1].meet = lying
    for hospital in hospitals:
        hospital.start()
    stage.until("the federation ends", lambda: server.code is not None, 170)
    assert server.code == 0
    assert "hospital-b lies and owns nothing from now on" in server.told()
    assert "is not the average of what was sent" in server.told()
    assert check(stage) == [tuple(SAMPLES)]


def apart(other: str) -> Callable[[Circle], None]:
    """Cannot reach this silo."""

    def meet(circle: Circle) -> None:
        begin = circle.begin

        def begun(config: FederationConfig) -> None:
            begin(config)
            connect = circle.delivery._connect

            circle.delivery._connect = lambda silo, address: connect(silo, NOBODY if silo == other else address)

        circle.begin = begun  # type: ignore[method-assign]

    return meet


def separated(stage: Stage, names: list[str]) -> list[Hospital]:
    """Silos of which the first two do not reach each other."""
    hospitals = [stage.hospital(name, SAMPLES[name]) for name in names]
    hospitals[0].meet, hospitals[1].meet = apart(names[1]), apart(names[0])
    return [hospital.start() for hospital in hospitals]


def test_two_silos_do_not_reach_each_other(stage: Stage) -> None:
    server = found(stage, quorum=3).serve()
    separated(stage, list(SAMPLES))
    stage.until("the federation ends", lambda: server.code is not None, 170)
    assert server.code == 0
    assert "do not reach each other" in server.told()
    assert "owners: hospital-c" in server.told()
    assert check(stage) == [tuple(SAMPLES)]


@pytest.mark.slow
def test_a_round_without_an_owner_that_all_reach_is_abandoned(stage: Stage) -> None:
    server = found(stage, silos=2).serve()
    separated(stage, ["hospital-a", "hospital-b"])
    stage.until("the federation ends", lambda: server.code is not None, 170)
    assert server.code == 0
    assert "these do not reach each other: hospital-a–hospital-b" in server.told()
    assert check(stage) == [()]
