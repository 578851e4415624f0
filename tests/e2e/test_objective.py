"""The local objective and its schedule through a whole federation: each training again, with what it must have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from noise import Noise
from stage import SEED, TINY_UNET, Stage, images

from feddiff.core import diffusion
from feddiff.core.config import load
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader
from feddiff.silo.learner import ImageLearner, Learned, Lesson, Told, training_seed
from feddiff.silo.trainer import train

TRAINING = """\
epochs = 2
learning_rate = 0.01
accumulate = 2
clip = 0.5
proximal = 3.0
schedule = "linear"
warmup = 1
"""
NAMES = ("hospital-a", "hospital-b")


class Kept(ImageLearner):
    """A silo's training that remembers what it was given and gave, by round."""

    lessons: dict[int, tuple[Lesson, Learned]]

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        start = {name: vector.copy() for name, vector in lesson.start.items()}
        learned = super().learn(lesson, told)
        assert learned is not None
        self.lessons[lesson.round] = (replace(lesson, start=start), learned)
        return learned


def test_silos_train_by_the_rounds_rate_held_to_what_all_share(stage: Stage) -> None:
    """Under udec the decoder alone is shared: it is held to the published bits, in every round; the rest is free."""
    stage.found("udec", rounds=3, unet=TINY_UNET, training=TRAINING)
    config = load(stage.rules)
    stage.layout = diffusion.layout(config)
    learners = {}
    server = stage.serve()
    for seed, name in enumerate(NAMES):
        images(stage.folder / "data" / name, 20, seed)
        learners[name] = Kept(config, stage.folder / "data" / name)
        learners[name].lessons = {}
        stage.hospital(name).learner = cast(Noise, learners[name])
        stage.hospitals[name].start()
    assert server.wait() == 0

    decoder = [segment.name for segment in stage.layout.segments if segment.part == "decoder"]
    held = [each.name for segment in decoder for each in stage.layout[segment].parameters]
    for name, learner in learners.items():
        for number, rate in ((1, 0.005), (2, 0.01), (3, 0.005)):
            lesson, learned = learner.lessons[number]
            assert (lesson.round, sorted(lesson.shared)) == (number, sorted(decoder))
            assert lesson.seed == training_seed(SEED, number, name)
            for segment in decoder:
                assert np.array_equal(lesson.start[segment], stage.published(segment, number - 1))
            state = stage.layout.scatter(learned.weights)
            assert same(state, again(learner, lesson, rate, held))
            if number == 2:
                assert not same(state, again(learner, lesson, rate, [])), "the term does nothing"
                assert not same(state, again(learner, lesson, rate, list(state))), "what is the silo's own is held, too"
        with WeightsReader(stage.folder / name / "trained" / "round-3.safetensors") as reader:
            last = learner.lessons[3][1].weights
            assert all(np.array_equal(reader.read(each), last[each]) for each in stage.layout.names)


def again(learner: ImageLearner, lesson: Lesson, rate: float, held: Sequence[str]) -> dict[str, F32]:
    """The training of a lesson at a constant rate; ``held``: what the proximal term holds."""
    rules = {"schedule": "constant", "warmup": 0, "learning_rate": rate}
    config = learner.config.model_copy(update={"training": learner.config.training.model_copy(update=rules)})
    start = learner.layout.scatter(lesson.start)
    done = train(config, start, learner.images, lesson.seed, shared=held, progress=lambda _: True)
    assert done is not None
    return done.state


def same(one: dict[str, F32], other: dict[str, F32]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)
