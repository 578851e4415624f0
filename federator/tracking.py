"""``serve --track``: rounds, measurements and samples told to TensorBoard or MLflow, beside the rounds.

    journal, ledger, samples/, grids/ ── pages ──► a tracker, which says what it has already

What is told is computed from what is on the disk, and what has been told is asked of the tracker itself: after any kill
or outage the same question gives the pages that are missing, so no point is there twice and none is lost. A tracker
that fails is named once in the log and tried again; the federation does not wait for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from feddiff.core.errors import ConfigError
from feddiff.federator.federation import Federation
from feddiff.federator.journal import Round
from feddiff.federator.ledger import GLOBAL
from feddiff.federator.measure import duration, mean
from feddiff.federator.metrics import AGAINST, MEASURED

LOOK_S = 5.0
"""Measurements and pictures come later than their round: they are looked for so often."""
AGAIN_S, LONGEST_S = 30.0, 600.0
"""The pause after a failure, which doubles, and the longest."""
CLOSING_S = 20.0
"""How long the end of the federation waits for its trackers."""
ALL = "_all"
"""Stands for the mean of the silos and for the global model: no silo's name begins so."""

log = logging.getLogger("feddiff.federator")


@dataclass(frozen=True)
class Page:
    """What is told at once of a round, or of a model after it. ``at``: Unix time in seconds."""

    round: int
    at: float
    values: Mapping[str, float] = field(default_factory=dict)
    """Finite, by name, e.g. ``loss/hospital-a``."""
    picture: tuple[str, Path] | None = None
    """Or a PNG, with its name."""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others: a name that it holds, and its round."""
        return (self.picture[0] if self.picture else next(iter(self.values)), self.round)


class Tracker(Protocol):
    """Where pages go. Any exception means: not now."""

    def open(self, federation: Federation) -> None:
        """Get ready, and know what is there; called again after a failure."""
        ...

    def has(self, page: Page) -> bool: ...
    def write(self, page: Page) -> None: ...
    def close(self, finished: bool) -> None: ...


def parse(target: str) -> Tracker:
    """``tensorboard:FOLDER`` or ``mlflow:URI``. Raises ConfigError, also if what it needs is not installed."""
    kind, _, where = target.partition(":")
    if kind == "tensorboard" and where:
        from feddiff.federator.eventfile import EventFile

        return EventFile(Path(where))
    if kind == "mlflow" and where:
        from feddiff.federator.mlflow import MLflow

        return MLflow(where)
    raise ConfigError(f"--track {target:.80}: tensorboard:FOLDER or mlflow:http://HOST:PORT was expected")


class Tracking:
    """The trackers of one federation, on a thread of their own."""

    def __init__(self, federation: Federation, trackers: Mapping[str, Tracker]) -> None:
        """``trackers`` by what the operator called them."""
        self._federation, self._trackers = federation, dict(trackers)
        closed = federation.round
        self._newest = 0 if closed is None else closed.round - (closed.closed_at is None)
        self._rounds: list[Round] = []
        self._open: set[str] = set()
        self._again: dict[str, tuple[float, float]] = {}
        """When a tracker that failed has its next turn, and the pause after that."""
        self._done: dict[str, set[tuple[str, int]]] = {}
        """Of each tracker, what it is known to have: that is not even made again."""
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        if self._trackers:
            self._thread.start()

    def told(self, closed: Round) -> None:
        """A round has closed, and its bytes are in the ledger."""
        self._newest = closed.round
        self._wake.set()

    def close(self) -> None:
        """Tell what is left, if that is soon done."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSING_S)

    def _run(self) -> None:
        last = False
        while not last:
            self._wake.wait(LOOK_S)
            self._wake.clear()
            last = self._closing
            for name, tracker in self._trackers.items():
                if last or self._again.get(name, (0.0, 0.0))[0] <= time.monotonic():
                    self._tell(name, tracker)
        for name in self._open:
            try:
                self._trackers[name].close(self._federation.finished)
            except Exception as error:
                log.warning("--track %s: %s", name, error)

    def _tell(self, name: str, tracker: Tracker) -> None:
        try:
            if name not in self._open:
                self._done.pop(name, None)
                tracker.open(self._federation)
                self._open.add(name)
            done = self._done.setdefault(name, set())
            for ident, make in self._idents():
                if ident not in done:
                    page = make()
                    if page.values or page.picture:
                        if not tracker.has(page):
                            tracker.write(page)
                        done.add(ident)
        except Exception as error:  # whatever a tracker's files or server do, the federation goes on
            self._open.discard(name)
            pause = self._again.get(name, (0.0, AGAIN_S))[1]
            if name not in self._again:
                log.warning("--track %s: %s; it is tried again, next in %s", name, error, duration(pause))
            self._again[name] = time.monotonic() + pause, min(2 * pause, LONGEST_S)
        else:
            if self._again.pop(name, None) is not None:
                log.info("--track %s: works again; nothing is missing there", name)

    def _idents(self) -> Iterator[tuple[tuple[str, int], Callable[[], Page]]]:
        """What there is to tell so far, rounds first, and what makes the page of it."""
        federation = self._federation
        known = self._rounds[-1].round if self._rounds else 0
        fresh = federation.journal.rounds(known) if known < self._newest else []
        self._rounds += [each for each in fresh if each.round <= self._newest]
        ends = {each.round: each.closed_at or each.opened_at for each in self._rounds}
        for closed in self._rounds:
            yield ("round", closed.round), partial(self._round, closed)
        for round, of in federation.ledger.measured():
            if round in ends:
                yield (f"quality {of}", round), partial(self._quality, round, of, ends[round])
        pictures = [(path.stem, ALL, path) for path in sorted(federation.folder.glob("samples/round-*.png"))]
        silos = sorted(federation.folder.glob("grids/round-*/*.png"))
        pictures += [(path.parent.name, path.stem, path) for path in silos]
        for name, of, path in pictures:
            number = name.removeprefix("round-")
            if number.isdecimal() and (round := int(number)) in ends:
                make = partial(Page, round, ends[round], picture=(f"samples/{of}", path))
                yield (f"picture {of}", round), make

    def _round(self, closed: Round) -> Page:
        federation = self._federation
        told = federation.journal.metrics(closed.round).get(closed.round, {})
        losses = {silo: each["loss"] for silo, each in told.items() if "loss" in each and silo in closed.silos}
        ended = closed.closed_at or closed.opened_at
        values: dict[str, float] = {
            "round/silos": len(closed.silos),
            "round/planned": len(closed.plan.assignments),
            "round/seconds": ended - closed.opened_at,
            "bytes/down": federation.ledger.wire("down", closed.round),
            "bytes/up": federation.ledger.wire("up", closed.round),
            f"loss/{ALL}": mean(losses, closed.weights),
            **{f"loss/{silo}": loss for silo, loss in losses.items()},
        }
        return Page(closed.round, ended, {name: value for name, value in values.items() if math.isfinite(value)})

    def _quality(self, round: int, of: str, at: float) -> Page:
        found = {}
        for each in self._federation.ledger.quality(round, of):
            one = each.measured
            if one.metric in MEASURED and one.against in AGAINST and math.isfinite(one.value):
                against = f" vs {one.against}" if one.against else ""
                found[f"quality/{one.metric}{against}/{ALL if of == GLOBAL else of}"] = one.value
        return Page(round, at, found)


def parameters(federation: Federation) -> dict[str, str]:
    """The rules, flat: ``training.epochs`` and so on."""
    found: dict[str, str] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                walk(each, f"{name}.{key}" if name else str(key))
        elif value is not None:
            found[name] = str(value)

    walk(federation.config.model_dump(mode="json"), "")
    return found
