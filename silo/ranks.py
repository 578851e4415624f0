"""Training with several processes on this machine, one for each GPU: the daemon's side of it.

    daemon ── start.safetensors, images in shared memory ──► ranks 0, 1, … (rank.py) ── result.safetensors ──► daemon

In the place of ``trainer.train`` when a silo has several. The daemon itself is none of the ranks: it alone talks to the
federator and needs no GPU, and when a rank dies or the round is over it can end the others whatever they are waiting
for, a collective on a GPU included. The ranks live as long as one round's training and no longer than the daemon.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from feddiff.core import errors
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.images import Images
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, save, write_atomic

if TYPE_CHECKING:
    from feddiff.silo.trainer import Progress, Trained

TASK, START, RESULT, MEETING = "task.json", "start.safetensors", "result.safetensors", "meeting"
EMA = "ema:"
LOST = 75
"""The exit code of a rank that has lost another one."""
BLAME_S = 5.0
"""Those that lose a rank may say so before it is seen that it has ended."""


def processes(config: FederationConfig, asked: int | None) -> int:
    """How many processes are to train; None asks for one on each GPU. Raises ConfigError if they cannot."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = asked or (max(gpus, 1) if config.kind == "unet" else 1)
    if count > 1 and config.kind != "unet":
        raise ConfigError("a DCGAN's batches are normalised each by itself; give --processes 1")
    if gpus and count > gpus:
        raise ConfigError(f"--processes {count}: each takes a GPU, and this machine has {gpus}")
    if count > 1 and not hasattr(os, "memfd_create"):
        raise ConfigError("several processes share images in a way that needs Linux; give --processes 1")
    return count


def train(
    count: int,
    config: FederationConfig,
    state: Mapping[str, F32],
    images: Images,
    seed: int,
    *,
    round: int = 1,
    shared: Collection[str] = (),
    ema: Mapping[str, F32] | None = None,
    checkpoint: Path,
    checkpoint_every: float = 30.0,
    progress: Callable[[Progress], bool],
) -> Trained | None:
    """As ``trainer.train`` does, by ``count`` processes; its errors, and FedDiffError if one ends before its time.

    Every rank holds the model, its gradients twice and the optimizer; the images lie once more in memory, for all
    ranks together, and on no disk. Whatever dies here leaves nothing that the next call minds: it goes on from the
    checkpoint.
    """
    for old in checkpoint.parent.glob("ranks-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=checkpoint.parent))
    said: queue.Queue[tuple[int, bytes]] = queue.Queue()
    children: list[subprocess.Popen[bytes]] = []
    memory = os.memfd_create("feddiff-images")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(np.ascontiguousarray(images.pixels).data)
            file.write(b"" if images.labels is None else np.ascontiguousarray(images.labels, np.int64).data)
        before = {EMA + name: values for name, values in (ema or {}).items()}
        save(folder / START, {name: values.reshape(-1) for name, values in {**state, **before}.items()})
        task = {"rules": config.canonical().decode(), "ranks": count, "seed": seed, "round": round}
        task |= {"shared": sorted(shared), "checkpoint": str(checkpoint), "checkpoint_every": checkpoint_every}
        task |= {"images": memory, "shape": images.pixels.shape, "labelled": images.labels is not None}
        write_atomic(folder / TASK, json.dumps(task).encode())
        for rank in range(count):
            children.append(_start(folder, rank, memory))
            threading.Thread(target=_listen, args=(rank, children[rank].stdout, said), daemon=True).start()
        return _wait(folder, children, said, state, progress)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        os.close(memory)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, rank: int, images: int) -> subprocess.Popen[bytes]:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    # The ranks' sockets know no password: nobody outside this machine may reach them.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}
    return subprocess.Popen(
        [sys.executable, "-m", "feddiff.silo.rank", str(folder), str(rank)],
        stdin=subprocess.PIPE,  # never written to: its end is the daemon's
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=[images],
        process_group=0,  # Ctrl-C is for the daemon, which ends them
    )


def _wait(
    folder: Path,
    children: list[subprocess.Popen[bytes]],
    said: queue.Queue[tuple[int, bytes]],
    state: Mapping[str, F32],
    progress: Callable[[Progress], bool],
) -> Trained | None:
    """Until rank 0 is done, or ``progress`` says False. Raises what a rank raises."""
    from feddiff.silo.trainer import Progress, Trained

    lost = ""
    while True:
        _, line = said.get()
        if not line:
            what = _who_ended(children) or f"the ranks lost each other ({lost:.200})"
            advice = "start feddiff-silo again: it goes on from its last checkpoint"
            raise FedDiffError(f"{what}, and a training needs them all; {advice}")
        told = json.loads(line)
        if "error" in told:
            raise getattr(errors, told["error"])(told["says"])
        if "metrics" in told:
            break
        if "lost" in told:
            lost = told["lost"]
        elif not progress(Progress(**told)):
            return None
    with WeightsReader(folder / RESULT) as reader:
        found = {name: reader.read(name).reshape(state[name.removeprefix(EMA)].shape) for name in reader.names}
    ema = {name.removeprefix(EMA): values for name, values in found.items() if name.startswith(EMA)}
    return Trained({name: found[name] for name in state}, ema or None, told["metrics"])


def opened(task: Mapping[str, Any]) -> Images:
    """The images of a task, which lie in memory that all ranks share."""
    # A private map: torch wants memory that it could write to, and a page is copied only if it does.
    memory = mmap.mmap(task["images"], 0, access=mmap.ACCESS_COPY)
    count = int(np.prod(task["shape"]))
    pixels = np.frombuffer(memory, np.uint8, count).reshape(task["shape"])
    labels = np.frombuffer(memory[count:], np.int64) if task["labelled"] else None
    return Images(pixels, labels, {}, ())


def _listen(rank: int, stream: IO[bytes], said: queue.Queue[tuple[int, bytes]]) -> None:
    """Everything that a rank says, line by line, and b"" when it has ended."""
    with stream:
        for line in stream:
            said.put((rank, line))
    said.put((rank, b""))


def _who_ended(children: list[subprocess.Popen[bytes]]) -> str:
    """The rank that ended by itself, and how; "" if there is none, and they have only lost each other."""
    until = time.monotonic() + BLAME_S
    while time.monotonic() < until:
        for rank, child in enumerate(children):
            if child.poll() not in (None, LOST):
                code = child.returncode
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                return f"rank {rank} of {len(children)} {how}{', perhaps for want of memory' if code == -9 else ''}"
        time.sleep(0.05)
    return ""
