"""What a silo does next: a pure function of its task and of what lies on its disk.

    wait ─► fetch ─► accept, if offered ─► train ─► measure, if due ─► submit ─► wait … finish

Nothing remembers "where we were": after any crash the same question gives the same answer, so finished work is
neither trained nor sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from feddiff.core.peers import Dealings
from feddiff.core.spool import Manifest

if TYPE_CHECKING:
    from feddiff.core.pool import Portion

Action = Literal["wait", "fetch", "accept", "train", "measure", "submit", "finish"]


@dataclass(frozen=True)
class Held:
    """A published version of a segment, and SHA-256 of its bytes (empty: not known)."""

    version: int
    digest: str = ""

    def is_not(self, wanted: Held) -> bool:
        """Whether these bits are known to be others than the wanted ones."""
        return self.version != wanted.version or bool(self.digest and wanted.digest and self.digest != wanted.digest)


@dataclass(frozen=True)
class RoundWork:
    """A round's work as the federator gave it."""

    round: int
    down: tuple[Manifest, ...]
    up: tuple[Manifest, ...]
    start: Mapping[str, Held]
    """Segments that training starts from at a published version; all others are the silo's own."""
    personal: tuple[str, ...]
    seed: int
    pool: Portion | None = None
    """Public images to train on too."""
    dealings: Dealings | None = None
    """Where silos average for each other: with whom."""


@dataclass(frozen=True)
class Task:
    """The federator's answer to "what is my task". ``work`` is None while there is nothing to do."""

    id: str
    reason: str
    work: RoundWork | None = None
    finished: bool = False


@dataclass(frozen=True)
class Progress:
    """What is safe on the silo's disk."""

    held: Mapping[str, Held] = field(default_factory=dict)
    trained: int | None = None
    """The newest round whose training is done."""
    measured: int | None = None
    """The newest round with whose measurement nothing more is to be done."""
    pool: str = ""
    """SHA-256 of the public images that are there."""


@dataclass(frozen=True)
class Step:
    """The next thing to do and why. ``manifests``: the transfers it is about."""

    action: Action
    reason: str
    manifests: tuple[Manifest, ...] = ()


def next_step(task: Task, progress: Progress, due: Callable[[int], bool] = lambda _: False) -> Step:
    """The next step of a silo. ``due``: whether its model is measured after a round."""
    if task.finished:
        return Step("finish", task.reason)
    work = task.work
    if work is None:
        return Step("wait", task.reason)
    missing = tuple(each for each in work.down if _lacks(progress, work, each))
    if missing:
        return Step("fetch", f"round {work.round}: {len(missing)} segments are to come", missing)
    if not work.up:
        return Step("wait", f"round {work.round} wants nothing of this silo")
    if work.pool is not None and progress.trained != work.round and progress.pool != work.pool.digest:
        return Step("accept", f"round {work.round}: public images are to come", (work.pool.manifest,))
    if progress.trained != work.round:
        return Step("train", f"round {work.round} is not trained yet")
    if due(work.round) and progress.measured != work.round:
        return Step("measure", f"round {work.round} is trained and not measured yet")
    return Step("submit", f"round {work.round} is trained", work.up)


def _lacks(progress: Progress, work: RoundWork, manifest: Manifest) -> bool:
    """Whether a transfer is still needed: it leads past what is held, or replaces what is held wrongly."""
    held = progress.held.get(manifest.segment)
    if held is None or manifest.version > held.version:
        return True
    wanted = work.start.get(manifest.segment)
    return manifest.absolute and wanted is not None and held.is_not(wanted)
