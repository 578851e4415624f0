"""Lossy codecs through a whole federation: whoever comes, goes or is late holds the federator's very bits."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from stage import Stage

ROUNDS = 7
RATIO = {"int8": 3.9, "int4": 7.0}
"""Raw float32 to encoded bytes, at least; seals and manifests of these small segments not counted."""


@pytest.mark.parametrize(("up", "down"), [("bf16", "fp16"), ("int8", "int8"), ("int2", "int4"), ("topk10", "int8")])
def test_everybody_starts_every_round_from_the_published_bits(stage: Stage, up: str, down: str) -> None:
    stage.found(rounds=ROUNDS, more="quorum = 1\ngrace = 0.5\ndeadline = 1.5\n", chunk=4096, scale=4)
    text = stage.rules.read_text()
    stage.rules.write_text(text.replace("[codec]\n", f'[codec]\nup = "{up}"\ndown = "{down}"\n'))
    server = stage.serve()
    stays, leaves, comes = (stage.hospital(f"hospital-{letter}", 10) for letter in "abc")
    for number in (3, 5):
        stays.gate[number] = threading.Event()
    stays.start(), leaves.start()
    stage.until("the third round trains", lambda: stays.training(3))
    leaves.stop()
    stays.gate[3].set()
    stage.until("the fifth round trains", lambda: stays.training(5))
    again = stage.hospital("hospital-b", 10).start()
    comes.start()
    for name in ("hospital-b", "hospital-c"):
        stage.until(f"{name} is here", lambda silo=name: stage.silo_status(silo)["reachable"])
    stays.gate[5].set()
    assert server.wait() == 0

    rounds = stage.opened().journal.rounds()
    assert [len(each.plan.assignments) for each in rounds][-1] == 3
    started = 0
    for each in rounds:
        for hospital in (stays, leaves, again, comes):
            if hospital.training(each.round):
                started += 1
                for name, vector in hospital.start_of(each.round).items():
                    # Plan full: round r starts from version r - 1 of every segment.
                    assert np.array_equal(vector, stage.published(name, each.round - 1)), (hospital.name, each.round)
    assert started >= ROUNDS + 2 + 2 + 2
    encoded = [e for e in stage.ledger() if e["segment"] and e["direction"] == "up" and e["parameters"] > 4000]
    if up in RATIO:
        assert sum(e["raw"] for e in encoded) > RATIO[up] * sum(e["encoded"] for e in encoded)
