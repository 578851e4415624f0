"""One cell is run and becomes one result: what it cost on the wire, and how good its models became.

Everything of a result is plain data, ready for JSON; its parts are those of outcome.py, evaluation.py and pictures.py.
"""

from __future__ import annotations

import io
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from feddiff.bench import baseline, colours, outcome, pictures, trial
from feddiff.bench.cell import BEFORE, Cell
from feddiff.bench.dataset import Dataset
from feddiff.bench.evaluation import Evaluation, losses
from feddiff.bench.reference import stage, threads
from feddiff.bench.sweep import Sweep
from feddiff.core import console

_SOFTWARE = ("feddiff", "torch", "diffusers", "numpy", "grpcio")


def run(
    cell: Cell,
    sweep: Sweep,
    dataset: Dataset,
    folder: Path,
    told: Callable[[str], None],
    stop: threading.Event,
    jobs: int = 1,
    initial: Path | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train and measure in an empty folder; returns the result, and what belongs beside it, by the ending of its name:
    pictures, and the global model of a cell that others begin with.

    ``jobs``: cells that share this machine. ``initial``: the published model that it begins with, if any. Raises
    FedDiffError for what makes this cell fail, KeyboardInterrupt when ``stop`` is set.
    """
    import torch
    from safetensors.numpy import save

    from feddiff.core.images import read_images
    from feddiff.core.published import read_published

    began = time.monotonic()
    data, quality = sweep.rules.data, sweep.rules.quality
    held = None if quality is None else stage(quality, sweep.file.parent, dataset, cell.config, told, stop)
    counts = dataset.train.deal(cell.split, cell.silos, cell.config.seed, data.least, folder / "data")
    if cell.kind == "federated":
        meanwhile = held if held is not None and held.asked.every else None
        steps = cell.config.diffusion.timesteps
        asked = None if meanwhile is None else meanwhile.asked.table(meanwhile.extractor.digest, steps)
        config = trial.federate(
            cell.rules(asked),
            list(counts),
            folder,
            processes=sweep.rules.processes,
            jobs=jobs,
            patience_s=sweep.rules.patience,
            told=told,
            stop=stop,
            extractor=None if meanwhile is None else meanwhile.file,
            reference=None if meanwhile is None else dataset.test,
            initial=initial,
            pool=None if cell.config.pool is None else dataset.pool,
        )
        finished = outcome.federated(config, list(counts), folder)
    else:
        metrics = baseline.train(cell.config, list(counts), folder, told, stop, initial)
        finished = outcome.baseline(cell, metrics, folder)
    if cell.base is not None and initial is not None:
        finished = replace(finished, before=partial(read_published, initial, cell.config))
    torch.set_num_threads(threads(cell.config, jobs))
    measured: dict[str, Any] = {"of": finished.of}
    if held is not None:
        measured |= Evaluation(finished, held, told, stop).table()
    measured["validation_loss"] = losses(finished, read_images(dataset.test, cell.config))
    drawn = io.BytesIO()
    pictures.samples(finished, sweep.rules.samples).save(drawn, "PNG")
    result = {
        "key": cell.key,
        "label": str(cell),
        "settings": cell.settings,
        "rules": finished.config.model_dump(mode="json"),
        "data": {"path": Path(data.path).name, "digest": dataset.digest, "silos": counts},
        **finished.told,
        "quality": measured,
        "samples": sweep.rules.samples.model_dump(),
        "wall_seconds": round(time.monotonic() - began, 1),
        "software": software(),
    }
    files = {"png": drawn.getvalue(), "denoising.png": pictures.denoising(finished, sweep.rules.samples)}
    if quality is not None and quality.personal and finished.personal:
        files["colours.png"] = colours.picture(finished, sweep.rules.samples)
    if cell.strategy == BEFORE:
        files["safetensors"] = save(finished.models[outcome.GLOBAL]())
    return result, files


def software() -> dict[str, str]:
    """Versions of what ran, and on what."""
    import torch

    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{console.cpus()} CPUs"
    return found | {"platform": f"{sys.platform} {platform.machine()}", "device": device}
