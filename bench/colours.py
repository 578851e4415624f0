"""The dominant colours of what models draw, beside the drawings: the picture of Tun et al. (ATC 2023).

Their personalised local models differ in what they have seen, and so in their colours; k-means of the samples' pixels
shows it at a glance. A row for the global model and for each silo's own last one (bench/result.py keeps it as
``KEY.colours.png``).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feddiff.bench import pictures
from feddiff.bench.dataset import folder
from feddiff.bench.outcome import GLOBAL, Outcome
from feddiff.bench.sections import SamplesSection

CLUSTERS = 5
MOST = 20_000
"""Pixels that are looked at, evenly spaced."""
ROWS, COLUMNS = 9, 8
BAR = 240
"""Pixels of the bar's length."""
GAP, LINE = 8, 14


@dataclass(frozen=True)
class Colour:
    """One cluster: its centre, grey or RGB from 0 to 255, and the share of the pixels that are nearest to it."""

    value: tuple[int, ...]
    share: float


def dominant(images: npt.NDArray[np.uint8], clusters: int = CLUSTERS, seed: int = 0) -> list[Colour]:
    """The clusters of all pixels of images (N, H, W, C), the largest first; fewer where there are fewer colours.

    k-means++ and Lloyd's algorithm (scikit-learn), in the space of the channels.
    """
    from sklearn.cluster import KMeans

    pixels = images.reshape(-1, images.shape[-1])
    chosen = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), MOST)).round().astype(int)].astype(np.float64)
    found = KMeans(min(clusters, len(np.unique(chosen, axis=0))), n_init=1, random_state=seed).fit(chosen)
    shares = np.bincount(found.labels_, minlength=len(found.cluster_centers_)) / len(chosen)
    centres = found.cluster_centers_.round().astype(int)
    colours = [Colour(tuple(map(int, centre)), float(share)) for centre, share in zip(centres, shares, strict=True)]
    return sorted(colours, key=lambda each: (-each.share, each.value))


def picture(outcome: Outcome, asked: SamplesSection) -> bytes:
    """PNG: each model's name, samples and bar of colours; the global model first, at most ``ROWS`` of them.

    A silo's model is asked for classes that the silo has.
    """
    from PIL import Image, ImageDraw

    from feddiff.core.grid import grid

    models = {name: read for name, read in outcome.models.items() if name == GLOBAL} | dict(outcome.personal)
    scale = pictures.scale(outcome, pictures.SIDE)
    height = int(outcome.config.model["sample_size"]) * scale
    wide = COLUMNS * (height + 1) - 1
    names = list(models)[:ROWS]
    whole = Image.new("RGB", (wide + GAP + BAR, len(names) * (LINE + height + GAP) - GAP), "white")
    pen = ImageDraw.Draw(whole)
    for row, name in enumerate(names):
        top = row * (LINE + height + GAP)
        drawn = pictures.drawn(outcome, models[name], asked, COLUMNS, labels=_labels(outcome, name))
        pen.text((0, top), name, fill="black")
        whole.paste(grid(drawn, COLUMNS, scale).convert("RGB"), (0, top + LINE))
        left, share = wide + GAP, 0.0
        for each in dominant(drawn):
            value = each.value * 3 if len(each.value) == 1 else each.value
            ends = [left + round(BAR * at) for at in (share, share + each.share)]
            if ends[1] > ends[0]:
                pen.rectangle((ends[0], top + LINE, ends[1] - 1, top + LINE + height - 1), fill=value)
            share += each.share
    buffer = io.BytesIO()
    whole.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _labels(outcome: Outcome, name: str) -> list[int] | None:
    """Of the classes that a silo has, by turns; None for the global model, and for a model without classes."""
    if name == GLOBAL or not outcome.config.conditional:
        return None
    there = {image.parts[0] for image in folder(outcome.data / name).images}
    own = [place for place, label in enumerate(outcome.config.data.classes) if label in there]
    return [own[place % len(own)] for place in range(COLUMNS)] if own else None
