"""Personal and frozen segments, whole federations long: what moves, what stays, what a kill -9 leaves."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from noise import Noise
from stage import FEDERATOR, SEED, SILO, TINY_UNET, Stage, images

from feddiff.bench.savings import Parts, exchanged
from feddiff.core import diffusion
from feddiff.core.config import Fixed, load
from feddiff.core.errors import ConfigError
from feddiff.federator import desk, tables
from feddiff.silo.learner import Lesson, training_seed
from feddiff.silo.trained import Trained

ROUNDS = 3


def keep(stage: Stage, **keys: object) -> None:
    """Put top-level keys into the rules."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in keys.items()]
    stage.rules.write_text("".join(lines) + stage.rules.read_text())


def moved(stage: Stage, direction: str) -> dict[str, int]:
    """How often each segment is in the ledger, one way."""
    found = dict.fromkeys(stage.layout.names, 0)
    for entry in stage.ledger():
        if entry["direction"] == direction and entry["segment"]:
            found[entry["segment"]] += 1
    return found


@pytest.mark.parametrize(("plan", "personal"), [("full", "decoder.0"), ("usplit", "encoder.0"), ("udec", "decoder.0")])
def test_personal_segments_never_travel_and_go_on_after_a_kill(stage: Stage, plan: Fixed, personal: str) -> None:
    stage.found(plan, ROUNDS)
    keep(stage, personal=[personal])
    server = stage.serve()
    own = Trained(stage.folder / "hospital-a")
    victim, other = stage.noise("hospital-a", seconds=5.0), stage.hospital("hospital-b").start()
    stage.until("the second round trains", lambda: own.round == 1 and other.training(2))
    victim.kill()
    assert own.round == 1, "killed too late to test anything"
    sharing, mine = stage.opened().sharing, dict(own.weights())
    assert personal in sharing.personal
    victim = stage.noise("hospital-a")
    assert [server.wait(), victim.wait()] == [0, 0]

    learner = Noise(1, stage.layout.digest)
    for round in (2, 3):  # what is shared it started from where the other did
        start = {name: mine[name] if name in sharing.personal else v for name, v in other.start_of(round).items()}
        lesson = Lesson(round, start, None, training_seed(SEED, round, "hospital-a"), stage.folder / "none")
        learned = learner.learn(lesson, lambda *_: True)
        assert learned is not None
        mine = dict(learned.weights)
    assert own.round == ROUNDS
    assert all(np.array_equal(vector, mine[name]) for name, vector in own.weights().items())
    assert not np.array_equal(mine[personal], other.result_of(ROUNDS)[personal])

    down, up, each = moved(stage, "down"), moved(stage, "up"), 1 if plan == "usplit" else 2
    assert down == {name: 2 if name in sharing.personal else 2 * ROUNDS for name in stage.layout.names}
    assert up == {name: 0 if name in sharing.personal else each * ROUNDS for name in stage.layout.names}
    closed = exchanged(plan, Parts.of(stage.layout), 2, ROUNDS, kept=Parts.of(stage.layout, [personal]))
    assert sum(entry["parameters"] for entry in stage.ledger()) == closed.total


def test_a_silo_that_lost_what_is_shared_keeps_what_is_its_own(stage: Stage) -> None:
    stage.found(rounds=2, silos=1)
    keep(stage, personal=["decoder.0"])
    server, before = stage.serve(), stage.hospital("hospital-a")
    before.gate[1] = threading.Event()
    before.start()
    stage.until("the first round trains", lambda: before.training(1))
    stage.operate("pause")
    before.gate[1].set()
    stage.until("the first round is over", lambda: stage.status()["phase"] == "paused")
    before.stop()
    for lost in (before.state / "held").glob("decoder.out@*.safetensors"):
        lost.unlink()
    after = stage.hospital("hospital-a").start()
    stage.until("it is back", lambda: stage.silo_status("hospital-a").get("phase") == "joined")
    stage.operate("resume")
    assert server.wait() == 0
    for name, vector in after.start_of(2).items():
        expected = before.result_of(1)[name] if name == "decoder.0" else stage.published(name, 1)
        assert np.array_equal(vector, expected), name


@pytest.mark.slow
def test_real_silos_go_on_from_a_published_model(stage: Stage) -> None:
    """The first two segments are frozen as published, the last decoder block is each silo's own; one is killed."""
    stage.found(rounds=ROUNDS, unet=TINY_UNET, training="steps = 40")
    keep(stage, initial="file", frozen=2, personal=["decoder.1"])
    rules, published = load(stage.rules), stage.folder / "published"
    state = diffusion.initial_state(rules.model_copy(update={"seed": SEED + 1}))
    diffusion.export(rules, state, published)
    refused = stage.call(FEDERATOR, "serve", "--config", str(stage.rules))
    assert refused.code == ConfigError.exit_code
    assert "--initial" in refused.err
    server = stage.serve("--initial", str(published))

    def start(name: str) -> tuple[str, ...]:
        data = str(stage.folder / "data" / name)
        return ("-m", SILO, "--data", data, "--federator", stage.address, "--state", str(stage.enrol(name)))

    names = ("hospital-a", "hospital-b")
    for seed, name in enumerate(names):
        images(stage.folder / "data" / name, 12, seed)
    silos = [stage.run(name, *start(name)) for name in names]
    own = [Trained(stage.folder / name) for name in names]
    stage.until("the first round is trained", lambda: own[0].round)
    silos[0].kill()
    assert own[0].round != ROUNDS, "killed too late to test anything"
    silos[0] = stage.run(names[0], *start(names[0]))
    assert [server.wait(), *(silo.wait() for silo in silos)] == [0, 0, 0]

    federation = stage.opened()
    stage.layout, sharing, trained = federation.layout, federation.sharing, [each.weights() for each in own]
    assert (sharing.frozen, sharing.personal) == (("encoder.in", "encoder.0"), ("decoder.1",))
    assert federation.current == {name: ROUNDS if name in sharing.shared else 0 for name in stage.layout.names}
    for name, initial in stage.layout.gather(state).items():
        assert np.array_equal(stage.published(name, 0), initial)
        for weights in trained:
            assert np.array_equal(weights[name], initial) == (name in sharing.frozen), name
    assert not np.array_equal(*(weights["decoder.1"] for weights in trained))
    down, up = moved(stage, "down"), moved(stage, "up")
    assert down == {name: 2 * ROUNDS if name in sharing.shared else 2 for name in stage.layout.names}
    assert up == {name: 2 * ROUNDS if name in sharing.shared else 0 for name in stage.layout.names}
    table = tables.by_segment(desk.story(federation, []))
    assert "encoder.0 (frozen, not sent)" in table
    assert "decoder.1 (personal, not sent)" in table
    with pytest.raises(ConfigError, match=r"decoder\.1 never leaves a silo"):
        desk.global_state(federation)
