"""A sweep is run: cell by cell, each once, through interruptions and failures, into one folder.

RUN/sweep.json                   the sweep that was run last, whole, and its cells, in order
RUN/cells/KEY.json  KEY.png      the result of a finished cell, and what its models draw, also as KEY.denoising.png;
                                 KEY.failed: why there is none; KEY.safetensors: the model that other cells begin with
RUN/data/                        the images, staged once, and what quality is measured with (bench/reference.py)
RUN/work/KEY.log  KEY-*/         a cell while it runs (bench/worker.py), and what is left of one that failed
RUN/slurm/                       what submitit keeps of its jobs
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from feddiff.bench import launcher, reference
from feddiff.bench.cell import Cell
from feddiff.bench.dataset import Dataset, staged
from feddiff.bench.sections import SweepSection
from feddiff.bench.sweep import Sweep
from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.store import write_atomic
from feddiff.federator.measure import duration

MARK = "sweep.json"
LOOK_S = 0.2
SAID_BY = (0, 1)
"""Exit codes of a cell's process that has told its end itself."""


def run(
    sweep: Sweep,
    out: Path,
    jobs: int,
    say: Callable[[str], None],
    on: str = "local",
    options: Sequence[str] = (),
) -> int:
    """Run what is not there yet, ``jobs`` cells at a time, on a launcher with its options; returns how many failed.

    Raises ConfigError for a folder that is not a run's or is in use, KeyboardInterrupt when told to stop.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1 (got {jobs})")
    sweep.cells("", folders=2)  # a mistake in the file is said before anything is made
    sweep.sources()
    # Signals last: what Ray does with them is not ours.
    with _owned(out), launcher.opened(on, out, jobs, options) as start, stoppable() as stop:
        images = sweep.images(out / "data")
        cells = sweep.cells(images.digest, len(images.train.silos))
        _keep(sweep, images, cells, out)
        missing = [cell for cell in cells if not cell.finished(out)]
        say(
            f"{sweep.rules.name}: {len(cells)} cells, {len(cells) - len(missing)} done before, {len(missing)} to run;"
            f" {len(images.train.images)} images to train on"
        )
        _stage(missing, sweep, images, say, stop)
        return _all(missing, sweep.rules.name, out, jobs, start, say, stop)


def opened(out: Path) -> tuple[Sweep, Dataset]:
    """The sweep of a run's folder and its images, which are staged. Raises ConfigError, StoreError, DataError."""
    if not (out / MARK).exists():
        raise ConfigError(f"{out} is not the folder of a run; `feddiff-bench run SWEEP --out {out}` makes one")
    try:
        kept = json.loads((out / MARK).read_text())
        sweep = Sweep(Path(kept["file"]), SweepSection.model_validate(kept["sweep"]))
        digest = str(kept["images"])
    except (ValueError, LookupError, TypeError, ValidationError) as error:
        raise StoreError(f"{out / MARK} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return sweep, staged(digest, sweep.by_silo, out / "data")


def _keep(sweep: Sweep, images: Dataset, cells: Sequence[Cell], out: Path) -> None:
    """What a worker, a table and a report need to know."""
    listed = {
        "name": sweep.rules.name,
        "cells": [{"key": cell.key, "label": str(cell), "settings": cell.settings} for cell in cells],
        "file": str(sweep.file.absolute()),
        "images": images.digest,
        "sweep": sweep.rules.model_dump(mode="json"),
    }
    write_atomic(out / MARK, json.dumps(listed, indent=1).encode())


def _stage(
    missing: Sequence[Cell], sweep: Sweep, images: Dataset, say: Callable[[str], None], stop: threading.Event
) -> None:
    """What the cells' quality is measured with: here, once, or each of those that run together would make its own."""
    if sweep.rules.quality is None:
        return
    configs = [cell.config for cell in missing]
    kinds = {(str(each.model), each.data.classes, each.conditional): each for each in configs}
    for config in kinds.values():
        reference.stage(sweep.rules.quality, sweep.file.parent, images, config, say, stop)


@dataclass
class _Running:
    """A cell that was started, and how much of what it says was told on."""

    cell: Cell
    mark: str
    job: launcher.Job
    log: Path
    heard: int = 0
    last: str = ""

    def relay(self, say: Callable[[str], None], all: bool = False) -> None:
        """Tell what is new; with ``all`` a half line at the end too."""
        # Opened anew each time: that is when NFS looks for what another machine has written.
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self.heard)
            new = log.read()
            whole = new if all else new[: new.rfind(b"\n") + 1]
            self.heard += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.strip():
                    self.last = line.strip()
                    say(f"{self.mark} {line}")


def _all(
    missing: Sequence[Cell],
    name: str,
    out: Path,
    jobs: int,
    start: launcher.Start,
    say: Callable[[str], None],
    stop: threading.Event,
) -> int:
    began, failed, ended = time.monotonic(), 0, 0
    (out / "work").mkdir(exist_ok=True)
    waiting, running = list(enumerate(missing, 1)), list[_Running]()
    try:
        while waiting or running:
            if stop.is_set():
                raise KeyboardInterrupt
            due = {cell.key for _, cell in waiting} | {each.cell.key for each in running}
            for place, cell in list(waiting):
                if len(running) == jobs:
                    break
                if cell.base is None or cell.base.key not in due:  # else its turn comes when that is done
                    waiting.remove((place, cell))
                    running.append(_begin(cell, f"[{place}/{len(missing)}]", out, start, say))
            for each in list(running):
                if (done := _ended(each, out, say)) is None:
                    continue
                running.remove(each)
                ended, failed = ended + 1, failed + (not done)
                if waiting or running:
                    left = duration((time.monotonic() - began) / ended * (len(waiting) + len(running)))
                    say(f"{name}: {ended} of {len(missing)} run, {failed} failed, about {left} left")
            stop.wait(LOOK_S)
    except BaseException:  # the cells that run must end too, whatever it is
        _cancel([each.job for each in running])
        raise
    return failed


def _begin(cell: Cell, mark: str, out: Path, start: launcher.Start, say: Callable[[str], None]) -> _Running:
    (out / "cells" / f"{cell.key}.failed").unlink(missing_ok=True)
    log = launcher.log(out, cell.key)
    log.unlink(missing_ok=True)
    say(f"{mark} {cell}, seed {cell.config.seed}")
    return _Running(cell, mark, start(cell.key), log)


def _ended(each: _Running, out: Path, say: Callable[[str], None]) -> bool | None:
    """Whether a cell is done; None while it runs. What did not tell its end itself is told here."""
    lost, code = "", None
    try:
        code = each.job.ended()
    except FedDiffError as error:
        lost = str(error)
    each.relay(say, all=bool(lost) or code is not None)
    if code is None and not lost:
        return None
    if code == 0:
        each.log.unlink(missing_ok=True)
        return True
    failed = out / "cells" / f"{each.cell.key}.failed"
    if code not in SAID_BY or not failed.exists():
        lost = lost or f"its process ended with {code}{f': {each.last}' if each.last else ''}"
        write_atomic(failed, f"{lost}\n".encode())
        say(f"{each.mark} failed: {lost}")
    return False


def _cancel(jobs: Sequence[launcher.Job]) -> None:
    """End them, and wait until they have; a second time for those that take too long."""
    for _ in range(2):
        for job in jobs:
            job.cancel()
        until = time.monotonic() + launcher.GRACE_S
        while (jobs := [job for job in jobs if _alive(job)]) and time.monotonic() < until:
            time.sleep(LOOK_S)


def _alive(job: launcher.Job) -> bool:
    try:
        return job.ended() is None
    except FedDiffError:
        return False


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """The run's folder, ours alone. Raises ConfigError."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder; give another with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / ".lock").exists():
        raise ConfigError(f"{out} is not the folder of a run and is not empty; give another with --out")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out} is in use by another feddiff-bench run") from None
        yield


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second one is obeyed at once."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def asked(*_: object) -> None:
        stop.set()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    here = threading.current_thread() is threading.main_thread()
    try:
        for number in numbers if here else ():
            signal.signal(number, asked)
        yield stop
    finally:
        for number in numbers if here else ():
            signal.signal(number, before[number])
