"""Measuring what rounds publish while later rounds go on: a queue on disk, and one child process at a time.

    published ── keep ──► measuring/round-5/ ── gauge.py ──► numbers.json ──► ledger, and the folder goes

The daemon hands over hard links to a round's weights and forgets about it. A child measures, because torch must not be
in the federator's own memory, and because a crash there costs no round; this process alone writes the ledger. The queue
is folders, so what is left at a stop or a crash is measured by the next ``serve``. What may pass (a child that was
killed, reference images that are away, no moments yet) is tried again a few times, while other rounds have their turns.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from feddiff.core import notify
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError, FedDiffError, StoreError
from feddiff.core.features import check_digest
from feddiff.core.quality import Measured
from feddiff.core.store import sync_folder, write_atomic
from feddiff.federator.appraisal import line
from feddiff.federator.federation import Federation
from feddiff.federator.gauge import LOG, NUMBERS, RULES, SILOS
from feddiff.federator.ledger import GLOBAL
from feddiff.federator.measure import duration
from feddiff.federator.rounds import Decision

FAILED = "failed"
"""In a round's folder: how often something that may pass has kept it from being measured."""
ATTEMPTS, AGAIN_S = 5, 30.0
"""How often in all, and the pause after the first time; it doubles."""
WAITING = 8
"""Rounds that wait at most: each keeps a model's weights on the disk."""

log = logging.getLogger("feddiff.federator")


def check(config: FederationConfig, extractor: Path | None, reference: Path | None) -> None:
    """Raises ConfigError unless ``serve`` was given what the rules need, and nothing wrong. Loads no torch."""
    quality = config.quality
    if quality is None:
        if extractor is not None or reference is not None:
            flag = "--reference" if extractor is None else "--extractor"
            raise ConfigError(f"{flag} was given, but the federation's rules have no table [quality]; leave it out")
        return
    if extractor is not None:
        check_digest(extractor, quality.extractor)
    if reference is not None and not reference.is_dir():
        raise ConfigError(f"--reference {reference}: a folder of images was expected, one sub-folder for each class")
    if not config.has_global_model:
        return
    if extractor is None:
        raise ConfigError(
            "the rules have a table [quality], so the global model is measured; give --extractor FILE, the TorchScript"
            f" file with SHA-256 {quality.extractor}"
        )
    if reference is None and quality.reference == "held":
        raise ConfigError(
            'the rules say quality.reference = "held", so the global model is measured against images of your own;'
            " give --reference FOLDER"
        )


class Gauging:
    """The measurements of one federation's global model, in the order of the rounds; none if its rules want none."""

    def __init__(self, federation: Federation, extractor: Path | None, reference: Path | None) -> None:
        """With what ``check`` lets pass."""
        self._federation, self._extractor, self._reference = federation, extractor, reference
        self._quality = federation.config.quality if federation.config.has_global_model else None
        self._queue = federation.folder / "measuring"
        for half in self._queue.glob(".round-*"):
            shutil.rmtree(half, ignore_errors=True)
        self._changed = threading.Condition()
        self._again: dict[int, float] = {}
        """When rounds whose turn is over may have another; inf: not in this process."""
        self._measured: int | None = None
        """The round under way."""
        self._closing = self._ending = False
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="gauging")

    def start(self) -> None:
        """Begin with what an earlier process left; a kill may have come between a round's end and ``keep``."""
        if self._quality is None:
            return
        federation = self._federation
        last = next((each.round for each in reversed(federation.journal.rounds()) if each.closed_at is not None), None)
        if last is not None and not any(each.of == GLOBAL for each in federation.ledger.quality(last)):
            self.keep(last)
        self._thread.start()

    def keep(self, round: int) -> None:
        """Queue the model that this round, the newest to close, has published, if it is to be measured."""
        config = self._federation.config
        place, half = self._queue / f"round-{round}", self._queue / f".round-{round}"
        if self._quality is None or not self._quality.due(round, config.rounds.count) or place.exists():
            return
        try:
            half.mkdir(parents=True)
            self._federation.versions.keep(self._federation.current, half)
            write_atomic(half / RULES, config.canonical())
            half.rename(place)
            sync_folder(self._queue)
        except (OSError, StoreError) as error:  # a full disk, or one without hard links, must not end the federation
            log.error("round %d cannot be measured: %s", round, error)
            shutil.rmtree(half, ignore_errors=True)
        with self._changed:
            self._thin()
            self._changed.notify_all()

    def _kept(self) -> list[int]:
        names = [place.name.removeprefix("round-") for place in self._queue.glob("round-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def _thin(self) -> None:
        """Drop the oldest rounds of those that wait, where rounds are faster than their measurements."""
        for round in [each for each in self._kept() if each != self._measured][:-WAITING]:
            log.warning(
                "round %d is not measured, for %d newer ones wait; rounds are faster than this: raise quality.every",
                round,
                WAITING,
            )
            shutil.rmtree(self._queue / f"round-{round}", ignore_errors=True)
            self._again[round] = math.inf

    def waiting(self) -> list[int]:
        """Rounds that are still to be measured by this process, in order."""
        return [round for round in self._kept() if self._again.get(round, 0.0) < math.inf]

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Return when all is measured or given up, or on a stop."""
        with self._changed:
            self._ending = True
            self._again = {round: at for round, at in self._again.items() if at == math.inf}
            self._changed.notify_all()
            while self._quality is not None and (left := self.waiting()) and not stopped():
                reason = f"finished; still to be measured: {', '.join(f'round {number}' for number in left)}"
                if self._federation.decision.reason != reason:
                    log.info("%s", reason)
                    notify.status(reason)
                notify.alive()
                self._federation.decision = Decision("wait", reason)
                self._changed.wait(0.2)

    def close(self) -> None:
        """End the child and the thread; what is not measured stays in the queue."""
        with self._changed:
            self._closing = True
            if self._child is not None:
                self._child.kill()  # it writes whole files or none
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (round := self._next()) is None:
                    due = [at for at in self._again.values() if at < math.inf]
                    self._changed.wait(max(min(due) - time.monotonic(), 0.0) if due else None)
                if self._closing or round is None:
                    return
                self._measured = round
            pause = self._measure(round, self._queue / f"round-{round}")
            with self._changed:
                self._measured = None
                if pause is None:
                    shutil.rmtree(self._queue / f"round-{round}", ignore_errors=True)
                if not self._closing:
                    self._again[round] = math.inf if pause is None else time.monotonic() + pause
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The oldest round whose turn it is; one whose folder is gone has none any more."""
        waiting, now = self.waiting(), time.monotonic()
        self._again = {round: at for round, at in self._again.items() if at == math.inf or round in waiting}
        return next((round for round in waiting if self._again.get(round, now) <= now), None)

    def _measure(self, round: int, place: Path) -> float | None:
        """Seconds until the round is tried again, inf for the next process; None if its folder has done its service."""
        federation = self._federation
        try:
            known = [silo for silo in federation.roster.silos() if silo.evicted is None and silo.samples]
            silos = {silo.name: {"samples": silo.samples, "labels": dict(silo.labels)} for silo in known}
            if not (place / NUMBERS).exists():
                hindered = self._hindrance(silos)
                if not hindered:
                    write_atomic(place / SILOS, json.dumps(silos).encode())
                    hindered = self._gauge(round, place)
                if hindered:
                    return math.inf if self._closing else _postponed(round, place, hindered)
            tables = json.loads((place / NUMBERS).read_text())
            numbers = [Measured(**{**table, "cautions": tuple(table["cautions"])}) for table in tables]
            federation.ledger.measure(round, GLOBAL, numbers)
        except (StoreError, OSError, sqlite3.Error) as error:
            log.error("round %d is not measured, but will be after a restart: %s", round, error)
            return math.inf
        except (FedDiffError, ValueError, TypeError, LookupError) as error:  # the latter: another feddiff's numbers
            if self._closing:
                return math.inf
            log.error("round %d is not measured: %s", round, error)
        else:
            log.info("round %d: %s", round, line(numbers))
        return None

    def _hindrance(self, silos: Iterable[str]) -> str:
        """What keeps a round from being measured now, but may pass; "" if nothing does. Raises DataError."""
        federation, reference = self._federation, self._reference
        if federation.config.wants_statistics and not any(map(Path.exists, map(federation.statistics.path, silos))):
            reason = "no silo has sent the moments of its images"
            if self._ending:  # then nobody is there who would
                raise DataError(reason)
            return f"{reason} yet"
        return "" if reference is None or reference.is_dir() else f"{reference} is not there"

    def _gauge(self, round: int, place: Path) -> str:
        """Run the child, which leaves ``NUMBERS``; returns what became of one that was killed, "" if all is well.

        Raises FedDiffError with its last line if it fails.
        """
        command = [sys.executable, "-m", "feddiff.federator.gauge", str(place), "--parent", str(os.getpid())]
        command += ["--extractor", str(self._extractor)]
        if self._reference is not None:
            command += ["--reference", str(self._reference)]
        with (place / LOG).open("w+", errors="replace") as said:
            with self._changed:
                if self._closing:
                    raise FedDiffError("stopped")
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, errors="replace")
                self._child = child
            with child:
                for text in child.stdout or ():
                    log.info("round %d: %s", round, text.strip())
            with self._changed:
                self._child = None
            if child.returncode > 0:
                said.seek(0)
                lines = said.read().strip().splitlines()
                raise FedDiffError(lines[-1][-500:] if lines else f"the process ended with {child.returncode}")
        return f"its process was killed by signal {-child.returncode}" if child.returncode else ""


def _postponed(round: int, place: Path, reason: str) -> float | None:
    """Note an attempt that failed; returns the seconds until the next, None if it was the last. Raises OSError."""
    before = (place / FAILED).read_text() if (place / FAILED).exists() else ""
    failed = 1 + (int(before) if before.isdecimal() else 0)
    if failed >= ATTEMPTS:
        log.error("round %d is not measured, after %d attempts: %s", round, failed, reason)
        return None
    write_atomic(place / FAILED, str(failed).encode())
    pause = math.ldexp(AGAIN_S, failed - 1)
    log.warning("round %d is not measured yet: %s; it is tried again in %s", round, reason, duration(pause))
    return pause
