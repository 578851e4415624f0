"""A long, slow, lossy line between two network namespaces: the kernel's netem, or where it has none, the emulator.

Both shape each direction alike: half of the round trip, independent loss, a rate, and a queue of one round trip.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from feddiff.bench.network import Place, check_allowed, ip, place
from feddiff.bench.processes import Processes
from feddiff.core.errors import ConfigError

_MTU = 1500
ADDRESSES = ("10.79.0.1", "10.79.0.2")


@dataclass(frozen=True)
class Shape:
    """Of each direction: delay in seconds, loss as a share of the packets, rate in bits a second."""

    delay_s: float = 0.05
    loss: float = 0.01
    rate: float = 200e6

    @property
    def queue(self) -> int:
        """Bytes that may wait before the line: what it carries in one round trip, 64 KiB at least."""
        return max(int(self.rate / 8 * 2 * self.delay_s), 1 << 16)

    def __str__(self) -> str:
        return f"{2e3 * self.delay_s:g} ms round trip, {100 * self.loss:g} % loss, {self.rate / 1e6:g} Mbit/s"


@contextlib.contextmanager
def line(shape: Shape, folder: Path, congestion: str = "") -> Iterator[tuple[Place, Place, str]]:
    """Both ends, and what makes the line; gone when the block ends. ``congestion``: TCP's control at both ends.

    Raises ConfigError where that is not to be had.
    """
    check_allowed()
    names = tuple(f"feddiff{os.getpid()}-{end}" for end in ("near", "far"))
    with contextlib.ExitStack() as undo:
        for name in names:
            ip("netns", "add", name)
            undo.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
            ip("-n", name, "link", "set", "lo", "up")
        near, far = (place(name, address) for name, address in zip(names, ADDRESSES, strict=True))
        if _netem(near, far, names, shape):
            made_by = "netem"
        else:
            _emulated(undo.enter_context(Processes(folder)), names, shape)
            made_by = "emulated in user space: this kernel has no netem"
        for end in (near, far):
            _set(end, "tcp_no_metrics_save", "1")
            if congestion:
                _set(end, "tcp_congestion_control", congestion)
        yield near, far, made_by


def _netem(near: Place, far: Place, names: tuple[str, ...], shape: Shape) -> bool:
    """A pair of devices shaped by the kernel; False if it cannot."""
    ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
    for end, name in ((near, names[0]), (far, names[1])):
        waiting = int((shape.queue + shape.rate / 8 * shape.delay_s) / _MTU)  # netem's limit counts those under way too
        netem = (
            "delay",
            f"{shape.delay_s * 1e3:g}ms",
            "loss",
            f"{100 * shape.loss:g}%",
            "rate",
            f"{shape.rate:.0f}bit",
        )
        made = subprocess.run(
            [*end.prefix, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", *netem, "limit", str(waiting)],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            ip("-n", name, "link", "del", "eth0")
            return False
        # Packets as on a real line: netem would lose 64 kB at a time.
        ip("-n", name, "link", "set", "eth0", "gso_max_segs", "1")
        _up(name, end.address)
    return True


def _emulated(processes: Processes, names: tuple[str, ...], shape: Shape) -> None:
    devices = [f"fd{os.getpid()}{end}" for end in "nf"]
    numbers = (str(shape.delay_s), str(shape.loss), str(shape.rate), str(shape.queue))
    processes.start("line", [sys.executable, "-m", "feddiff.bench.emulator", *devices, *numbers])
    processes.wait_for("line", "ready", 20)
    for device, name, address in zip(devices, names, ADDRESSES, strict=True):
        ip("link", "set", device, "netns", name, "name", "eth0", "txqueuelen", "5000")
        _up(name, address)


def _up(name: str, address: str) -> None:
    ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")


def _set(end: Place, key: str, value: str) -> None:
    place = f"/proc/sys/net/ipv4/{key}"
    done = subprocess.run([*end.prefix, "tee", place], input=value, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(
            f"{place} cannot be {value!r} in a network namespace; congestion controls that can:"
            f" {Path('/proc/sys/net/ipv4/tcp_allowed_congestion_control').read_text().strip()}"
        )
