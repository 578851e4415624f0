"""What counts how much in the average, whole federations long; and the average of averages that is drawn from."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from stage import Hospital, Stage

from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader
from feddiff.federator import desk

IMAGES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}
LOSSES = {"hospital-a": 0.5, "hospital-b": 3.0, "hospital-c": 0.1}
ROUNDS = 2


def begin(stage: Stage, table: str, losses: Mapping[str, float] = LOSSES) -> list[Hospital]:
    """All three, started; each tells its loss after every training."""
    stage.found(rounds=ROUNDS, silos=3, more=f"quorum = 2\ngrace = 60\n{table}")
    hospitals = []
    for name, samples in IMAGES.items():
        hospital = stage.hospital(name, samples)
        hospital.learner.metrics |= {"first_loss": losses[name]} if name in losses else {}
        hospitals.append(hospital)
    return hospitals


def finish(stage: Stage, hospitals: list[Hospital]) -> str:
    """Run it to the end; what the federator said."""
    server = stage.serve()
    for hospital in hospitals:
        hospital.start()
    assert server.wait() == 0
    return server.told()


def mean(hospitals: list[Hospital], weights: Mapping[str, float], round: int, segment: str) -> npt.NDArray[np.float64]:
    found = [weights[each.name] * each.result_of(round)[segment].astype(np.float64) for each in hospitals]
    return np.sum(found, axis=0) / sum(weights[each.name] for each in hospitals)


@pytest.mark.parametrize(
    ("table", "weights", "said"),
    [
        ('[weights]\nby = "uniform"\n', dict.fromkeys(IMAGES, 1.0), "hospital-b 33.3% (every silo counts the same)"),
        (
            '[weights]\nby = "loss"\nq = 2.0\n',
            {"hospital-a": 30 * 0.25, "hospital-b": 7 * 9.0, "hospital-c": 101 * 0.01},
            "hospital-b 88.1% (7 images, loss 3 to the power of 2)",
        ),
    ],
    ids=["uniform", "loss"],
)
def test_a_round_publishes_the_mean_by_the_rules_weights(
    stage: Stage, table: str, weights: dict[str, float], said: str
) -> None:
    hospitals = begin(stage, table)
    told = finish(stage, hospitals)
    for number in range(1, ROUNDS + 1):
        for name in stage.layout.names:
            expected = mean(hospitals, weights, number, name)
            np.testing.assert_allclose(stage.published(name, number), expected, rtol=1e-6, atol=1e-7)
    assert told.count(said) == ROUNDS


def test_who_tells_a_loss_that_cannot_be_is_left_out_and_named(stage: Stage) -> None:
    """It asks for all the weight there is, and gets none."""
    hospitals = begin(stage, '[weights]\nby = "loss"\nq = 1.0\n', {**LOSSES, "hospital-b": 1e30})
    told = finish(stage, hospitals)
    rest = [each for each in hospitals if each.name != "hospital-b"]
    weights = {"hospital-a": 30 * 0.5, "hospital-c": 101 * 0.1}
    name = stage.layout.names[0]
    np.testing.assert_allclose(stage.published(name, 1), mean(rest, weights, 1, name), rtol=1e-6, atol=1e-7)
    assert "the update of hospital-b is rejected: it told a first_loss of 1e+30" in told
    assert [each.silos for each in stage.opened().journal.rounds()] == [("hospital-a", "hospital-c")] * ROUNDS


def test_the_moving_average_outlives_the_federator_and_is_what_is_drawn(stage: Stage) -> None:
    stage.found(rounds=3, more="[outer]\nema = 0.2\n")
    hospitals = [stage.hospital(name, 1) for name in ("hospital-a", "hospital-b")]
    gate = hospitals[0].gate[3] = threading.Event()
    server = stage.serve()
    for hospital in hospitals:
        hospital.start()
    stage.until("the third round trains", lambda: hospitals[0].training(3))
    server.kill()
    gate.set()
    assert stage.serve().wait() == 0

    averaged: dict[str, F32] = {}
    for name in stage.layout.names:
        one, two, three = (stage.published(name, version).astype(np.float64) for version in (1, 2, 3))
        with WeightsReader(stage.home / "averages" / f"{name}@3.safetensors") as reader:
            averaged[name] = reader.read(name)
        expected = 0.2 * (2 / 11 * one + 9 / 11 * two) + 0.8 * three
        np.testing.assert_allclose(averaged[name], expected, rtol=1e-6, atol=1e-7)
        start = hospitals[0].start_of(3)[name]
        assert np.array_equal(start, stage.published(name, 2)), "silos train from what was published"
    drawn, expected_state = desk.global_state(stage.opened()), stage.layout.scatter(averaged)
    assert all(np.array_equal(drawn[name], expected_state[name]) for name in expected_state)
