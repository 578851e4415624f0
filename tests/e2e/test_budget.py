"""Plan "budget" through whole federations: nobody overspends, all is refreshed, everybody holds the same bits."""

from __future__ import annotations

import threading
from collections import defaultdict

import numpy as np
from stage import Hospital, Stage

from feddiff.core.config import load
from feddiff.federator.daemon import open_federation
from feddiff.federator.journal import Round
from feddiff.federator.ledger import Direction, Entry

REFRESH = 3
BYTES = 100_000
"""Of a silo and round. The whole model is 79,000 values, 316 kB raw."""


def found(stage: Stage, budget: str, rounds: int, silos: int, more: str = "", initial: str = "send") -> Stage:
    """A federation with these lines in its table [budget]."""
    table = f"{more}\n[budget]\nrefresh = {REFRESH}\n{budget}\n"
    stage.found("budget", rounds, silos, more=table, scale=10, chunk=4096)
    stage.rules.write_text(f'initial = "{initial}"\n{stage.rules.read_text()}')
    return stage


def seeded(stage: Stage, name: str) -> Hospital:
    """A silo that makes the initial model itself."""
    hospital = stage.hospital(name, 10)
    initial = {segment: stage.published(segment, 0) for segment in stage.layout.names}
    hospital.learner.initial = lambda: initial  # type: ignore[attr-defined]
    return hospital


def spent(stage: Stage) -> dict[tuple[int, str], int]:
    """Bytes on the wire by round and silo, both directions, the protocol's included."""
    total: dict[tuple[int, str], int] = defaultdict(int)
    for entry in stage.ledger():
        total[entry["round"], entry["silo"]] += entry["wire"]
    return total


def check_bits(stage: Stage, rounds: list[Round], hospitals: list[Hospital]) -> None:
    """Whoever trains starts from the federator's very bits of every segment, whatever the codecs were."""
    version = dict.fromkeys(stage.layout.names, 0)
    for each in rounds:
        for hospital in hospitals:
            assert hospital.training(each.round) == (hospital.name in each.plan.reporting), (hospital.name, each.round)
            if hospital.training(each.round):
                for name, vector in hospital.start_of(each.round).items():
                    assert np.array_equal(vector, stage.published(name, version[name])), (each.round, name)
        for name in each.plan.open if each.silos else ():
            version[name] += 1
    assert stage.opened().journal.current() == version


def check_refresh(stage: Stage, rounds: list[Round]) -> None:
    """Of the rounds that publish, any ``REFRESH`` in a row refresh every segment."""
    opened = [set(each.plan.open) for each in rounds if each.silos]
    assert len(opened) > REFRESH
    for first in range(len(opened) - REFRESH + 1):
        assert set().union(*opened[first : first + REFRESH]) == set(stage.layout.names)


def test_bytes_per_silo_are_never_overspent(stage: Stage) -> None:
    found(stage, f"bytes_per_silo = {BYTES}", 9, 3, more="quorum = 2\ngrace = 0.5\ndeadline = 1.5\n", initial="seed")
    server = stage.serve()
    hospitals = [seeded(stage, f"hospital-{letter}").start() for letter in "abc"]
    assert server.wait() == 0
    rounds = stage.opened().journal.rounds()
    assert all(each.silos == ("hospital-a", "hospital-b", "hospital-c") for each in rounds)
    assert {name for each in rounds for name in each.plan.open} == set(stage.layout.names)
    assert min(len(each.plan.open) for each in rounds) < len(stage.layout.names)
    total = spent(stage)
    assert all(total[each.round, hospital.name] <= BYTES for each in rounds[1:] for hospital in hospitals)
    # What is planned is a bound, and not a wide one.
    for each in rounds[1:]:
        for assignment in each.plan.assignments:
            assert assignment.spending is not None
            assert total[each.round, assignment.silo] > 0.75 * (assignment.spending.down + assignment.spending.up)
    check_bits(stage, rounds, hospitals)
    check_refresh(stage, rounds)
    status = stage.status()
    assert "published as int" in status["plan"]
    assert all("reports as int" in silo["plan"] and silo["down_mbit"] >= 0 for silo in status["silos"])
    assert "for the protocol" in stage.operate("status")


def test_who_lacks_much_catches_up_over_rounds_and_then_trains(stage: Stage) -> None:
    """Nobody has the initial model: it comes in parts. So it does to a silo that comes later, which holds nobody up."""
    budget = 170_000
    found(stage, f"bytes_per_silo = {budget}", 14, 2, more="quorum = 2\ngrace = 0.5\ndeadline = 5\n")
    server = stage.serve()
    first, second, late = (stage.hospital(f"hospital-{letter}", 10) for letter in "abc")
    first.gate[5] = threading.Event()
    first.start(), second.start()
    stage.until("the fifth round trains", lambda: first.training(5))
    late.start()
    stage.until("the third silo is here", lambda: stage.silo_status("hospital-c").get("reachable"))
    first.gate[5].set()
    assert server.wait() == 0

    rounds = stage.opened().journal.rounds()
    assert rounds[0].plan.reporting == rounds[1].plan.reporting == ()
    assert all("catches up" in each.reason for each in rounds[0].plan.assignments)
    assert rounds[4].silos == ("hospital-a", "hospital-b")
    joined = [each.round for each in rounds if "hospital-c" in each.plan.reporting]
    assert joined, [each.plan.reason for each in rounds]
    catching = [each for each in rounds if any(a.silo == "hospital-c" and not a.up for a in each.plan.assignments)]
    assert len(catching) >= 2
    assert all(each.silos == ("hospital-a", "hospital-b") for each in catching)
    assert rounds[-1].silos == ("hospital-a", "hospital-b", "hospital-c")
    assert max(spent(stage).values()) <= budget
    check_bits(stage, rounds, [first, second, late])
    check_refresh(stage, rounds)


def test_a_thin_link_is_measured_and_its_silo_sits_out_or_gets_less(stage: Stage) -> None:
    """The ledger of rounds before says how fast the links are; that is all that tells the three silos apart."""
    found(stage, "deadline = 4.0\nlink_mbit = 0.4", 4, 3, more="quorum = 2\ngrace = 1\n", initial="seed")
    federation = open_federation(stage.home, load(stage.rules))
    for letter, rate in (("a", 5e6), ("b", 5e4), ("c", 5e3)):
        ways: tuple[Direction, Direction] = ("down", "up")
        for way in ways:
            federation.ledger.add(Entry(0, f"hospital-{letter}", "decoder.0", way, wire=10**6, seconds=10**6 / rate))
    server = stage.serve()
    hospitals = [seeded(stage, f"hospital-{letter}").start() for letter in "abc"]
    assert server.wait() == 0
    rounds = stage.opened().journal.rounds()
    assert rounds[0].plan.reporting == ("hospital-a", "hospital-b")
    plan = {each.silo: each for each in rounds[0].plan.assignments}
    assert plan["hospital-a"].codec == "fp32"
    assert plan["hospital-b"].codec in ("int8", "int4", "int2")
    assert "sits out" in plan["hospital-c"].reason
    assert "0.04 Mbit/s" in plan["hospital-c"].reason
    assert rounds[0].silos == ("hospital-a", "hospital-b")
    check_bits(stage, rounds, hospitals)
