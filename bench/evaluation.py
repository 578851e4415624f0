"""What a finished cell's models are worth: the one place where they are measured (core/validation.py, core/quality.py).

After the training, before the result is written. Samples of each model are held against the real images that it, or in
a federation any silo of it, trained on ("training") and against those that no cell ever trains on ("test").

A silo's own model is asked for the classes that its silo has, and those of the test images are others. To hold each
against them would measure the mix and not the pictures. So silos' models are held against the test images together: as
many samples as of one global model, of each silo's as its share of the images is.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from feddiff.bench.outcome import GLOBAL, Outcome, State, finite
from feddiff.bench.reference import Real, Reference, progress
from feddiff.core.classes import proportional
from feddiff.core.errors import DataError
from feddiff.core.moments import fid
from feddiff.core.quality import Features, Measured, class_distribution, measure, measure_copies, personalisation

if TYPE_CHECKING:
    from feddiff.core.images import Images

PIXELS_CPU, PIXELS_GPU = 1 << 16, 1 << 19
"""Of the images that are sampled together: what is fast and fits."""
BATCH = 512
NAMED = 256
"""More classes than these are not counted one by one."""
CHECKED = ("share", "expected", "threshold", "copying", "authentic")
"""Of the memorisation check."""
TOGETHER = "silos together"
SAID = 5
"""Cautions of one metric, at most, where there are many models."""


@dataclass(frozen=True)
class Evaluation:
    """Of one cell's outcome. What is measured is the same for every cell of a sweep."""

    outcome: Outcome
    reference: Reference
    told: Callable[[str], None]
    stop: threading.Event

    def table(self) -> dict[str, Any]:
        """Metrics, classes, memorisation and personalisation, as in the result; raises KeyboardInterrupt on a stop.

        Where images are too few for a metric there is a None and a caution.
        """
        count = f"{self.reference.asked.samples} samples of each model"
        self.told(f"measuring by {count}: {', '.join(self.outcome.models)}"[:100])
        own = {name: self._trained_on(name) for name in self.outcome.models}
        # A global model in the shares of the test images, as the federator asks it while it trains.
        like = {name: self.reference.test if name == GLOBAL else real for name, real in own.items()}
        samples = {name: self._samples(name, read, like[name]) for name, read in self.outcome.models.items()}
        found: dict[str, Any] = {"sampler": self.reference.asked.sampler, "steps": self._steps}
        trained = {name: real.features for name, real in own.items()}
        rows = self._metrics(samples, trained, "training")
        whole = samples if GLOBAL in samples else {TOGETHER: self._together(samples, own)}
        rows += self._metrics(whole, dict.fromkeys(whole, self.reference.test.features), "test")
        if self.reference.asked.copies:
            found["memorisation"], copies = self._memorisation(samples, own)
            rows += copies
        # What has no reference came with each.
        found["metrics"] = list({(row["metric"], row["against"]): row for row in rows}.values())
        if (classes := self._classes(samples)) is not None:
            found["classes"] = classes
        if self.reference.asked.personal and self.outcome.own:
            found["personalisation"] = self._personalisation(samples[GLOBAL])
        return found

    def _together(self, samples: Mapping[str, Features], own: Mapping[str, Real]) -> Features:
        """Samples of all silos' models, of each the first ones, in the proportion of the silos' images."""
        places = proportional([len(real.names) for real in own.values()], self.reference.asked.samples)
        parts = [(each, places.count(place)) for place, each in enumerate(samples.values())]
        likely = [each.probabilities[:count] for each, count in parts if each.probabilities is not None]
        return replace(
            parts[0][0],
            values=np.concatenate([each.values[:count] for each, count in parts]),
            probabilities=np.concatenate(likely) if likely else None,
        )

    def _metrics(
        self, samples: Mapping[str, Features], real: Mapping[str, Features], against: str
    ) -> list[dict[str, Any]]:
        """A row for each metric, over the models: their mean; the spread is theirs where there are several."""
        rows: dict[str, dict[str, Measured]] = {}
        failed: dict[str, str] = {}
        for name, drawn in samples.items():
            try:
                for number in measure(drawn, real[name], against):
                    rows.setdefault(number.metric, {})[name] = number
            except DataError as error:
                failed[name] = str(error)
        return [_row(by, failed) for by in rows.values()] or [self._nothing("fid", against, failed)]

    def _nothing(self, metric: str, against: str, failed: Mapping[str, str]) -> dict[str, Any]:
        """The row where no model could be measured."""
        extractor = self.reference.extractor
        none = Measured(metric, 0.0, None, self.reference.asked.samples, 0, against, extractor.name, extractor.digest)
        return asdict(none) | {"value": None, "cautions": _failures(failed), "by": dict.fromkeys(failed)}

    def _classes(self, samples: Mapping[str, Features]) -> dict[str, Any] | None:
        """How the extractor, if it is a classifier, counts the samples, and all training images."""
        real, counts, reference = self.reference.training.features, dict[str, list[int]](), list[int]()
        for name, drawn in samples.items():
            if drawn.probabilities is None or real.probabilities is None or real.probabilities.shape[1] > NAMED:
                return None
            labels = [each.argmax(axis=1) for each in (drawn.probabilities, real.probabilities)]
            distribution = class_distribution(labels[0], labels[1], real.probabilities.shape[1])
            counts[name], reference = list(distribution.samples), list(distribution.reference)
        names = self.reference.classes or tuple(str(place) for place in range(len(reference)))
        return {"names": list(names), "samples": counts, "reference": reference}

    def _memorisation(
        self, samples: Mapping[str, Features], own: Mapping[str, Real]
    ) -> tuple[dict[str, dict[str, float | None]], list[dict[str, Any]]]:
        """Of each model, among the images that it trained on; and rows as those of the metrics."""
        checks: dict[str, dict[str, float | None]] = {}
        rows: dict[str, dict[str, Measured]] = {}
        failed: dict[str, str] = {}
        for name, drawn in samples.items():
            try:
                held_out = self.reference.test.among(own[name])
                check, numbers = measure_copies(drawn, own[name].features, held_out.features)
            except DataError as error:
                failed[name] = str(error)
                continue
            checks[name] = {field: finite(getattr(check, field)) for field in CHECKED}
            for number in numbers:
                rows.setdefault(number.metric, {})[name] = number
        return checks, [_row(by, failed) for by in rows.values()] or [self._nothing("memorised", "training", failed)]

    def _personalisation(self, shared: Features) -> dict[str, Any]:
        """FIDs against each silo's own images: of the global model, and of the silo's own last one.

        A conditional model is asked for the silo's own share of each class, as the silo's model is.
        """
        by, cautions = {}, list[str]()
        for name, read in self.outcome.own.items():
            real = self._trained_on(name)
            drawn = {"own": self._samples(name, read, real), "global": shared}
            if self.outcome.config.conditional:
                drawn["global"] = self._samples(f"{GLOBAL}, as {name}", self.outcome.models[GLOBAL], real)
            try:
                by[name] = {of: fid(each.moments(), real.features.moments()) for of, each in drawn.items()}
            except DataError as error:
                cautions.append(f"{name}: {error}")
        gain: dict[str, float | None] = {"api": None, "mpi": None, "pui": None}
        try:
            fids = list(by.values())
            gain |= asdict(personalisation([each["global"] for each in fids], [each["own"] for each in fids]))
        except DataError as error:
            cautions.append(str(error))
        return {**gain, "by": by, "cautions": cautions}

    def _trained_on(self, name: str) -> Real:
        """What a model learnt from: its silo's images, or all."""
        training = self.reference.training
        return training if name == GLOBAL else training.within(self.outcome.data / name)

    def _samples(self, name: str, read: State, like: Real) -> Features:
        """Of one model; a conditional one is asked for classes in the proportion of the images that it is like."""
        import torch

        from feddiff.core import network

        config, asked = self.outcome.config, self.reference.asked
        pixels = PIXELS_GPU if torch.cuda.is_available() else PIXELS_CPU
        images = network.of(config).sample(
            config,
            read(),
            asked.samples,
            steps=self._steps,
            sampler=asked.sampler,
            seed=config.seed,
            labels=like.labels(config, asked.samples),
            batch=min(max(pixels // config.model["sample_size"] ** 2, 1), BATCH),
            progress=progress(f"samples of {name}", self.told, self.stop),
        )
        told = progress(f"features of samples of {name}", self.told, self.stop)
        return self.reference.extractor.features(images.transpose(0, 3, 1, 2), progress=told)

    @property
    def _steps(self) -> int:
        return min(self.reference.asked.steps, self.outcome.config.diffusion.timesteps)


def losses(outcome: Outcome, test: Images) -> dict[str, Any]:
    """The validation loss of each model on the held-out images, and their mean; None of a network that has none."""
    from feddiff.core.validation import DRAWS, MOST, validation_loss

    by = {
        name: finite(validation_loss(outcome.config, read(), test.pixels, test.labels))
        for name, read in outcome.models.items()
        if outcome.config.denoises
    }
    known = [value for value in by.values() if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
        "by": by,
        "images": min(len(test.pixels), MOST),
        "draws": DRAWS,
    }


def _row(by: Mapping[str, Measured], failed: Mapping[str, str]) -> dict[str, Any]:
    """One metric of all models."""
    known = list(by.values())
    values = [each.value for each in known]
    cautions = list(dict.fromkeys(caution for each in known for caution in each.cautions))
    if len(cautions) > SAID:
        cautions[SAID:] = [f"and {len(cautions) - SAID} more of other models"]
    whole = replace(
        known[0],
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else known[0].spread,
        reference=round(statistics.fmean(each.reference for each in known)),
    )
    models = {**{name: finite(each.value) for name, each in by.items()}, **dict.fromkeys(failed)}
    row = asdict(whole) | {"cautions": [*cautions, *_failures(failed)], "by": models}
    return row | {"value": finite(whole.value), "spread": None if whole.spread is None else finite(whole.spread)}


def _failures(failed: Mapping[str, str]) -> list[str]:
    return [f"{name}: {message}" for name, message in failed.items()]
