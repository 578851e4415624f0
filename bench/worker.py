"""One cell of a run, in a process of its own: ``feddiff-bench cell RUN KEY``, which every launcher starts.

Needs nothing but the run's folder. It takes the cell's lock, and looks once more whether there is a result: a cell is
run once, whatever became of who started it.

RUN/locks/KEY             held while the cell runs, on whatever machine
RUN/work/KEY-*/           the cell while it runs, and the logs of one that failed
RUN/cells/KEY.json        what came of it, with its pictures; KEY.failed: why nothing did
RUN/cells/KEY.safetensors the global model, where other cells begin with it
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feddiff.bench import campaign
from feddiff.bench.cell import Cell
from feddiff.bench.dataset import Dataset
from feddiff.bench.reference import CONVNET
from feddiff.bench.sweep import Sweep
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.store import write_atomic
from feddiff.federator.measure import amount, duration

LOOK_S = 1.0


def run(out: Path, key: str, share: int, say: Callable[[str], None]) -> bool:
    """Run a cell and keep its result; False, with a line that says why, if it failed.

    ``share``: cells that run on this machine at a time. Raises ConfigError for a folder or a key that is none,
    KeyboardInterrupt when told to stop.
    """
    sweep, images = campaign.opened(out)
    cells = {cell.key: cell for cell in sweep.cells(images.digest, len(images.train.silos))}
    if key not in cells:
        quality = sweep.rules.quality
        file = "" if quality is None or quality.extractor == CONVNET else f"{quality.file(sweep.file.parent)} or "
        raise ConfigError(
            f"the sweep of {out} has no cell {key!r:.200}; if it had, {file}feddiff is another than when the run began"
        )
    with campaign.stoppable() as stop, _alone(out, key, say, stop):
        if cells[key].finished(out):
            say("done by another process")
            return True
        return _run(cells[key], sweep, images, out, share, say, stop)


def _run(
    cell: Cell, sweep: Sweep, images: Dataset, out: Path, share: int, say: Callable[[str], None], stop: threading.Event
) -> bool:
    from feddiff.bench import result

    place = out / "cells" / cell.key
    for left in (out / "work").glob(f"{cell.key}-*"):
        shutil.rmtree(left, ignore_errors=True)
    # A new one each time: daemons of a process that was killed may still write into theirs for a moment.
    folder = Path(tempfile.mkdtemp(prefix=f"{cell.key}-", dir=out / "work"))
    try:
        initial = sweep.initial if cell.base is None else cell.base.model(out)
        if cell.base is not None and not cell.base.finished(out):
            raise ConfigError(f"it begins with the model of {cell.base.key}, which is not there")
        told = lambda line: say(f"  {line}")  # noqa: E731
        found, files = result.run(cell, sweep, images, folder, told, stop, share, initial)
        for ending, content in files.items():
            write_atomic(place.with_name(f"{cell.key}.{ending}"), content)
        # Last: what has this file is done.
        write_atomic(place.with_name(f"{cell.key}.json"), json.dumps(found, indent=1, allow_nan=False).encode())
    except Exception as error:
        reason = error.sentence if isinstance(error, FedDiffError) else repr(error)
        line = " ".join(reason.split()).replace(f"{out}{os.sep}", "")  # a result holds no absolute path of the machine
        write_atomic(place.with_name(f"{cell.key}.failed"), f"{line}\n".encode())
        shutil.rmtree(folder / "data", ignore_errors=True)
        say(f"failed: {line}")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    say(_told(found))
    return True


def _told(found: Mapping[str, Any]) -> str:
    """A result in a line."""
    totals, quality = found["totals"], found["quality"]
    loss = quality["validation_loss"]["mean"]
    fids = [
        f", FID {row['value']:.1f} ({row['against']})"
        for row in quality.get("metrics", [])
        if row["metric"] == "fid" and row["value"] is not None
    ]
    return (
        f"done: {amount(totals['down'] + totals['up'])} on the wire, {totals['images']:,} images seen,"
        f" validation loss {'none' if loss is None else f'{loss:.4f}'}{''.join(fids)},"
        f" {duration(found['wall_seconds'])}"
    )


@contextmanager
def _alone(out: Path, key: str, say: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """The cell is ours; another process that has it is waited for. Raises KeyboardInterrupt when ``stop`` is set."""
    (out / "locks").mkdir(exist_ok=True)
    waited = False
    # Opened for writing, and never removed: NFS locks only what is, and a lock on what was removed is none.
    with (out / "locks" / key).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    say("waits: another process runs this cell")
                waited = True
            if stop.wait(LOOK_S):
                raise KeyboardInterrupt
        yield
