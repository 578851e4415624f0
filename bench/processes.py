"""Processes seen from outside: what they use of CPU and memory, sampled from /proc while they run.

Everything that the transport's benchmark starts is started here, so that each row of its table is measured alike.
Needs Linux.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from feddiff.core.errors import FedDiffError

PERIOD_S = 0.1
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One look at every process, by name. CPU in seconds since its start, memory in MB (1e6)."""

    at: float
    """Unix seconds."""
    cpu: Mapping[str, float]
    resident: Mapping[str, float]
    peak: Mapping[str, float]
    """The most that was ever resident."""


class Processes:
    """Children with a name each; leaving the block ends those that still run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = 0.0
        """When the first process was started, in Unix seconds."""
        self.samples: list[Sample] = []
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="samples", daemon=True)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; what it says goes to ``NAME.log`` in the folder."""
        self.begun = self.begun or time.time()
        with self.log(name).open("wb") as log:
            self._children[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_for(self, name: str, text: str, patience_s: float = 300) -> None:
        """Wait until a process has said this. Raises FedDiffError if it ends first, or in time."""
        until = time.monotonic() + patience_s
        while text not in self.log(name).read_text(errors="replace"):
            self._check(name)
            if time.monotonic() > until:
                raise FedDiffError(f"{name} did not say {text!r} in {patience_s:.0f} s; {self._last_line(name)}")
            time.sleep(0.02)

    def wait(self, name: str, patience_s: float) -> None:
        """Wait until a process has ended well, and watch the others. Raises FedDiffError."""
        until = time.monotonic() + patience_s
        while self._children[name].poll() is None:
            for each in self._children:
                self._check(each)
            if time.monotonic() > until:
                raise FedDiffError(f"{name} did not end in {patience_s:.0f} s; {self._last_line(name)}")
            time.sleep(0.05)
        self._check(name)

    def _check(self, name: str) -> None:
        code = self._children[name].poll()
        if code:
            raise FedDiffError(f"{name} ended with {code}: {self._last_line(name)}")

    def _last_line(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").strip().splitlines()
        return f"its log ends with: {lines[-1][-300:]}" if lines else "its log is empty"

    def cpu(self, begin: float, end: float, name: str = "") -> float:
        """CPU seconds between two moments: of one process, or of all together."""
        return self._cpu_at(end, name) - self._cpu_at(begin, name)

    def _cpu_at(self, moment: float, name: str) -> float:
        def used(sample: Sample) -> float:
            return sample.cpu.get(name, 0.0) if name else sum(sample.cpu.values())

        for before, after in pairwise(self.samples):
            if before.at <= moment <= after.at:
                share = (moment - before.at) / (after.at - before.at)
                return used(before) + share * (used(after) - used(before))
        return used(self.samples[-1 if moment > self.samples[0].at else 0])

    def resident(self, moment: float, name: str) -> float:
        """MB resident at a moment."""
        before = [sample.resident[name] for sample in self.samples if sample.at <= moment and name in sample.resident]
        return before[-1] if before else 0.0

    def peak(self, moment: float, name: str) -> float:
        """MB that were resident at most up to a moment."""
        until = moment + 2 * PERIOD_S
        return max((sample.peak.get(name, 0.0) for sample in self.samples if sample.at <= until), default=0.0)

    def _look(self) -> None:
        cpu: dict[str, float] = {}
        while not self._stop.is_set():
            at, resident, peak = time.time(), {}, {}
            for name, child in list(self._children.items()):
                try:
                    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
                    cpu[name] = (int(stat[11]) + int(stat[12])) / _TICK
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended; what it used stays counted
                memory = {line.split()[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Vm")}
                if "VmRSS:" in memory:
                    resident[name], peak[name] = memory["VmRSS:"], memory["VmHWM:"]
            self.samples.append(Sample(at, dict(cpu), resident, peak))
            self._stop.wait(PERIOD_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
