"""What federations are held against: the same training without one, on the same number of images.

``centralised`` has all images in one place, ``alone`` leaves each silo to itself. Both are the silo's own training
(silo/learner.py) in one long round, and leave what a silo's daemon leaves, so that they are measured the same way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from feddiff.core.config import FederationConfig

SAID = 10
"""Lines of progress of one training."""


def train(
    config: FederationConfig,
    names: Sequence[str],
    folder: Path,
    told: Callable[[str], None],
    stop: threading.Event,
    initial: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Train a model for each name on ``folder/data/NAME``; it is left in ``folder/silos/NAME``. Returns the metrics.

    ``initial``: the published model that all begin with; by default it is that of the seed.

    Raises DataError, NotFinite as silo/trainer.py does, KeyboardInterrupt when ``stop`` is set.
    """
    from feddiff.core.published import read_published
    from feddiff.silo.learner import ImageLearner, Lesson, training_seed
    from feddiff.silo.trained import Trained

    found = {}
    for place, name in enumerate(names, 1):
        said = 0

        def at(step: int, steps: int, loss: float, speed: float, place: int = place) -> bool:
            nonlocal said
            if step * SAID // steps > said:
                said = step * SAID // steps
                told(f"model {place}/{len(names)}  step {step}/{steps}  loss {loss:.4f}  {speed:.0f} images/s")
            return not stop.is_set()

        learner = ImageLearner(config, folder / "data" / name)
        state = folder / "silos" / name
        state.mkdir(parents=True)
        seed = training_seed(config.seed, 1, name)
        begun = learner.initial() if initial is None else learner.layout.gather(read_published(initial, config))
        learned = learner.learn(Lesson(1, begun, None, seed, state / "checkpoint.safetensors"), at)
        if learned is None:
            raise KeyboardInterrupt
        (state / "trained").mkdir()
        Trained(state).keep(1, learned.weights, learned.ema, learned.metrics)
        found[name] = dict(learned.metrics)
    return found
