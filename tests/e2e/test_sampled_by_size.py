"""Rounds that take silos as often as they have images, and publish their plain mean: real daemons."""

from __future__ import annotations

import numpy as np
from stage import SEED, Stage

from feddiff.federator.sampling import inclusion, proportional

IMAGES = {"hospital-a": 60, "hospital-b": 10, "hospital-c": 20, "hospital-d": 30}


def test_those_with_more_images_are_taken_more_often_and_count_no_more(stage: Stage) -> None:
    stage.found(rounds=6, silos=4, more='sampled = 2\nsampling = "size"\n[weights]\nby = "uniform"\n')
    server = stage.serve()
    for name, samples in IMAGES.items():
        stage.hospital(name, samples).start()
    assert server.wait() == 0

    assert {name[-1]: str(chance) for name, chance in inclusion(IMAGES, 2).items()} == {
        "a": "1",
        "b": "1/6",
        "c": "1/3",
        "d": "1/2",
    }
    rounds = stage.opened().journal.rounds()
    assert [each.silos for each in rounds] == [proportional(IMAGES, 2, SEED, number) for number in range(1, 7)]
    assert all("hospital-a" in each.silos for each in rounds), "it has half of all images"
    assert len({each.silos for each in rounds}) > 1
    for each in rounds:
        listed = ", ".join(f"{name} with {IMAGES[name]}" for name in each.silos)
        assert f"2 of the 4 that are here, by their images: {listed} of 120" in each.plan.reason
        for segment in stage.layout.names:
            results = [stage.hospitals[name].result_of(each.round)[segment].astype(np.float64) for name in each.silos]
            found = stage.published(segment, each.round)
            np.testing.assert_allclose(found, np.mean(results, axis=0), rtol=1e-6, atol=1e-7)
