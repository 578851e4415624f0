"""One cell is run and becomes one result: what it cost on the wire, and how good its models became.

Everything of a result is plain data, ready for JSON; ``quality`` is the one place where a finished cell's models are
measured. The bytes are the ledger's, of every round and before the first.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddiff.bench import baseline, trial
from feddiff.bench.cell import Cell
from feddiff.bench.dataset import Dataset
from feddiff.bench.sweep import SamplesSection, Sweep
from feddiff.core.config import FederationConfig
from feddiff.core.segments import F32, Layout

if TYPE_CHECKING:
    from PIL.Image import Image

    from feddiff.federator.federation import Federation
    from feddiff.silo.data import Images

GLOBAL = "global"
DRAWN = 8
"""Models of which the picture has a row each, at most."""
GRID_SIDE = 96
"""Pixels to which small images are enlarged in pictures, about."""
_SOFTWARE = ("feddiff", "torch", "diffusers", "numpy", "grpcio")


@dataclass(frozen=True)
class Finished:
    """A cell whose training is done."""

    config: FederationConfig
    models: Mapping[str, Callable[[], dict[str, F32]]]
    """Reads a model's state: the global one, or that of each silo where there is none."""
    told: Mapping[str, Any]
    """What the training cost and told: rounds, totals, segments."""

    @property
    def of(self) -> str:
        """Whose quality it is."""
        return "global" if GLOBAL in self.models else "silos"


def run(
    cell: Cell, sweep: Sweep, dataset: Dataset, folder: Path, told: Callable[[str], None], stop: threading.Event
) -> tuple[dict[str, Any], Image]:
    """Train and measure in an empty folder; returns the result and the picture of samples.

    Raises FedDiffError for what makes this cell fail, KeyboardInterrupt when ``stop`` is set.
    """
    from feddiff.silo.data import read_images

    began = time.monotonic()
    data = sweep.rules.data
    counts = dataset.train.deal(cell.split, cell.silos, cell.config.seed, data.least, folder / "data")
    if cell.kind == "federated":
        config = trial.federate(
            cell.rules,
            list(counts),
            folder,
            processes=sweep.processes,
            patience_s=sweep.rules.patience,
            told=told,
            stop=stop,
        )
        finished = _federated(config, list(counts), folder)
    else:
        finished = _baseline(cell, baseline.train(cell.config, list(counts), folder, told, stop), folder)
    measured = quality(finished, read_images(dataset.test, cell.config))
    picture = samples(finished, sweep.rules.samples)
    result = {
        "key": cell.key,
        "label": str(cell),
        "settings": cell.settings,
        "rules": cell.config.model_dump(mode="json"),
        "data": {"path": data.path, "digest": dataset.digest, "silos": counts},
        **finished.told,
        "quality": measured,
        "samples": sweep.rules.samples.model_dump(),
        "wall_seconds": round(time.monotonic() - began, 1),
        "software": software(),
    }
    return result, picture


def quality(finished: Finished, test: Images) -> dict[str, Any]:
    """All that is measured of a finished cell's models: whoever adds a metric adds it here.

    Each is a table: ``by`` model, their ``mean``, and whatever must stand beside the number.
    """
    from feddiff.core.validation import validation_loss

    losses = {
        name: validation_loss(finished.config, read(), test.pixels, test.labels, draws=40)
        for name, read in finished.models.items()
    }
    return {"of": finished.of, "validation_loss": {**_table(losses), "images": len(test.pixels), "draws": 40}}


def samples(finished: Finished, asked: SamplesSection) -> Image:
    """A grid of the global model's images; of silos' models one row each."""
    from feddiff.core import diffusion

    config = finished.config
    classes = len(config.data.classes) if config.conditional else 1
    columns = classes * max(1, 8 // classes)
    several = finished.of == "silos"
    names = list(finished.models)[:DRAWN]
    count = columns if several else min(asked.count, 1024)
    steps = min(asked.steps, config.diffusion.timesteps)
    drawn = [
        diffusion.sample(config, finished.models[name](), count, steps=steps, sampler=asked.sampler, seed=config.seed)
        for name in names
    ]
    scale = max(1, round(GRID_SIDE / 2 / config.model["sample_size"]))
    return diffusion.grid(np.concatenate(drawn), columns, scale)


def _federated(config: Path, names: list[str], folder: Path) -> Finished:
    from feddiff.federator import desk

    federation = desk.opened(config)
    rules, layout = federation.config, federation.layout
    if not rules.has_global_model:
        models = {name: _silo_model(layout, folder / "silos" / name) for name in names}
    else:
        models = {GLOBAL: lambda: desk.global_state(federation)}
    return Finished(rules, models, _cost(federation))


def _baseline(cell: Cell, metrics: Mapping[str, Mapping[str, float]], folder: Path) -> Finished:
    from feddiff.core import diffusion

    layout = diffusion.layout(cell.config)
    models = {
        GLOBAL if cell.kind == "centralised" else name: _silo_model(layout, folder / "silos" / name) for name in metrics
    }
    told = {
        "parameters": layout.size,
        "rounds": [],
        "segments": {},
        "totals": {"down": 0, "up": 0, "encoded_down": 0, "encoded_up": 0, "raw": 0}
        | {"images": int(sum(each["images"] for each in metrics.values()))}
        | {"seconds": sum(each["seconds"] for each in metrics.values())}
        | {"loss": _finite(float(np.mean([each["loss"] for each in metrics.values()])))},
    }
    return Finished(cell.config, models, told)


def _silo_model(layout: Layout, state: Path) -> Callable[[], dict[str, F32]]:
    from feddiff.silo.trained import Trained

    def read() -> dict[str, F32]:
        trained = Trained(state)
        return layout.scatter(trained.averages() or trained.weights())

    return read


def _cost(federation: Federation) -> dict[str, Any]:
    """Bytes by round, by segment and in all, both ways; the losses beside them. ``raw`` is FULL without a codec."""
    from feddiff.federator.measure import mean

    entries, metrics = list(federation.ledger.entries()), federation.journal.metrics()

    def sizes(round: int | None = None, segment: str | None = None) -> dict[str, int]:
        chosen = [e for e in entries if round in (None, e.round) and segment in (None, e.segment)]
        found = {way: sum(e.wire for e in chosen if e.direction == way) for way in ("down", "up")}
        return found | {
            f"encoded_{way}": sum(e.encoded for e in chosen if e.direction == way) for way in ("down", "up")
        }

    rounds: list[dict[str, Any]] = []
    for each in federation.journal.rounds():
        of = metrics.get(each.round, {})
        losses = {silo: of[silo]["loss"] for silo in each.silos if "loss" in of.get(silo, {})}
        rounds.append(
            {
                "round": each.round,
                "silos": len(each.silos),
                **sizes(each.round),
                "raw": 8 * federation.layout.size * len(each.plan.assignments),
                "loss": _finite(mean(losses, each.weights)),
                "losses": {silo: _finite(loss) for silo, loss in losses.items()},
                "images": int(sum(of.get(silo, {}).get("images", 0) for silo in each.silos)),
                "seconds": round((each.closed_at or each.opened_at) - each.opened_at, 3),
            }
        )
    totals: dict[str, Any] = sizes() | {
        name: sum(each[name] for each in rounds) for name in ("raw", "images", "seconds")
    }
    totals["loss"] = rounds[-1]["loss"] if rounds else None
    segments = {name: sizes(segment=name) for name in (*federation.layout.names, "")}
    return {"parameters": federation.layout.size, "rounds": rounds, "segments": segments, "totals": totals}


def software() -> dict[str, str]:
    """Versions of what ran, and on what."""
    import torch

    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPUs"
    return found | {"platform": f"{sys.platform} {platform.machine()}", "device": device}


def _table(by: Mapping[str, float]) -> dict[str, Any]:
    values = [value for value in by.values() if math.isfinite(value)]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    mean = float(np.mean(values)) if values else None
    return {"mean": mean, "deviation": spread, "by": {name: _finite(value) for name, value in by.items()}}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
