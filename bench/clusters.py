"""Whether silos whose updates agree should share a model of their own: clustered federated learning, measured.

``python -m feddiff.bench.clusters [--scene 2-class|inverted] [--seed 0] [--clusters 2 5] [--after 2] [--rounds 10]``

After Sattler, Müller and Samek (arXiv 1910.01991): one model for all in the first rounds; then silos are put together
by the cosines of their updates of a segment, and each cluster averages among itself. The silos' own training
(silo/learner.py) on digits, averaged in this process; the same number of images is seen in every row:

    one model             FedAvg to the end
    n clusters            average linkage of 1 - cosine of the last common round's updates
    last round at home    FedAvg, and each silo's own model of its last round, which it has anyway
    alone                 each silo by itself after the common rounds: as many clusters as silos

Scene ``2-class``: ten silos of two classes each, as in the shipped sweep ``strategies``; ``inverted``: ten silos of all
classes, half of whose images are white on black, half black on white. Each silo's model is asked for images of its own
classes; all samples together are held against all test images. docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from feddiff.bench import reference, sweep
from feddiff.bench.partition import Split
from feddiff.core import console
from feddiff.core.classes import proportional
from feddiff.core.segments import F32

if TYPE_CHECKING:
    from feddiff.core.images import Images
    from feddiff.core.quality import Features
    from feddiff.silo.learner import ImageLearner

Scene = Literal["2-class", "inverted"]
Model = Mapping[str, F32]
SILOS = 10
SEGMENTS = "decoder"
"""Whose updates are compared."""


def cosines(updates: Sequence[Model], prefix: str = SEGMENTS) -> npt.NDArray[np.float64]:
    """Of each pair of updates (by segment, float32), over the segments that begin with ``prefix``; shape (K, K)."""
    rows = [
        np.concatenate([each[name].ravel() for name in sorted(each) if name.startswith(prefix)]) for each in updates
    ]
    unit = np.stack([row / max(float(np.linalg.norm(row)), 1e-30) for row in rows]).astype(np.float64)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def clusters(similar: npt.NDArray[np.float64], count: int) -> list[int]:
    """The cluster of each silo, by average linkage of 1 - cosine."""
    from sklearn.cluster import AgglomerativeClustering

    joined = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average")
    return [int(label) for label in joined.fit_predict(1.0 - similar)]


def average(models: Sequence[Model], images: Sequence[int]) -> Model:
    """Weighted by the silos' images (McMahan et al. 2017)."""
    shares = np.asarray(images, np.float32) / np.float32(sum(images))
    return {
        name: np.sum([each[name] * share for each, share in zip(models, shares, strict=True)], axis=0, dtype=np.float32)
        for name in models[0]
    }


@dataclass
class Hospitals:
    """Ten silos on digits, and what their models are held against."""

    learners: list[ImageLearner]
    tests: list[Images]
    """For each silo: test images of its kind."""
    target: Features
    measured: reference.Reference
    seed: int
    folder: Path

    @property
    def images(self) -> list[int]:
        return [each.samples for each in self.learners]

    def train(self, models: Sequence[Model], together: Sequence[int], rounds: range) -> tuple[list[Model], list[Model]]:
        """Rounds in which the silos of each cluster average. Returns (each one's model, each one's last update)."""
        from feddiff.silo.learner import Lesson, training_seed

        current, updates = list(models), list[Model]()
        for number in rounds:
            learned = []
            for place, learner in enumerate(self.learners):
                checkpoint = self.folder / f"{place}.checkpoint"
                lesson = Lesson(number, current[place], None, training_seed(self.seed, number, str(place)), checkpoint)
                done = learner.learn(lesson, lambda *_: True)
                assert done is not None
                checkpoint.unlink(missing_ok=True)
                learned.append(done.weights)
            updates = [{name: new[name] - old[name] for name in new} for new, old in zip(learned, current, strict=True)]
            for cluster in set(together):
                members = [place for place, each in enumerate(together) if each == cluster]
                shared = average([learned[place] for place in members], [self.images[place] for place in members])
                for place in members:
                    current[place] = shared
        return current, updates

    def row(self, models: Sequence[Model]) -> str:
        """FID, precision and recall of all silos' samples together, and their mean loss on images of their kind."""
        from feddiff.core import network
        from feddiff.core.quality import measure
        from feddiff.core.validation import validation_loss

        asked = self.measured.asked
        parts: list[Features] = []
        losses: list[float] = []
        turns = proportional(self.images, asked.samples)
        for place, (learner, test) in enumerate(zip(self.learners, self.tests, strict=True)):
            config, classes = learner.config, learner.config.data.classes
            state = learner.layout.scatter(models[place])
            labels = proportional([learner.labels.get(name, 0) for name in classes], turns.count(place))
            drawn = network.of(config).sample(
                config,
                state,
                len(labels),
                steps=asked.steps,
                sampler=asked.sampler,
                seed=self.seed * SILOS + place,
                labels=labels,
            )
            parts.append(self.measured.extractor.features(drawn.transpose(0, 3, 1, 2)))
            assert test.labels is not None
            own = np.isin(test.labels, [number for number, name in enumerate(classes) if learner.labels.get(name)])
            losses.append(validation_loss(config, state, test.pixels[own], test.labels[own]))
        numbers = {each.metric: each.value for each in measure(joined(parts), self.target, "test")}
        found = [f"{numbers[name]:.2f}" for name in ("fid", "precision", "recall")]
        return "  ".join(f"{each:>9}" for each in [*found, f"{statistics.fmean(losses):.4f}"])


def joined(parts: Sequence[Features]) -> Features:
    """Features of several sets of images as of one."""
    likely = [each.probabilities for each in parts if each.probabilities is not None]
    values = np.concatenate([each.values for each in parts])
    return replace(parts[0], values=values, probabilities=np.concatenate(likely) if likely else None)


def invert(folder: Path) -> None:
    """White for black in every picture of a folder."""
    from PIL import Image

    for path in sorted(folder.rglob("*.png")):
        pixels = 255 - np.asarray(Image.open(path))
        path.unlink()  # it may be a link to what others read
        Image.fromarray(pixels).save(path)


def hospitals(scene: Scene, seed: int, folder: Path) -> Hospitals:
    """The images and rules of the shipped sweep ``strategies``, dealt to folders. Raises DataError."""
    import torch

    from feddiff.core.images import read_images
    from feddiff.silo.learner import ImageLearner

    torch.set_num_threads(1)
    shipped = sweep.load(Path("strategies"))
    images = shipped.images(folder / "data")
    cell = next(each for each in shipped.cells(images.digest) if each.config.seed == seed and not each.strategy)
    asked = shipped.rules.quality
    assert asked is not None
    images.train.deal(cell.split if scene == "2-class" else Split("iid"), SILOS, seed, 1, folder / "silos")
    places = sorted((folder / "silos").iterdir())
    turned = places[: SILOS // 2] if scene == "inverted" else []
    measured = reference.stage(asked, shipped.file.parent, images, cell.config, lambda _: None, threading.Event())
    tests = {False: read_images(images.test, cell.config)}
    if turned:
        shutil.copytree(images.test, folder / "inverted")
        for place in (*turned, folder / "inverted"):
            invert(place)
        tests[True] = read_images(folder / "inverted", cell.config)
    target = joined([measured.extractor.features(each.pixels) for each in tests.values()])
    learners = [ImageLearner(cell.config, place) for place in places]
    return Hospitals(learners, [tests[place in turned] for place in places], target, measured, seed, folder)


def main(arguments: list[str] | None = None) -> int:
    root = argparse.ArgumentParser(prog="feddiff.bench.clusters", description="What clusters of silos would buy.")
    root.add_argument("--scene", choices=get_args(Scene), default="2-class")
    root.add_argument("--seed", type=int, choices=(0, 1, 2), default=0, help="of the shipped sweep `strategies`")
    root.add_argument("--clusters", type=int, nargs="+", choices=range(2, SILOS), default=[2, 5], metavar="N")
    root.add_argument("--after", type=int, default=2, help="common rounds")
    root.add_argument("--rounds", type=int, default=10)
    options = root.parse_args(arguments)
    if not 1 <= options.after < options.rounds:
        root.error("--after must be at least 1 and less than --rounds")
    return console.run("feddiff.bench.clusters", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as place:
        found = hospitals(options.scene, options.seed, Path(place))
        all_, own, end = [0] * SILOS, list(range(SILOS)), options.rounds + 1
        begun = [found.learners[0].initial()] * SILOS
        common, updates = found.train(begun, all_, range(1, options.after + 1))
        similar = cosines(updates)
        print(f"{options.scene}, seed {options.seed}: cosines of the {SEGMENTS}'s updates of round {options.after}")
        print(np.array2string(similar, precision=2, suppress_small=True))
        print(f"{'':<22}{'FID':>9}  {'precision':>9}  {'recall':>9}  {'own loss':>9}")
        later = range(options.after + 1, end)
        print(f"{'one model':<22}{found.row(found.train(common, all_, later)[0])}", flush=True)
        for count in options.clusters:
            together = clusters(similar, count)
            print(
                f"{f'{count} clusters':<22}{found.row(found.train(common, together, later)[0])}  {together}", flush=True
            )
        nearly = found.train(common, all_, range(options.after + 1, end - 1))[0]
        print(f"{'last round at home':<22}{found.row(found.train(nearly, own, range(end - 1, end))[0])}", flush=True)
        print(f"{'alone':<22}{found.row(found.train(common, own, later)[0])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
