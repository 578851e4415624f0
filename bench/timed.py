"""A silo that times its own transfers, and lets iperf3 run over the same line between them.

``python -m feddiff.bench.timed ADDRESS FOLDER NAME TOKEN IPERF_HOST``: production's silo without training. Each round
it fetches, has iperf3 carry as many bytes down and up, and submits; every one of the four is a JSON line on stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from feddiff.bench.host import live
from feddiff.bench.perturb import Perturber
from feddiff.core import console
from feddiff.core.errors import FedDiffError
from feddiff.core.identity import Invitation
from feddiff.core.transfer import Chunk, Commit, Receiver, Sender
from feddiff.silo import enroll, learner
from feddiff.silo.client import Client
from feddiff.silo.learner import Learned

Told = Callable[[Chunk | Commit], None]
ATTEMPTS = 5
"""An iperf3 server that has hardly let go of one test refuses the next."""


class TimedClient(Client):
    """Says how long each transfer took, from the first question to the last acknowledgement."""

    moved = 0
    """Payload bytes of the last transfer."""

    def fetch(self, round: int, receiver: Receiver, told: Told) -> None:
        self._timed("down", partial(super().fetch, round, receiver), told)

    def submit(self, round: int, sender: Sender, told: Told) -> None:
        self._timed("up", partial(super().submit, round, sender), told)

    def _timed(self, way: str, move: Callable[[Told], None], told: Told) -> None:
        self.moved = 0

        def count(part: Chunk | Commit) -> None:
            self.moved += len(part.payload) if isinstance(part, Chunk) else 0
            told(part)

        began = time.monotonic()
        move(count)
        _tell("feddiff", way, 8 * self.moved / (time.monotonic() - began))


class Racer(Perturber):
    """Has iperf3 carry what the silo has just fetched, both ways, where it would train."""

    def __init__(self, client: TimedClient, host: str) -> None:
        super().__init__(1)
        self._client, self._host = client, host

    def learn(self, lesson: learner.Lesson, told: learner.Told) -> Learned | None:
        for way, flags in (("down", ("-R",)), ("up", ())):
            _tell("iperf3", way, self._iperf3(*flags))
        return super().learn(lesson, told)

    def _iperf3(self, *flags: str) -> float:
        """Bits a second that arrived. Raises FedDiffError."""
        command = ["iperf3", "-c", self._host, "-n", str(self._client.moved), "-J", *flags]
        for _ in range(ATTEMPTS):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = json.loads(done.stdout or "{}")
            if done.returncode == 0 and "error" not in found:
                return float(found["end"]["sum_received"]["bits_per_second"])
            time.sleep(1)
        raise FedDiffError(f"iperf3: {found.get('error', done.stderr)}")


def _tell(who: str, way: str, rate: float) -> None:
    print(json.dumps({"who": who, "way": way, "rate": rate}), flush=True)


def main() -> int:
    console.log_lines(verbose=False)
    address, folder, name, token, host = sys.argv[1:]
    state = Path(folder)
    enroll.join_patiently(Invitation.parse(token), state, address, threading.Event())
    client = TimedClient(address, state)
    live(name, state, client, lambda _: Racer(client, host))
    return 0


if __name__ == "__main__":
    sys.exit(main())
