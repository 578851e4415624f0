"""What a scrape of the federator costs after many rounds: ``python tests/perf/scrape.py``; nothing is asserted.

Fills a ledger with rounds x silos x segments x both directions through the production classes, then tells the time of
a scrape, its size, and how long the federation's lock is held by the part that needs it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from feddiff.core.config import from_table
from feddiff.core.quality import Measured
from feddiff.core.segments import cut
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Entry
from feddiff.federator.metrics import FederatorMetrics
from feddiff.federator.operator import status

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=1000)
parser.add_argument("--silos", type=int, default=50)
parser.add_argument("--segments", type=int, default=12)
options = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    layout = cut([(f"up_blocks.{number}.weight", [10]) for number in range(options.segments)])
    database = Database(Path(folder) / "federation.db")
    federation = Federation(Path(folder), from_table({"preset": "digits-16"}, "perf"), layout, database)
    silos = [f"hospital-{number:02}" for number in range(options.silos)]
    began = time.perf_counter()
    for silo in silos:
        federation.roster.invite(silo, b"", silo, 2e9)
        federation.roster.enroll(silo, silo, silo, 1, 1e9)
    for round in range(1, options.rounds + 1):
        with database.transaction():
            federation.ledger.add(
                *(
                    Entry(round, silo, name, way, 10, 1 << 20, 1 << 18, 1 << 18, 0, 0.1)
                    for silo in silos
                    for name in (OVERHEAD, *layout.names)
                    for way in ("down", "up")
                )
            )
            for silo in silos:
                federation.journal.measure(round, silo, {"loss": 1 / round, "seconds": 60.0})
                if round % 10 == 0:
                    fid = Measured("fid", 10 / round, None, 500, 500, "own training images", "inception", "d")
                    federation.ledger.measure(round, silo, [fid])
    rows = federation.ledger.totals()
    print(f"{options.rounds} rounds, {len(rows)} series of bytes, made in {time.perf_counter() - began:.0f} s")
    registry = CollectorRegistry()
    registry.register(FederatorMetrics(federation))
    times, size = [], 0
    for _ in range(10):
        began = time.perf_counter()
        size = len(generate_latest(registry))
        times.append(time.perf_counter() - began)
    print(f"a scrape: {1e3 * min(times):.1f} ms at best, {1e3 * max(times):.1f} ms at worst, {size / 1e3:.0f} kB")
    began = time.perf_counter()
    status(federation, live=True)
    print(f"of which under the federation's lock: {1e3 * (time.perf_counter() - began):.1f} ms")
