"""One of several processes that train a silo's model together (silo/ranks.py starts them and says why).

``python -m feddiff.silo.rank FOLDER RANK``. Tells on stdout, a line of JSON each: how far the training is, its metrics
at the end (both rank 0), or an error. Nothing comes on stdin but its end, which is the daemon's, and then this one's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from feddiff.core import console
from feddiff.core.errors import FedDiffError
from feddiff.silo.ranks import EMA, LOST, MEETING, RESULT, START, TASK, opened

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another, which may be writing a checkpoint; that it has died is seen at once."""


def train(folder: Path, rank: int, tell: Callable[[Mapping[str, Any]], None]) -> None:
    """Do the task of ``folder`` as one of its ranks; rank 0 leaves the result there. Raises as ``trainer.train``."""
    import torch
    import torch.distributed as dist

    from feddiff.core import network
    from feddiff.core.config import parse
    from feddiff.core.store import WeightsReader, save
    from feddiff.silo import trainer
    from feddiff.silo.group import Group, Lost

    task = json.loads((folder / TASK).read_bytes())
    config, group = parse(task["rules"].encode()), Group(rank, task["ranks"])
    shapes = {
        each.name: each.shape for segment in network.of(config).layout(config).segments for each in segment.parameters
    }
    with WeightsReader(folder / START) as reader:
        start = {name: reader.read(name).reshape(shapes[name.removeprefix(EMA)]) for name in reader.names}
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(console.cpus() // group.size, 1))
    try:
        store = dist.FileStore(str(folder / MEETING), group.size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=group.size, timeout=PATIENCE
        )
    except RuntimeError as error:
        raise Lost(str(error)) from None

    def progress(report: trainer.Progress) -> bool:
        if group.leads:
            tell(asdict(report))
        return True

    done = trainer.train(
        config,
        {name: start[name] for name in shapes},
        opened(task),
        task["seed"],
        round=task["round"],
        shared=task["shared"],
        ema={name: start[EMA + name] for name in shapes if EMA + name in start} or None,
        checkpoint=Path(task["checkpoint"]),
        checkpoint_every=task["checkpoint_every"],
        group=group,
        progress=progress,
    )
    if group.leads and done is not None:
        ema = {EMA + name: values for name, values in (done.ema or {}).items()}
        save(folder / RESULT, {name: values.reshape(-1) for name, values in {**done.state, **ema}.items()})
        tell({"metrics": done.metrics})


def _lifeline() -> None:
    """End with the daemon, even with one that is killed."""
    sys.stdin.buffer.read()
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rank", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("rank", type=int)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd tells all at once, and the daemon ends its ranks
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message
    life = threading.Thread(target=_lifeline, daemon=True)
    life.start()
    from feddiff.silo.group import Lost

    def tell(what: Mapping[str, Any]) -> None:
        print(json.dumps(what), file=lines, flush=True)

    try:
        train(options.folder, options.rank, tell)
    except FedDiffError as error:
        tell({"error": type(error).__name__, "says": str(error)})
    except Lost as error:
        tell({"lost": str(error)})
        os._exit(LOST)  # at once, here and below: a library's own end may wait for ranks that are gone
    except Exception:
        traceback.print_exc()
        os._exit(console.DEFECT)
    life.join()  # not before the daemon: others may still need what this one has to send
    return 0


if __name__ == "__main__":
    sys.exit(main())
