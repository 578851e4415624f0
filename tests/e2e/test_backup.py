"""A federator that is put back to an older backup: silos hold versions of a past that no longer is."""

from __future__ import annotations

import shutil
import threading

import numpy as np
from stage import Stage

ROUNDS = 6


def test_silos_with_newer_versions_get_the_published_bits_anew(stage: Stage) -> None:
    server = stage.found(rounds=ROUNDS).serve()
    hospitals = [stage.hospital(name, samples) for name, samples in (("hospital-a", 3), ("hospital-b", 5))]
    for number in (3, 5):
        for hospital in hospitals:
            hospital.gate[number] = threading.Event()
    for hospital in hospitals:
        hospital.start()
    stage.until("the third round trains", lambda: all(hospital.training(3) for hospital in hospitals))
    assert server.terminate() == 0
    shutil.copytree(stage.home, stage.folder / "backup")
    server = stage.serve()
    for hospital in hospitals:
        hospital.gate[3].set()
    stage.until("the fifth round trains", lambda: all(hospital.training(5) for hospital in hospitals))
    assert server.terminate() == 0
    lost = {name: stage.published(name, 4) for name in stage.layout.names}
    for hospital in hospitals:
        hospital.stop()

    shutil.rmtree(stage.home)
    shutil.copytree(stage.folder / "backup", stage.home)
    server = stage.serve()
    others = [stage.hospital(hospital.name, hospital.samples + 1).start() for hospital in hospitals]
    assert server.wait() == 0
    assert "never published" in server.told()
    rounds = stage.opened().journal.rounds()
    assert [each.round for each in rounds] == list(range(1, ROUNDS + 1))
    for number in range(3, ROUNDS + 1):
        for hospital in others:
            for name, vector in hospital.start_of(number).items():
                assert np.array_equal(vector, stage.published(name, number - 1)), (hospital.name, number, name)
    assert any(not np.array_equal(lost[name], stage.published(name, 4)) for name in lost)
