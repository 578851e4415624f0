"""Guidance through a whole federation, and a silo of one class that draws the class that it lacks."""

from __future__ import annotations

import numpy as np
from PIL import Image
from stage import FEDERATOR, SILO, TINY_UNET, Stage, images

from feddiff.core import diffusion
from feddiff.core.config import load
from feddiff.core.grid import grid
from feddiff.federator import desk

TABLES = """\
[data]
classes = ["normal", "pneumonia"]

[diffusion]
timesteps = 50
guidance = 2.0
"""


def test_a_silo_without_a_class_draws_it_from_what_all_have_learnt(stage: Stage) -> None:
    training = "epochs = 1\nlabel_dropout = 0.3"
    stage.found(rounds=2, unet=TINY_UNET + "num_class_embeds = 3\n", training=training, more=TABLES)
    server, silos = stage.serve(), []
    for seed, (name, label) in enumerate((("hospital-a", "normal"), ("hospital-b", "pneumonia"))):
        data, state = stage.folder / "data" / name, stage.enrol(name)
        images(data / label, 6, seed)
        Image.new("L", (8, 8), 50).save(data / "unlabelled.png")
        command = ("--data", str(data), "--federator", stage.address, "--state", str(state))
        silos.append(stage.run(name, "-m", SILO, *command))
    assert [server.wait(), *(silo.wait() for silo in silos)] == [0, 0, 0]
    assert "7 images" in silos[0].told(), "the image without a label is one of them"

    config, federation = load(stage.rules), stage.opened()
    options = ("sample", "--state", str(stage.folder / "hospital-a"), "--steps", "3")
    done = stage.call(SILO, *options, "--out", "drawn", "--balance", str(stage.folder / "data" / "hospital-a"))
    assert (done.code, done.err) == (0, "")
    assert "6 pneumonia: synthetic images of the published model, version 1" in done.out
    held = {name: stage.published(name, 1) for name in federation.layout.names}
    expected = diffusion.sample(config, federation.layout.scatter(held), 6, steps=3, labels=[1] * 6, guidance=2.0)
    found = [np.asarray(Image.open(path)) for path in sorted((stage.folder / "drawn" / "pneumonia").iterdir())]
    assert np.abs(np.stack(found).astype(int) - expected[..., 0]).max() <= 1

    command = ("sample", "--config", str(stage.rules), "--count", "4", "--steps", "3", "--out", "grid.png")
    for guidance in (None, 0.0):
        more = () if guidance is None else ("--guidance", str(guidance))
        assert stage.call(FEDERATOR, *command, *more).code == 0
        state, scale = desk.global_state(federation), 2.0 if guidance is None else guidance
        pictures = grid(diffusion.sample(config, state, 4, steps=3, guidance=scale), config.columns(4))
        shown = np.asarray(Image.open(stage.folder / "grid.png")).astype(int)
        assert np.abs(shown - np.asarray(pictures)).max() <= 1
    wrong = stage.call(FEDERATOR, *command, "--guidance", "-1")
    assert (wrong.code, wrong.err.count("\n")) == (78, 1)
