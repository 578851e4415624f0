"""Local fine-tuning after the federation: the global model goes on learning, from this silo's images alone.

``feddiff-silo personalise`` runs it where the silo's state lies, and asks nobody. Segments that are not chosen stay as
the federation left them (Hadjigeorgiou's transfer learning, in isolation). Nothing of the silo's state is changed.

    OUT.part/checkpoint.safetensors   while it trains: the same command goes on from there
    OUT/                              the model when it is done, a folder for diffusers; appears by one rename
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, DataError, StoreError
from feddiff.core.sections import LONE
from feddiff.core.segments import F32, Layout
from feddiff.core.sharing import share, stays
from feddiff.silo.display import Display
from feddiff.silo.learner import training_seed
from feddiff.silo.local import DECODED, Local
from feddiff.silo.session import RoundWork

if TYPE_CHECKING:
    from feddiff.core.images import Images
    from feddiff.silo.source import Source
    from feddiff.silo.trainer import Progress

HELD_OUT = 10
"""One image in so many is not trained on: the loss before and after is of those."""


@dataclass(frozen=True)
class Chosen:
    """What is trained, and for how long; None: as the federation's rules say."""

    segments: Sequence[str] = ()
    """Names of segments or parts; () with ``frozen`` = 0: all."""
    frozen: int = 0
    """The first so many segments are not trained."""
    epochs: int = 1
    learning_rate: float | None = None

    def rules(self, federation: FederationConfig, layout: Layout) -> FederationConfig:
        """The training's own rules: the federation's model, without rounds. Raises ConfigError for what cannot be."""
        kept = {"name", "seed", "model", "diffusion", "training", "data"}
        table = {key: value for key, value in federation.model_dump(mode="json").items() if key in kept}
        if self.frozen < 0:
            raise ConfigError(f"--frozen must be 0 or more (got {self.frozen})")
        trained = layout.select(*self.segments) if self.segments else layout.names
        fixed = [*share(layout, "full", frozen=self.frozen).frozen, *(set(layout.names) - set(trained))]
        table["frozen"] = list(layout.select(*fixed))
        table["training"] |= {"epochs": self.epochs, "steps": None}
        table["training"] |= LONE
        if self.learning_rate is not None:
            table["training"]["learning_rate"] = self.learning_rate
        return from_table(table, "personalise")


def personalise(
    state: Path,
    data: Source | Path,
    out: Path,
    chosen: Chosen,
    told: Callable[[str], None],
    published: Path | None = None,
    checkpoint_every: float = 30.0,
) -> None:
    """Train the model of a silo's state folder, or a ``published`` one of its rules, on images; write it to ``out``.

    ``told`` gets what a person should read. A training that was killed goes on from its last checkpoint, made between
    epochs. Raises ConfigError for a choice that cannot be and an ``out`` that is there, StoreError for a state folder
    without a model, DataError for images that are not the model's, NotFinite if the training breaks the weights.
    """
    if not (state / "rules.json").exists():
        raise StoreError(f"{state} holds no silo that has joined a federation")
    with _claimed(out) as place:
        _make(state, data, out, place, chosen, told, published, checkpoint_every)


def _make(
    state: Path,
    data: Source | Path,
    out: Path,
    place: Path,
    chosen: Chosen,
    told: Callable[[str], None],
    published: Path | None,
    checkpoint_every: float,
) -> None:
    """``personalise`` in ``place``, which is this process's alone."""
    from feddiff.core import network
    from feddiff.core.published import read_published
    from feddiff.core.validation import validation_loss
    from feddiff.silo.collection import collect
    from feddiff.silo.trainer import train

    with contextlib.closing(Local(state)) as local:  # not beside a daemon, which may replace what is read
        federation = local.rules()
        assert federation is not None
        layout = network.of(federation).layout(federation)
        rules = chosen.rules(federation, layout)
        if published is None:
            vectors, whence = _held(local, federation, layout)
            begun = layout.scatter(vectors)
        else:
            begun, whence = read_published(published, federation), str(published)
    training, held_out = _split(collect(data, rules, state / DECODED).images, rules.seed)
    fixed = share(layout, "full", frozen=rules.frozen).frozen
    free = [each for each in layout.segments if each.name not in fixed]
    told(f"begins with {whence}")
    told(
        f"trains {', '.join(each.name for each in free)}: {sum(each.size for each in free):,} of {layout.size:,}"
        f" parameters, on {len(training.pixels)} images; {len(held_out.pixels)} are held out"
    )

    def measure(model: Mapping[str, F32], when: str) -> None:
        if rules.denoises:
            labels = held_out.labels if rules.conditional else None
            loss = validation_loss(rules, model, held_out.pixels, labels)
            told(f"loss on the held-out images: {loss:.4f} {when}")

    measure(begun, "before")
    checkpoint, display = place / "checkpoint.safetensors", Display()

    def at(progress: Progress) -> bool:
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} images/s"
        display.at(progress.step / progress.steps, note)
        return True

    display.begin("personalising", 1)
    try:
        seed = training_seed(rules.seed, 0, "personalise")
        learned = train(
            rules, begun, training, seed, checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=at
        )
    finally:
        display.close()
    assert learned is not None
    model = learned.ema or learned.state
    measure(model, "after")
    written = place / "model"
    shutil.rmtree(written, ignore_errors=True)
    hint = network.of(rules).export(rules, model, written)
    written.replace(out)
    checkpoint.unlink(missing_ok=True)
    told(f"{out}: {hint.replace(str(written), str(out))}")


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """The folder in which ``out`` is made, this process's alone; it goes when nothing is in it. Raises ConfigError."""
    place = out.absolute().with_name(f"{out.absolute().name}.part")
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another feddiff-silo personalise is making {out}; give another --out") from None
        try:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise ConfigError(f"{out} is not an empty folder; give a new one with --out")
            yield place
        finally:
            with contextlib.suppress(OSError):  # a checkpoint is in it, to go on from
                place.rmdir()
    finally:
        os.close(handle)


def _held(local: Local, rules: FederationConfig, layout: Layout) -> tuple[dict[str, F32], str]:
    """The newest versions that the silo holds, with its own personal segments; and what they are, in words."""
    held = local.held()
    if missing := [name for name in layout.names if name not in held]:
        raise StoreError(f"{local.folder} holds no whole model yet: {missing[0]} never came; or name one with --from")
    shared = {name: each for name, each in held.items() if not stays(name, rules.plan, rules.personal)}
    newest, last = max(each.version for each in shared.values()), rules.rounds.count
    if not newest and rules.initial != "file" and not (rules.pool and rules.pool.warmup):
        raise StoreError(
            f"{local.folder} holds no trained model yet: it was sent the initial one alone; name one with --from"
        )
    own = "" if len(shared) == len(held) else "; personal segments as the silo trained them last"
    final = f"; the last may be {last}: --from takes what `feddiff-federator export` wrote" if newest < last else ""
    whence = f"the newest model that this silo was sent, version {newest}{own}{final}"
    return local.start(RoundWork(0, (), (), shared, (), 0)), whence


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """(to train on, held out), the same for the same images. Raises DataError if there are fewer than two."""
    count = len(images.pixels)
    if count < 2:
        raise DataError(f"one image cannot be trained on and held out; name a folder with more (got {count})")
    order = np.random.default_rng(seed).permutation(count)
    held = max(count // HELD_OUT, 1)

    def only(rows: npt.NDArray[np.intp]) -> Images:
        labels = images.labels
        return replace(images, pixels=images.pixels[rows], labels=None if labels is None else labels[rows])

    return only(np.sort(order[held:])), only(np.sort(order[:held]))
