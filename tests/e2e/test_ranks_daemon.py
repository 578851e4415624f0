"""A silo of two processes in a federation: one daemon talks, whoever is killed, all end, and the next start goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from stage import SEED, SILO, TINY_UNET, Stage, images

from feddiff.core.config import load
from feddiff.core.errors import FedDiffError
from feddiff.silo.learner import ImageLearner, Lesson, training_seed

NAME = "hospital-a"


def ranks_of(state: Path) -> dict[int, int]:
    """Rank to process id, of those that train for a state folder."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "feddiff.silo.rank" in words and any(each.startswith(str(state)) for each in words):
            found[int(words[-2])] = int(place.name)
    return found


def test_whoever_is_killed_all_end_and_the_next_start_goes_on(stage: Stage) -> None:
    server = stage.found(rounds=1, silos=1, unet=TINY_UNET, training="steps = 300").serve()
    data, state = stage.folder / "data", stage.enrol(NAME)
    images(data, 21, seed=1)
    command = ("-m", SILO, "--data", str(data), "--federator", stage.address, "--state", str(state))

    silo = stage.run(NAME, *command, "--processes", "2")
    stage.until("it trains", lambda: 0 < stage.silo_status(NAME).get("step", 0) < 300)
    assert sorted(ranks_of(state)) == [0, 1]
    silo.kill()
    stage.until("no rank outlives its daemon", lambda: not ranks_of(state))

    silo = stage.run(NAME, *command, "--processes", "2")
    stage.until("it trains again", lambda: len(ranks_of(state)) == 2)
    os.kill(ranks_of(state)[1], signal.SIGKILL)
    assert silo.wait() == FedDiffError.exit_code
    assert not ranks_of(state)
    errors = [line for line in silo.told().splitlines() if line.startswith("feddiff-silo: ")]
    assert len(errors) == 1
    assert "rank 1 of 2 was killed by signal 9" in errors[0]
    assert "Traceback" not in silo.told()
    assert "trained" not in silo.told(), "killed too late to test anything"

    silo = stage.run(NAME, *command, "--processes", "2")
    assert [server.wait(), silo.wait()] == [0, 0]
    assert not ranks_of(state)
    assert not [path for path in state.iterdir() if path.name.startswith("ranks-")]
    config = load(stage.rules)
    learner = ImageLearner(config, data)
    start = {name: stage.published(name, 0) for name in learner.layout.names}
    alone = learner.learn(Lesson(1, start, None, training_seed(SEED, 1, NAME), stage.folder / "none"), lambda *_: True)
    assert alone is not None
    for name, vector in alone.weights.items():
        moved, apart = (np.linalg.norm(vector - other) for other in (start[name], stage.published(name, 1)))
        assert apart < 0.01 * moved, name
