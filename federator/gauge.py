"""The measurement of one round's global model, as a process of its own (federator/gauging.py starts it).

    weights ── sample ──► images ── extractor ──► features ── measure, against the reference ──► numbers.json

``python -m feddiff.federator.gauge FOLDER/measuring/round-5 --extractor FILE --parent PID [--reference IMAGES]``. Says
how far it is on stdout; writes the numbers into that folder and a grid of samples to ``FOLDER/samples/round-0005.png``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddiff.core import console
from feddiff.core.classes import proportional

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from feddiff.core.config import FederationConfig
    from feddiff.core.images import Images
    from feddiff.core.moments import Moments
    from feddiff.core.quality import Features, Measured
    from feddiff.core.segments import F32

NUMBERS, RULES, SILOS, LOG = "numbers.json", "rules.json", "silos.json", "errors.log"
GRID = 64
"""Samples in a round's picture, more or less: whole rows."""
QUIET_S = 15.0
"""Least time between two lines about the progress of one thing."""
HELD, EVERYBODY = "reference", "all silos"
"""What the global model is measured against: the federator's own images, or the moments of all silos'."""


def gauge(place: Path, extractor: Path, reference: Path | None) -> list[Measured]:
    """Sample and measure the model of a queued round, and write the picture.

    Raises DataError for images or moments that cannot be used, ConfigError for a foreign extractor.
    """
    import numpy as np
    import torch

    from feddiff.core.config import parse
    from feddiff.core.errors import ConfigError
    from feddiff.core.features import Extractor
    from feddiff.core.images import read_images
    from feddiff.core.quality import measure
    from feddiff.federator import reference as references

    torch.set_num_threads(max(console.cpus() - 1, 1))  # one is for the rounds
    folder, config = place.parent.parent, parse((place / RULES).read_bytes())
    quality = config.quality
    if quality is None:
        raise ConfigError(f"the rules in {place} have no table [quality]")
    network = Extractor.load(extractor, quality.kind)
    if network.digest != quality.extractor:
        raise ConfigError(f"{extractor} has changed: its SHA-256 is {network.digest}")
    images = None if reference is None else read_images(reference, config)
    silos = json.loads((place / SILOS).read_text())
    known: Features | None = None
    if quality.reference == "held":
        if reference is None or images is None:
            raise ConfigError("there is no folder of reference images")
        known = references.features(folder, reference, images, network, config, _telling("reference images seen"))
    state = _state(place, folder)
    samples = _sample(config, state, _classes(config, images, silos))
    _picture(config, samples, folder / "samples" / f"round-{int(place.name.removeprefix('round-')):04}.png")
    pixels = np.ascontiguousarray(samples.transpose(0, 3, 1, 2))
    found = network.features(pixels, progress=_telling("samples seen"))
    if known is not None:
        numbers = list(measure(found, known, HELD))
    else:
        union, missing = everybodys(
            folder, {name: silo["samples"] for name, silo in silos.items()}, found.values.shape[1]
        )
        caution = (f"without {', '.join(missing)}",) if missing else ()
        numbers = [
            replace(each, cautions=(*each.cautions, *caution)) if each.reference else each
            for each in measure(found, union, EVERYBODY)
        ]
    if images is not None and config.denoises:
        numbers.append(_validation(config, state, images))
    return numbers


def everybodys(folder: Path, silos: Mapping[str, int], size: int) -> tuple[Moments, list[str]]:
    """The moments of all silos' images together (``statistics/SILO.moments``), and the silos that are not in them.

    ``silos``: the images that each joined with; ``size``: the features of an image. Moments of another number of images
    are old, and left out like those that are not there. Raises DataError if none are left.
    """
    from feddiff.core.errors import DataError
    from feddiff.core.moments import MAX_MOMENTS_BYTES, Moments

    total: Moments | None = None
    missing = []
    for silo, count in sorted(silos.items()):
        path = folder / "statistics" / f"{silo}.moments"
        try:
            found = Moments.from_bytes(path.read_bytes()) if path.stat().st_size <= MAX_MOMENTS_BYTES else None
        except (FileNotFoundError, DataError):
            found = None
        if found is None or (found.count, found.size) != (count, size):
            missing.append(silo)
        else:
            total = found if total is None else total + found
    if total is None:
        raise DataError("no silo has sent moments of its images that can be used")
    return total, missing


def _state(place: Path, folder: Path) -> dict[str, F32]:
    """The model: parameter name to array."""
    from feddiff.core.segments import Layout
    from feddiff.core.store import WeightsReader

    layout = Layout.from_json((folder / "layout.json").read_text())
    vectors = {}
    for name in layout.names:
        with WeightsReader(place / f"{name}.safetensors") as reader:
            vectors[name] = reader.read(name)
    return layout.scatter(vectors)


def _classes(config: FederationConfig, images: Images | None, silos: Mapping[str, Any]) -> list[int] | None:
    """Those that the samples are asked for: in the shares of what they are held against."""
    if not config.conditional or config.quality is None:
        return None
    names = config.data.classes
    if config.quality.reference == "held" and images is not None:
        counts = [images.counts.get(name, 0) for name in names]
    else:
        counts = [sum(silo["labels"].get(name, 0) for silo in silos.values()) for name in names]
    return proportional(counts, config.quality.samples)


def _sample(config: FederationConfig, state: dict[str, F32], classes: list[int] | None) -> npt.NDArray[np.uint8]:
    """(N, H, W, C). The noise is the same in every round, so that two rounds' pictures show the same attempts."""
    from feddiff.core import network

    assert config.quality is not None
    return network.of(config).sample(
        config,
        state,
        config.quality.samples,
        steps=config.quality.steps,
        sampler=config.quality.sampler,
        seed=config.seed,
        labels=classes,
        progress=_telling("samples drawn"),
    )


def _picture(config: FederationConfig, samples: npt.NDArray[np.uint8], out: Path) -> None:
    """The first samples as a PNG; a column is of one class if there are as many images of each."""
    from feddiff.core.grid import grid
    from feddiff.core.store import write_atomic

    columns = config.columns(GRID)
    buffer = io.BytesIO()
    grid(samples[: columns * max(GRID // columns, 1)], columns).save(buffer, "PNG")
    out.parent.mkdir(exist_ok=True)
    write_atomic(out, buffer.getvalue())


def _validation(config: FederationConfig, state: dict[str, F32], images: Images) -> Measured:
    from feddiff.core.quality import Measured
    from feddiff.core.validation import MOST, validation_loss

    value = validation_loss(config, state, images.pixels, images.labels)
    return Measured("validation_loss", value, None, 0, min(len(images.pixels), MOST), HELD, "", "")


def _telling(what: str) -> Callable[[int, int], None]:
    """Progress as lines on stdout: now and then, and at the end."""
    said = time.monotonic()

    def tell(done: int, count: int) -> None:
        nonlocal said
        if done == count or time.monotonic() - said > QUIET_S:
            said = time.monotonic()
            print(f"{done} of {count} {what}", flush=True)

    return tell


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gauge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--extractor", type=Path, required=True)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    console.tie(options.parent)
    os.nice(10)  # the rounds come first

    def run() -> int:
        from feddiff.core.store import write_atomic

        numbers = gauge(options.place, options.extractor, options.reference)
        write_atomic(options.place / NUMBERS, json.dumps([asdict(each) for each in numbers]).encode())
        return 0

    return console.run("gauge", run)


if __name__ == "__main__":
    sys.exit(main())
