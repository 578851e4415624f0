"""Images that a model draws for a silo to train on, of the classes that it lacks.

``feddiff-silo sample --out FOLDER``, any time after the first round. The global model has seen classes of which this
silo has few images or none; what it draws of them can go into the silo's ``--data``, and says what it is, wherever.

    FOLDER/SYNTHETIC.txt                            what drew them, and how
    FOLDER/LABEL/synthetic-0-000001.png             seed and number; a PNG text says "synthetic", too
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feddiff.core.classes import lacking
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError
from feddiff.silo import model
from feddiff.silo.local import DECODED
from feddiff.silo.source import Source

NOTICE = "SYNTHETIC.txt"
WARNING = "synthetic image, drawn by a model: of no patient, and no evidence of anything"


@dataclass(frozen=True)
class Drawing:
    """How images are drawn; ``guidance`` None: as the rules say."""

    steps: int = 50
    seed: int = 0
    guidance: float | None = None


def missing(rules: FederationConfig, data: Source | Path, most: int | None, cache: Path | None = None) -> list[int]:
    """A class for each image that makes the silo's classes equally frequent, ``most`` at most, the rarest first.

    Raises DataError for a folder of no images, ConfigError for a model without classes.
    """
    from feddiff.silo.collection import collect

    model.places(rules, ())
    counts = collect(data, rules, cache).images.counts
    wanted = lacking([counts.get(name, 0) for name in rules.data.classes], most)
    return [label for label, number in enumerate(wanted) for _ in range(number)]


def draw(
    folder: Path,
    out: Path,
    count: int | None,
    how: Drawing,
    labels: Sequence[str] | None = None,
    data: Source | Path | None = None,
) -> str:
    """Draw images into a new folder; returns a line about them.

    From the newest published model, or the silo's own where the rules have no global one: a silo's last training has
    moved its own away from the classes that it lacks. ``count`` (by default 64) of these ``labels`` in turn, or of all;
    with ``data``, the silo's images, what they lack, ``count`` at most.

    Raises ConfigError for arguments that cannot be, StoreError if nothing was trained yet, DataError without images.
    """
    if count is not None and count < 1:
        raise ConfigError(f"--count must be at least 1 (got {count})")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out}: an empty or a new folder was expected, or the name of a picture, e.g. grid.png"
        )
    if model.rules_of(folder).has_global_model:
        rules, state, version = model.published(folder)
        of = f"the published model, {version}"
    else:
        (rules, state), of = model.own(folder), "the silo's own model after its last training"
    classes: list[int] | None = None
    if data is not None:
        classes = missing(rules, data, count, folder / DECODED)
        if not classes:
            return "the silo has as many images of each class as of any other: none were drawn"
    elif labels is not None or rules.conditional:
        turn = model.places(rules, labels or rules.data.classes)
        classes = [turn[each % len(turn)] for each in range(count or 64)]
    places = [""] * (count or 64) if classes is None else [_folder(rules.data.classes[label]) for label in classes]

    from PIL import Image, PngImagePlugin

    from feddiff.core import network

    pixels = network.of(rules).sample(
        rules, state, len(places), steps=how.steps, seed=how.seed, labels=classes, guidance=how.guidance
    )
    scale = rules.diffusion.guidance if how.guidance is None else how.guidance
    numbers = ", ".join(f"{number} {label}".strip() for label, number in sorted(Counter(places).items()))
    told = f"federation {rules.name}, rules {rules.digest[:12]}; {of}; seed {how.seed}, {how.steps} steps, guidance"
    mark = PngImagePlugin.PngInfo()
    mark.add_itxt("Comment", f"{WARNING} ({told} {scale:g})")
    out.mkdir(parents=True, exist_ok=True)
    (out / NOTICE).write_text(f"{WARNING}\n{told} {scale:g}\nimages: {numbers}\n", encoding="utf-8")
    for number, (place, image) in enumerate(zip(places, pixels, strict=True)):
        (out / place).mkdir(exist_ok=True)
        shown = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        shown.save(out / place / f"synthetic-{how.seed}-{number:06}.png", pnginfo=mark)
    return f"{numbers}: synthetic images of {of} in {out}"


def _folder(label: str) -> str:
    """A class as a folder's name: it comes from the federator. Raises ConfigError for one that leads elsewhere."""
    if label != Path(label).name or label.startswith(".") or "\0" in label:
        raise ConfigError(f"class {label!r:.60} cannot be a folder's name")
    return label
