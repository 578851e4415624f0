"""A sweep is run: cell by cell, each once, through interruptions and failures, into one folder.

RUN/sweep.json                   the cells of the sweep that was run last, in order
RUN/cells/KEY.json  KEY.png      the result of a finished cell, and what its models draw; KEY.failed: why not
RUN/data/                        the images, staged once
RUN/work/KEY/                    a cell while it runs, and the logs of one that failed
"""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from feddiff.bench.cell import Cell
from feddiff.bench.dataset import Dataset
from feddiff.bench.sweep import Sweep
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.store import write_atomic
from feddiff.federator.measure import amount, duration

MARK = "sweep.json"


def run(sweep: Sweep, out: Path, jobs: int, say: Callable[[str], None]) -> int:
    """Run what is not there yet, ``jobs`` cells at a time; returns how many failed.

    Raises ConfigError for a folder that is not a run's or is in use, KeyboardInterrupt when told to stop.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1 (got {jobs})")
    sweep.cells("", folders=2)  # a mistake in the file is said before anything is made
    with _owned(out), _stoppable() as stop:
        images = sweep.images(out / "data")
        cells = sweep.cells(images.digest, len(images.train.silos))
        listed = {
            "name": sweep.rules.name,
            "cells": [{"key": cell.key, "label": str(cell), "settings": cell.settings} for cell in cells],
        }
        write_atomic(out / MARK, json.dumps(listed, indent=1).encode())
        missing = [cell for cell in cells if not (out / "cells" / f"{cell.key}.json").exists()]
        say(
            f"{sweep.rules.name}: {len(cells)} cells, {len(cells) - len(missing)} done before, {len(missing)} to run;"
            f" {len(images.train.images)} images to train on"
        )
        return _all(missing, sweep, images, out, jobs, say, stop)


def _all(
    missing: list[Cell],
    sweep: Sweep,
    images: Dataset,
    out: Path,
    jobs: int,
    say: Callable[[str], None],
    stop: threading.Event,
) -> int:
    began, failed, ended = time.monotonic(), 0, 0
    with ThreadPoolExecutor(jobs, "cell") as pool:
        running = {
            pool.submit(_one, cell, f"[{place}/{len(missing)}]", sweep, images, out, say, stop)
            for place, cell in enumerate(missing, 1)
        }
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED, timeout=1.0)
                if stop.is_set():
                    raise KeyboardInterrupt
                failed += sum(not each.result() for each in done)
                ended += len(done)
                if done and running:
                    left = duration((time.monotonic() - began) / ended * len(running))
                    say(f"{sweep.rules.name}: {ended} of {len(missing)} run, {failed} failed, about {left} left")
        except BaseException:  # the cells that run must end too, whatever it is
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _one(
    cell: Cell,
    mark: str,
    sweep: Sweep,
    images: Dataset,
    out: Path,
    say: Callable[[str], None],
    stop: threading.Event,
) -> bool:
    """Run a cell and keep its result; False, with a line that says why, if it failed."""
    from feddiff.bench import result

    place, folder = out / "cells" / cell.key, out / "work" / cell.key
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"{mark} {cell}, seed {cell.config.seed}")
    try:
        found, picture = result.run(cell, sweep, images, folder, lambda line: say(f"{mark}   {line}"), stop)
        drawn = io.BytesIO()
        picture.save(drawn, "PNG")
        write_atomic(place.with_name(f"{cell.key}.png"), drawn.getvalue())
        # Last: what has this file is done.
        write_atomic(place.with_name(f"{cell.key}.json"), json.dumps(found, indent=1, allow_nan=False).encode())
    except Exception as error:
        reason = error.sentence if isinstance(error, FedDiffError) else repr(error)
        line = " ".join(reason.split())
        write_atomic(place.with_name(f"{cell.key}.failed"), f"{line}\n".encode())
        shutil.rmtree(folder / "data", ignore_errors=True)
        say(f"{mark} failed: {line}")
        return False
    place.with_name(f"{cell.key}.failed").unlink(missing_ok=True)
    shutil.rmtree(folder)
    totals, loss = found["totals"], found["quality"]["validation_loss"]["mean"]
    say(
        f"{mark} done: {amount(totals['down'] + totals['up'])} on the wire, {totals['images']:,} images seen,"
        f" validation loss {'none' if loss is None else f'{loss:.4f}'}, {duration(found['wall_seconds'])}"
    )
    return True


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
def _stoppable() -> Iterator[threading.Event]:
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
