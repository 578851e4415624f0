"""Several silos in one process, each with its own folder, certificate and connection: the very code of production.

``python -m feddiff.bench.host ADDRESS FOLDER NAME=TOKEN [NAME=TOKEN ...]`` runs them until the federation is finished,
or until the first of them fails; with ``--data DIR`` they train on DIR/NAME, ``--trainings`` at a time, without it they
only move the weights a little.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from feddiff.bench.perturb import Perturber
from feddiff.core import console
from feddiff.core.config import FederationConfig
from feddiff.core.errors import FedDiffError
from feddiff.core.features import Extractor
from feddiff.core.identity import Invitation
from feddiff.core.segments import F32
from feddiff.silo import enroll
from feddiff.silo.client import Client
from feddiff.silo.daemon import Silo
from feddiff.silo.display import Display
from feddiff.silo.gauge import Gauge
from feddiff.silo.gauge import Told as Drawn
from feddiff.silo.learner import ImageLearner, Learned, Learner, Lesson, Told
from feddiff.silo.local import Local
from feddiff.silo.peers.circle import Circle
from feddiff.silo.readings import Reading

GRACE_S = 10.0
"""How long the silos of a host may take to stop once one of them has failed."""
LOOK_S = 0.2


class HostedGauge(Gauge):
    """Measures in the turns of the trainings: samples and features are as hard on memory and CPUs."""

    def __init__(self, learner: ImageLearner, extractor: Extractor, turns: threading.Semaphore) -> None:
        super().__init__(learner.config, learner.images, extractor)
        self._turns = turns

    def measure(self, vectors: Mapping[str, F32], seed: int, folder: Path, told: Drawn) -> Reading:
        with self._turns:
            return super().measure(vectors, seed, folder, told)

    def statistics(self, folder: Path, told: Drawn) -> bytes:
        with self._turns:
            return super().statistics(folder, told)


class HostedLearner(ImageLearner):
    """One of several in a process, which train in turns: memory and caches are those of a few trainings, not of all."""

    def __init__(
        self, config: FederationConfig, folder: Path, extractor: Path | None, turns: threading.Semaphore
    ) -> None:
        super().__init__(config, folder, extractor)
        self._turns = turns
        if self.extractor is not None:
            self.gauge = HostedGauge(self, self.extractor, turns)

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        with self._turns:
            return super().learn(lesson, told)


def live(
    name: str,
    state: Path,
    client: Client,
    make_learner: Callable[[FederationConfig], Learner],
    made: Callable[[Silo], None] = lambda silo: None,
    accept_pool: bool = False,
    among: Callable[[Local, Client], Circle] | None = None,
) -> None:
    """Run one enrolled silo until the federation is finished, and close its client. ``made`` is given it before.

    ``among``: makes what it has of other silos, where silos average.
    """
    try:
        local = Local(state)
        circle = among(local, client) if among is not None else None
        try:
            silo = Silo(name, local, client, make_learner, Display(bars=False), accept_pool, circle)
            made(silo)
            silo.run()
        finally:
            local.close()
    finally:
        client.close()


def host(
    address: str,
    folder: Path,
    tokens: Mapping[str, str],
    make_learner: Callable[[str, FederationConfig], Learner],
    grace_s: float = GRACE_S,
    accept_pool: bool = False,
) -> dict[str, BaseException]:
    """Enrol and run one silo for each token, in threads; returns the errors of those that did not finish.

    The first error stops the others; those that are not back within ``grace_s`` are left running.
    """
    failed: dict[str, BaseException] = {}
    silos: list[Silo] = []
    stopping, lock = threading.Event(), threading.Lock()

    def made(silo: Silo) -> None:
        with lock:
            silos.append(silo)
            if stopping.is_set():
                silo.stop()

    def one(name: str, token: str) -> None:
        state = folder / name
        try:
            enroll.join_patiently(Invitation.parse(token), state, address, stopping)
            if not stopping.is_set():
                live(name, state, Client(address, state), partial(make_learner, name), made, accept_pool)
        except BaseException as error:  # told to the caller: a thread has nobody else to tell
            with lock:
                failed[name] = error
                stopping.set()
                for silo in silos:
                    silo.stop()

    threads = [threading.Thread(target=one, args=pair, name=pair[0], daemon=True) for pair in tokens.items()]
    for thread in threads:
        thread.start()
    while not stopping.is_set() and any(thread.is_alive() for thread in threads):
        stopping.wait(LOOK_S)
    until = time.monotonic() + grace_s
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    with lock:
        return dict(failed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", nargs="+", metavar="NAME=TOKEN")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--trainings", type=int, default=1)
    parser.add_argument("--extractor", type=Path)
    parser.add_argument("--accept-pool", action="store_true")
    options = parser.parse_args(arguments)
    console.log_lines(verbose=False)
    console.one_heap()
    tokens = dict(pair.split("=", 1) for pair in options.tokens)
    order, turns = sorted(tokens), threading.Semaphore(options.trainings)

    def learner(name: str, config: FederationConfig) -> Learner:
        if options.data is None:
            return Perturber(order.index(name) + 1)
        return HostedLearner(config, options.data / name, options.extractor, turns)

    if options.data is not None:
        # As long as the federator takes to listen: silos that came before it did would back off, for seconds.
        from feddiff.silo import trainer  # noqa: F401
    failed = host(options.address, options.folder, tokens, learner, accept_pool=options.accept_pool)
    if not failed:
        return 0
    for name, error in reversed(failed.items()):  # the first one last, where it is looked for
        if not isinstance(error, FedDiffError):
            traceback.print_exception(error)
        reason = error.sentence if isinstance(error, FedDiffError) else repr(error)
        print(f"{name}: {' '.join(reason.split())}", file=sys.stderr, flush=True)
    # A silo that is still inside a long call would be torn down in the middle of it, and torch then aborts.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
