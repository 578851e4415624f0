"""What the audit log costs: ``python tests/perf/audit_cost.py [ROUNDS]``.

Plays rounds of 50 silos x 12 segments into one; prints the time of each step, and what 1000 rounds come to.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path

from feddiff.federator import examiner, notary
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal
from feddiff.federator.notary import Notary
from feddiff.federator.planner import Assignment, Plan

SILOS, SEGMENTS = [f"hospital-{n:02}" for n in range(50)], [f"part.{n}" for n in range(12)]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        notary.found(folder)
        database = Database(folder / "federation.db")
        journal, writer = Journal(database), Notary(folder, database)
        assignments = tuple(Assignment(silo, tuple(SEGMENTS), tuple(SEGMENTS), (), "") for silo in SILOS)
        segment, last, writing = Clock(), Clock(), Clock()
        entries = 0
        for number in range(1, rounds + 1):
            journal.open(Plan(number, "full", assignments, "everything"), dict.fromkeys(SILOS, 1000), 0.0, "")
            for silo in SILOS:
                for name in SEGMENTS:
                    digest = hashlib.sha256(f"{number} {silo} {name}".encode()).digest()
                    with last if name == SEGMENTS[-1] else segment:
                        journal.commit_update(number, silo, name, digest, 0.0, SEGMENTS)
            made = dict.fromkeys(SEGMENTS, number)
            journal.publish(made, number, tuple(SILOS), 0.0, dict.fromkeys(SEGMENTS, "0" * 64))
            with writing:
                entries += writer.write()
        verifying = Clock()
        with verifying:
            examiner.verify(folder / "federation.toml", None, None, None)
        size = (folder / notary.LOG).stat().st_size * 1000 / rounds
        print(f"{entries} entries of {rounds} rounds, {len(SILOS)} silos x {len(SEGMENTS)} segments")
        print(f"committing a segment: {segment.each(segment.times)}")
        print(f"the last of an update, with its entry: {last.each(last.times)}")
        print(f"an entry signed, appended, synced and settled: {writing.each(entries)}")
        print(f"an entry verified: {verifying.each(entries)}")
        print(f"1000 rounds: {size / 1e6:.1f} MB, {writing.cpu / rounds * 1000:.0f} s of CPU to write them")


class Clock:
    """Adds up what is done inside it."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.times = 0.0, 0.0, 0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        self.times += 1

    def each(self, count: int) -> str:
        return f"{self.wall / count * 1e3:.3f} ms, of CPU {self.cpu / count * 1e3:.3f} ms"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
