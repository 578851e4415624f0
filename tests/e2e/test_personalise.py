"""From a federation to a silo's own model: real daemons, the federator's export, then the silo alone."""

from __future__ import annotations

import numpy as np
from stage import FEDERATOR, SILO, TINY_UNET, Stage, images

from feddiff.core.config import load
from feddiff.core.published import read_published


def test_a_silo_goes_on_alone_from_the_final_model_or_the_one_it_was_sent_last(stage: Stage) -> None:
    stage.found(rounds=2, silos=1, unet=TINY_UNET, training="steps = 2")
    server, data = stage.serve(), stage.folder / "data"
    images(data, 12, 0)
    state = stage.enrol("hospital-a")
    daemon = ("-m", SILO, "--data", str(data), "--federator", stage.address, "--state", str(state))
    silo = stage.run("hospital-a", *daemon)
    assert [server.wait(), silo.wait()] == [0, 0]
    stage.layout, rules = stage.opened().layout, load(stage.rules)
    assert stage.call(FEDERATOR, "export", "final", "--config", str(stage.rules)).code == 0
    for out, more, version in (("own", (), 1), ("last", ("--from", "final"), 2)):
        common = ("--state", str(state), "--data", str(data), "--out", out, "--frozen", "4", "--epochs", "1")
        done = stage.call(SILO, "personalise", *common, *more)
        assert done.code == 0, done.err
        assert "held-out images" in done.out
        found = stage.layout.gather(read_published(stage.folder / out, rules))
        for place, name in enumerate(stage.layout.names):
            assert np.array_equal(found[name], stage.published(name, version)) == (place < 4), name
