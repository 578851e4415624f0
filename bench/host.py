"""Several silos in one process, each with its own folder, certificate and connection: the very code of production.

``python -m feddiff.bench.host ADDRESS FOLDER NAME=TOKEN [NAME=TOKEN ...]`` runs them until the federation is finished;
with ``--data DIR`` they train on DIR/NAME, without it they only move the weights a little.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from feddiff.bench.perturb import Perturber
from feddiff.core import console
from feddiff.core.config import FederationConfig
from feddiff.core.identity import Invitation
from feddiff.silo import enroll
from feddiff.silo.client import Client
from feddiff.silo.daemon import Silo
from feddiff.silo.display import Display
from feddiff.silo.learner import ImageLearner, Learner
from feddiff.silo.local import Local


def live(name: str, state: Path, client: Client, make_learner: Callable[[FederationConfig], Learner]) -> None:
    """Run one enrolled silo until the federation is finished, and close its client."""
    try:
        local = Local(state)
        try:
            Silo(name, local, client, make_learner, Display(bars=False)).run()
        finally:
            local.close()
    finally:
        client.close()


def host(
    address: str,
    folder: Path,
    tokens: Mapping[str, str],
    make_learner: Callable[[str, FederationConfig], Learner],
) -> dict[str, BaseException | None]:
    """Enrol and run one silo for each token, in threads; returns how each ended (None: finished)."""
    ended: dict[str, BaseException | None] = {}

    def one(name: str, token: str) -> None:
        state = folder / name
        try:
            enroll.join_patiently(Invitation.parse(token), state, address, threading.Event())
            live(name, state, Client(address, state), lambda config: make_learner(name, config))
            ended[name] = None
        except BaseException as error:  # reported to the caller: a thread has nobody else to tell
            ended[name] = error

    threads = [threading.Thread(target=one, args=pair, name=pair[0]) for pair in tokens.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", nargs="+", metavar="NAME=TOKEN")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args(arguments)
    console.log_lines(verbose=False)
    console.one_heap()
    tokens = dict(pair.split("=", 1) for pair in options.tokens)
    order = sorted(tokens)

    def learner(name: str, config: FederationConfig) -> Learner:
        if options.data is None:
            return Perturber(order.index(name) + 1)
        return ImageLearner(config, options.data / name)

    ended = host(options.address, options.folder, tokens, learner)
    for name, error in ended.items():
        if error is not None:
            print(f"{name}: {error!r}", file=sys.stderr)
    return int(any(error is not None for error in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
