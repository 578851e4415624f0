"""Silos that average for each other: the bits of the star, on the same seeds; bytes; nothing at the federator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stage import Hospital, Stage

ROUNDS = 3
SAMPLES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}


def trained(folder: Path, plan: str, codec: str, silos: int = 3, more: str = "") -> tuple[Stage, list[Hospital]]:
    """A federation at its end; ``more``: lines before [model]."""
    stage = Stage(folder)
    stage.found(plan, ROUNDS, silos, scale=3)
    text = stage.rules.read_text().replace("[codec]\n", f'[codec]\nup = "{codec}"\ndown = "{codec}"\n')
    stage.rules.write_text(f"{more}\n{text}")
    stage.peers = bool(more)
    try:
        server = stage.serve()
        hospitals = [stage.hospital(name, SAMPLES[name]).start() for name in list(SAMPLES)[:silos]]
        stage.until("the federation ends", lambda: server.code is not None)
        assert server.code == 0, server.told()
        for hospital in hospitals:
            stage.until(f"{hospital.name} hears that it is over", lambda silo=hospital: silo.finished)
    finally:
        print(stage.close())
    return stage, hospitals


@pytest.mark.parametrize(
    ("plan", "codec"), [("full", "fp32"), ("full", "int4"), ("usplit", "int8"), ("ulatdec", "int4"), ("udec", "int8")]
)
def test_peers_publish_the_bits_of_the_star(tmp_path: Path, plan: str, codec: str) -> None:
    star, mine = trained(tmp_path / "star", plan, codec)
    peer, theirs = trained(tmp_path / "peer", plan, codec, more='topology = "peer"\npeer.checkpoint = 1')
    current = star.opened().journal.current()
    assert peer.opened().journal.current() == current
    for segment, version in current.items():
        for each in range(version + 1):
            assert np.array_equal(star.published(segment, each), peer.published(segment, each)), (segment, each)
    for one, other in zip(mine, theirs, strict=True):
        for number in range(1, ROUNDS + 1):
            start, again = one.start_of(number), other.start_of(number)
            assert all(np.array_equal(start[name], again[name]) for name in start), (one.name, number)
