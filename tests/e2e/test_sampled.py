"""Rounds that take some of the silos: who they are, what they start from, what it costs, what is said."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from stage import SEED, Hospital, Stage
from test_plans import parts

from feddiff.federator.sampling import uniform

NAMES = [f"hospital-{letter}" for letter in "abcdef"]


def drawn(count: int, rounds: int) -> list[tuple[str, ...]]:
    """Whom each round takes if all are always here."""
    taken: list[tuple[str, ...]] = []
    for number in range(1, rounds + 1):
        taken.append(uniform(NAMES, count, SEED, number, taken).silos)
    return taken


def run(stage: Stage) -> list[Hospital]:
    """All six from the first round to the end."""
    server = stage.serve()
    hospitals = [stage.hospital(name, 3 * place + 1).start() for place, name in enumerate(NAMES)]
    assert server.wait() == 0
    for hospital in hospitals:
        stage.until(f"{hospital.name} hears that it is over", lambda silo=hospital: silo.finished)
    return hospitals


@pytest.mark.parametrize(("plan", "codec"), [("full", "fp32"), ("full", "int4"), ("usplit", "fp32"), ("udec", "int8")])
def test_each_round_takes_its_sample_and_nobody_else_trains_or_pays(stage: Stage, plan: str, codec: str) -> None:
    stage.found(plan, rounds=6, silos=6, more="sampled = 2\n")
    text = stage.rules.read_text()
    stage.rules.write_text(text.replace("[codec]\n", f'[codec]\nup = "{codec}"\ndown = "{codec}"\n'))
    hospitals = run(stage)

    taken, rounds = drawn(2, 6), stage.opened().journal.rounds()
    assert [each.silos for each in rounds] == taken
    assert all("2 of the 6 that are here" in each.plan.reason for each in rounds)
    assert all(set(each.weights) == set(each.silos) for each in rounds)
    entries = [each for each in stage.ledger() if each["segment"]]
    part = parts(stage)
    shared = part["decoder"] if plan == "udec" else stage.layout.size
    version = dict.fromkeys(stage.layout.names, 0)
    met: set[str] = set()
    for each in rounds:
        assert {e["silo"] for e in entries if e["round"] == each.round} == set(each.silos)
        for hospital in hospitals:
            assert hospital.training(each.round) == (hospital.name in each.silos)
        planned = {assignment.silo: assignment for assignment in each.plan.assignments}
        for hospital in [one for one in hospitals if one.name in each.silos]:
            start = hospital.start_of(each.round)
            for name in planned[hospital.name].down:
                assert np.array_equal(start[name], stage.published(name, version[name])), (hospital.name, name)
        if codec == "fp32":  # lossy differences may come by several of them, each as long as the segment
            down = sum(e["parameters"] for e in entries if (e["round"], e["direction"]) == (each.round, "down"))
            assert down == sum(shared if name in met else stage.layout.size for name in each.silos)
        up = sum(e["parameters"] for e in entries if (e["round"], e["direction"]) == (each.round, "up"))
        assert up == (stage.layout.size if plan == "usplit" else 2 * shared)
        met.update(each.silos)
        for name in {name for assignment in planned.values() for name in assignment.up}:
            version[name] += 1
    assert met == set(NAMES)
    assert stage.opened().journal.current() == version
    assert sum(e["retransmitted"] for e in entries) == 0


def test_one_that_is_ten_rounds_behind_starts_from_the_published_bits(stage: Stage) -> None:
    """Versions in between are pruned, and their differences are more than the whole: it comes in one piece."""
    stage.found(rounds=24, silos=6, more="sampled = 1\n")
    text = stage.rules.read_text().replace("keep_versions = 100\n", "")
    stage.rules.write_text(text.replace("[codec]\n", '[codec]\nup = "int8"\ndown = "int8"\n'))
    hospitals = {each.name: each for each in run(stage)}

    taken = [name for (name,) in drawn(1, 24)]
    assert [each.silos for each in stage.opened().journal.rounds()] == [(name,) for name in taken]
    last = [0 if name not in taken[:at] else at - taken[:at][::-1].index(name) for at, name in enumerate(taken)]
    assert last[23] < 14
    assert not (stage.home / "weights" / f"{stage.layout.names[0]}@21.safetensors").exists()
    entries = [each for each in stage.ledger() if each["segment"] and each["direction"] == "down"]
    for number, name in enumerate(taken, 1):
        start, whole = hospitals[name].start_of(number), stage.layout.size
        down = [each for each in entries if (each["round"], each["silo"]) == (number, name)]
        pieces = sum(each["parameters"] for each in down) / whole
        if not last[number - 1] or number - last[number - 1] > 4:
            assert pieces == 1
            assert sum(each["encoded"] for each in down) > 3 * whole  # float32, not int8
        else:
            assert pieces >= 1
        if number == 24:
            assert all(np.array_equal(start[each], stage.published(each, 23)) for each in start)


def test_those_that_are_not_taken_are_told_so(stage: Stage) -> None:
    stage.found(rounds=1, silos=6, more="sampled = 2\n")
    (taken,) = drawn(2, 1)
    gate = threading.Event()
    server = stage.serve()
    for name in NAMES:
        stage.hospital(name).gate[1] = gate
        stage.hospitals[name].start()
    stage.until("the round trains", lambda: all(stage.hospitals[name].training(1) for name in taken))
    status = stage.status()
    assert {each["name"] for each in status["silos"] if each["planned"]} == set(taken)
    assert {each["name"] for each in status["silos"] if each["note"] == "not sampled"} == set(NAMES) - set(taken)
    assert "2 of the 6 that are here, by chance" in status["plan"]
    told = stage.operate("status")
    assert "2 of the 6 that are here, by chance" in told
    assert told.count("(not sampled)") == 4
    gate.set()
    assert server.wait() == 0
