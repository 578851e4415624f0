"""Rounds that take silos by how they finished the rounds before: real daemons, of which one never finishes."""

from __future__ import annotations

import threading

from stage import Stage

from feddiff.federator.sampling import record, sample

NAMES = ("hospital-a", "hospital-b", "hospital-c")
ROUNDS = 7


def test_who_never_finishes_is_left_out_of_the_averages_and_its_record_decides_who_is_taken(stage: Stage) -> None:
    more = 'sampled = 2\nsampling = "availability"\nquorum = 1\ngrace = 2.0\n'
    stage.found(rounds=ROUNDS, silos=3, more=more)
    server = stage.serve()
    for name in NAMES:
        stage.hospital(name, 10)
    late = stage.hospitals["hospital-c"]
    late.gate = {number: threading.Event() for number in range(1, ROUNDS + 1)}
    for hospital in stage.hospitals.values():
        hospital.start()
    stage.until("the rounds are done", lambda: "finished: " in server.told())
    for gate in late.gate.values():
        gate.set()
    assert server.wait() == 0

    federation = stage.opened()
    rounds = federation.journal.rounds()
    assert len(rounds) == ROUNDS
    here = dict.fromkeys(NAMES, 10)
    for number, each in enumerate(rounds, 1):
        drawn = sample(federation.config, number, here, rounds[: number - 1])
        assert each.plan.reporting == drawn.silos
        assert drawn.reason in each.plan.reason
        assert late.name not in each.silos
    taken = [each for each in rounds if late.name in each.plan.reporting]
    assert 1 < len(taken) < ROUNDS, "it is taken again, for everybody gets turns"
    assert f"{late.name} 0 of {len(taken) - 1}" in taken[-1].plan.reason
    assert str(record(late.name, rounds)) == f"0 of {len(taken)}"
    assert server.told().count(f"WITHOUT {late.name}") == len(taken)
