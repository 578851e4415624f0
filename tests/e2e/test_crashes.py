"""kill -9, at the worst moments: nothing is trained, sent or counted twice, and the rounds are all there."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import time
from collections import Counter

import numpy as np
import pytest
from stage import SILO, TINY_UNET, Process, Stage, images

from feddiff.core.spool import Transfer

ROUNDS = 2
HEAVY = 100
"""Times the flat model: 3.2 MB of weights."""


def check_counted_once(
    stage: Stage,
    rounds: int = ROUNDS,
    silos: tuple[str, ...] = ("hospital-a", "hospital-b"),
    wire: bool = True,
) -> None:
    """Every update of every round is in the ledger, and once.

    ``wire``: no federator died in the middle of an upload, taking its last half second of counts with it.
    """
    up = {
        (entry["round"], entry["silo"], entry["segment"]): entry
        for entry in stage.ledger()
        if entry["direction"] == "up" and entry["segment"]
    }
    expected = {(r + 1, silo, name) for r in range(rounds) for silo in silos for name in stage.layout.names}
    assert up.keys() == expected
    for (_, _, segment), entry in up.items():
        assert entry["parameters"] == stage.layout[segment].size
        assert entry["raw"] == 4 * stage.layout[segment].size
        assert entry["encoded"] > 0
        assert not wire or entry["encoded"] <= entry["wire"]
    journal = stage.opened().journal
    assert [(each.round, each.silos) for each in journal.rounds()] == [(r + 1, silos) for r in range(rounds)]
    assert journal.current() == dict.fromkeys(stage.layout.names, rounds)


def check_trained_once(silo: Process, rounds: int = ROUNDS) -> None:
    """Once a round is trained, no later life of the process trains it again."""
    trained = Counter(re.findall(r"round (\d+) trained", silo.told()))
    assert set(trained.values()) == {1}  # a kill may come between the training's end and its line: then there is none
    assert trained.keys() <= {str(r + 1) for r in range(rounds)}


def uplink(stage: Stage, silo: str, round: int) -> tuple[int, int]:
    """(encoded, retransmitted) bytes of a silo's update."""
    rows = [
        entry
        for entry in stage.ledger()
        if entry["direction"] == "up" and (entry["silo"], entry["round"]) == (silo, round)
    ]
    return sum(row["encoded"] for row in rows), sum(row["retransmitted"] for row in rows)


def test_the_federator_is_killed_while_it_collects(stage: Stage) -> None:
    server = stage.found(rounds=ROUNDS).serve()
    early, late = stage.hospital("hospital-a"), stage.hospital("hospital-b")
    late.gate[1] = threading.Event()
    early.start()
    late.start()
    stage.until("one of two is in", lambda: late.training(1) and stage.silo_status("hospital-a").get("committed"))
    spool = stage.home / "spool" / "round-1"
    committed = {path.name: Transfer(path).payload_bytes for path in spool.glob("*hospital-a*.transfer")}
    assert len(committed) == len(stage.layout.names)
    server.kill()
    late.gate[1].set()
    server = stage.serve()
    assert server.wait() == 0

    check_counted_once(stage)
    for name, size in committed.items():
        segment = name.removeprefix("up.1.hospital-a.").removesuffix(".transfer")
        row = next(
            entry
            for entry in stage.ledger()
            if (entry["round"], entry["silo"], entry["segment"], entry["direction"]) == (1, "hospital-a", segment, "up")
        )
        assert row["encoded"] == size
    assert uplink(stage, "hospital-a", 1)[1] == 0
    assert len(early.learner.results) == len(late.learner.results) == ROUNDS


def test_the_federator_is_killed_between_the_file_and_its_journal(stage: Stage) -> None:
    """A segment is whole on disk but nobody wrote so: the silo, which need not send it again, must not wait forever."""
    server = stage.found(rounds=1).serve()
    early, late = stage.hospital("hospital-a"), stage.hospital("hospital-b")
    late.gate[1] = threading.Event()
    early.start()
    late.start()
    stage.until("one of two is in", lambda: late.training(1) and stage.silo_status("hospital-a").get("committed"))
    server.kill()
    with sqlite3.connect(stage.home / "federation.db") as database:
        lost = "WHERE silo = 'hospital-a' AND segment = 'bottleneck'"
        database.execute(f"DELETE FROM updates {lost}")
        database.execute(f"UPDATE ledger SET parameters = 0, raw = 0, encoded = 0 {lost} AND direction = 'up'")
    database.close()
    late.gate[1].set()
    assert stage.serve().wait() == 0
    check_counted_once(stage, rounds=1)
    assert uplink(stage, "hospital-a", 1)[1] == 0


def test_the_federator_is_killed_while_it_averages(stage: Stage) -> None:
    server = stage.found(rounds=ROUNDS, scale=HEAVY, chunk=1 << 14).serve()
    silos = [stage.hospital(name, samples).start() for name, samples in (("hospital-a", 3), ("hospital-b", 4))]
    stage.until("a new version is being written", lambda: any((stage.home / "weights").glob("*@1.safetensors*")))
    server.kill()
    assert stage.opened().journal.current() == dict.fromkeys(stage.layout.names, 0), "killed too late to test anything"
    assert stage.serve().wait() == 0

    check_counted_once(stage, wire=False)  # it averages what is complete while others still send
    for name in stage.layout.names:
        mean = sum(silo.samples * silo.result_of(1)[name].astype(np.float64) for silo in silos) / 7
        np.testing.assert_allclose(stage.published(name, 1), mean, rtol=1e-6, atol=1e-7)
    assert all(len(silo.learner.results) == ROUNDS for silo in silos)


def test_a_silo_is_killed_while_it_sends(stage: Stage) -> None:
    server = stage.found(rounds=ROUNDS, scale=12 * HEAVY, chunk=1 << 14).serve()
    other = stage.hospital("hospital-a").start()
    silo = stage.noise("hospital-b")
    part = stage.home / "spool" / "round-1" / "up.1.hospital-b.decoder.0.transfer.part"
    stage.until("the largest segment is on its way", lambda: part.exists() and part.stat().st_size > 1 << 20)
    silo.kill()
    kept = part.stat().st_size
    whole = 4 * stage.layout["decoder.0"].size
    assert kept < whole, "killed too late to test anything"
    silo = stage.noise("hospital-b")
    assert [server.wait(), silo.wait()] == [0, 0]

    check_counted_once(stage)
    check_trained_once(silo)
    encoded, again = uplink(stage, "hospital-b", 1)
    assert again < encoded // 10
    rows = {entry["segment"]: entry for entry in stage.ledger() if entry["round"] == 1 and entry["direction"] == "up"}
    assert rows["decoder.0"]["wire"] < 1.02 * rows["decoder.0"]["encoded"] + kept // 10
    assert len(other.learner.results) == ROUNDS


def test_a_silo_is_killed_while_it_trains(stage: Stage) -> None:
    server = stage.found(rounds=ROUNDS).serve()
    stage.hospital("hospital-a").start()
    silo = stage.noise("hospital-b", seconds=1.0)
    stage.until("it trains", lambda: stage.silo_status("hospital-b").get("training"))
    silo.kill()
    assert "trained" not in silo.told()
    silo = stage.noise("hospital-b")
    assert [server.wait(), silo.wait()] == [0, 0]
    check_counted_once(stage)
    check_trained_once(silo)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_everybody_is_killed_at_any_moment(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    server = stage.found(rounds=4, scale=HEAVY, chunk=1 << 14).serve()
    names = ("hospital-a", "hospital-b")
    silos = {name: stage.noise(name, seconds=0.2) for name in names}
    for _ in range(6):
        time.sleep(chance.uniform(0.2, 2.5))
        victim = chance.choice(["federator", *names])
        if victim != "federator" and silos[victim].code is None:
            silos[victim].kill()
            silos[victim] = stage.noise(victim, seconds=0.2)
        elif victim == "federator" and server.code is None and stage.opened().journal.fact("finished") is None:
            server.kill()
            server = stage.serve()
    assert server.wait() == 0
    check_counted_once(stage, rounds=4, wire=False)
    for silo in silos.values():
        check_trained_once(silo, rounds=4)


def test_a_real_silo_is_killed_while_it_trains(stage: Stage) -> None:
    server = stage.found(rounds=1, silos=1, unet=TINY_UNET, training="steps = 200").serve()
    images(stage.folder / "data", 16, seed=1)
    state = stage.enrol("hospital-a")
    command = ("-m", SILO, "--data", str(stage.folder / "data"), "--federator", stage.address, "--state", str(state))
    silo = stage.run("hospital-a", *command)
    stage.until("it trains", lambda: 0 < stage.silo_status("hospital-a").get("step", 0) < 200)
    silo.kill()
    assert "trained" not in silo.told()
    silo = stage.run("hospital-a", *command)
    assert [server.wait(), silo.wait()] == [0, 0]
    check_trained_once(silo, rounds=1)
    stage.layout = stage.opened().layout
    check_counted_once(stage, rounds=1, silos=("hospital-a",))


def test_a_restarted_silo_fetches_nothing_that_it_holds(stage: Stage) -> None:
    server = stage.found(rounds=1).serve()
    silo = stage.noise("hospital-a", seconds=30.0)
    stage.hospital("hospital-b").start()
    stage.until("it trains", lambda: stage.silo_status("hospital-a").get("training"))
    before = sum(entry["encoded"] for entry in stage.ledger() if entry["direction"] == "down")
    silo.kill()
    silo = stage.noise("hospital-a")
    assert [server.wait(), silo.wait()] == [0, 0]
    down = [entry for entry in stage.ledger() if entry["direction"] == "down"]
    assert sum(entry["encoded"] for entry in down) == before
    assert sum(entry["retransmitted"] for entry in down) == 0
