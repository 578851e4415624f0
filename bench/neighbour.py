"""A silo of the topologies' benchmark: production's code, which only moves the weights a little.

``python -m feddiff.bench.neighbour ADDRESS FOLDER NAME TOKEN INITIAL LISTEN``: it begins with the weights in INITIAL,
as if it had made them from the federation's seed, and listens for other silos where LISTEN says, if anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from feddiff.bench.host import live
from feddiff.bench.perturb import Perturber
from feddiff.core import console
from feddiff.core.identity import Invitation
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader
from feddiff.silo import enroll
from feddiff.silo.client import Client
from feddiff.silo.peers.circle import Circle


class Beginner(Perturber):
    """Knows the model that all begin with."""

    def __init__(self, samples: int, initial: Path) -> None:
        super().__init__(samples)
        self._initial = initial

    def initial(self) -> Mapping[str, F32]:
        with WeightsReader(self._initial) as reader:
            return {name: reader.read(name) for name in reader.names}


def main() -> int:
    address, folder, name, token, initial, listen = sys.argv[1:]
    console.log_lines(verbose=False)
    console.one_heap()

    def run() -> int:
        state = Path(folder) / name
        enroll.join(Invitation.parse(token), state, address)
        learner = Beginner(int(name.rpartition("-")[2]), Path(initial))
        live(
            name,
            state,
            Client(address, state),
            lambda _: learner,
            among=lambda local, client: Circle(name, local, address, listen, renewal=client.renewal),
        )
        return 0

    return console.run("neighbour", run)


if __name__ == "__main__":
    sys.exit(main())
