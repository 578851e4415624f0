"""A silo without torch: every production class of the silo's daemon, and a learner that adds seeded noise.

``python noise.py STATE HOST:PORT --samples N --digest D [--seconds S] [--metrics HOST:PORT]`` is such a silo as a
process of its own; it logs like ``feddiff-silo``. A silo that is enrolled already, for the token is given to
``feddiff-silo join``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from feddiff.core import console
from feddiff.core.images import Images
from feddiff.core.peers import kind_of
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest
from feddiff.silo import metrics
from feddiff.silo.client import Client
from feddiff.silo.daemon import Silo
from feddiff.silo.display import Display
from feddiff.silo.gauge import Gauge
from feddiff.silo.learner import Learned, Lesson, Told
from feddiff.silo.local import Local, read_identity
from feddiff.silo.peers.circle import Circle
from feddiff.silo.peers.owner import Owner


class Noise:
    """What it learns depends on seed, start and segment alone; what it was given and gave is kept, by seed."""

    device = "no torch"
    gauge: Gauge | None = None

    def __init__(self, samples: int, layout_digest: str, hold: Callable[[int], None] = lambda _: None) -> None:
        """``hold`` is called with the seed again and again inside the training, for as long as it wants."""
        self.samples, self.layout_digest, self._hold = samples, layout_digest, hold
        self.labels: Mapping[str, int] = {}
        self.starts: dict[int, Mapping[str, F32]] = {}
        self.results: dict[int, Mapping[str, F32]] = {}
        self.public: dict[int, Images | None] = {}
        """Images from outside that it was given."""
        self.metrics = {"loss": 1.0}
        """What every training tells at its end."""

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        if not told(1, 2, 2.0, 1.0):
            return None
        seed = lesson.seed
        self.starts[seed], self.public[seed] = lesson.start, lesson.public
        self._hold(seed)
        if not told(2, 2, 1.0, 1.0):
            return None
        random = np.random.default_rng(seed)
        weights = {
            name: vector + np.float32(0.01) * random.standard_normal(vector.size, np.float32)
            for name, vector in sorted(lesson.start.items())
        }
        self.results[seed] = weights
        return Learned(weights, None, dict(self.metrics))


def die(phase: str) -> None:
    """End this process, as nothing can be caught or flushed, the first time that it comes to a phase for others."""
    took, folded, opened = Owner.take, Owner.fold, Owner.open

    def kill() -> None:
        print(f"killed in phase {phase}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def take(self: Owner, silo: str, *rest: Any) -> Any:
        if phase == "take" and silo != self.name:
            kill()
        return took(self, silo, *rest)

    def fold(self: Owner, *rest: Any) -> Any:
        if phase == "fold":
            kill()
        return folded(self, *rest)

    def open(self: Owner, silo: str, manifest: Manifest) -> Any:
        given = "check" if manifest.transfer.startswith("up.") else "share" if kind_of(manifest) == "result" else ""
        if phase == given and silo != self.name:
            kill()
        return opened(self, silo, manifest)

    Owner.take, Owner.fold, Owner.open = take, fold, open  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("address")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--accept-pool", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each training takes")
    parser.add_argument("--listen", default="", help="a port for other silos")
    parser.add_argument("--die", default="", help="kill -9 at the first take, fold, check or share for others")
    parser.add_argument("--metrics", help="HOST:PORT, as of feddiff-silo")
    options = parser.parse_args()
    console.log_lines(verbose=False)

    def run() -> int:
        name, _ = read_identity(options.state)
        client = Client(options.address, options.state)
        learner = Noise(options.samples, options.digest, lambda _: time.sleep(options.seconds))
        local = Local(options.state)
        circle = Circle(name, local, options.address, options.listen, renewal=client.renewal)
        if options.die:
            die(options.die)
        silo = Silo(name, local, client, lambda _: learner, Display(bars=False), options.accept_pool, circle)
        signal.signal(signal.SIGTERM, lambda *_: silo.stop())
        exposition = metrics.expose(options.metrics, options.state, silo, client) if options.metrics else None
        silo.run()
        if exposition is not None:
            exposition.close()
        client.close()
        return 0

    return console.run("noise", run)


if __name__ == "__main__":
    sys.exit(main())
