"""How much of a long, lossy line the transport uses, against iperf3 over the same line.

``make bench-link`` puts a federator and one silo into two network namespaces with such a line between them. Each round
the silo fetches and submits a model, and between the two iperf3 carries as many bytes each way: so both meet the same
line in turn, several times, for losses make single runs differ. Needs root, ``ip`` and ``iperf3``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from feddiff.bench import daemons
from feddiff.bench.line import Shape, line
from feddiff.bench.network import check_allowed
from feddiff.bench.processes import Processes
from feddiff.bench.row import FEDERATOR
from feddiff.core import console
from feddiff.core.codec import CODECS
from feddiff.core.errors import ConfigError
from feddiff.federator import site

SHARE = 0.8
"""Of iperf3's rate, that a transfer is meant to reach."""
PATIENCE_S = 7200.0
WAYS = {"down": "Fetch (down)", "up": "Submit (up)"}


def measure(
    shape: Shape, parameters: int, rounds: int, codec: str, congestion: str, folder: Path
) -> tuple[dict[tuple[str, str], list[float]], str]:
    """Payload rates in bits a second by (``feddiff`` | ``iperf3``, ``down`` | ``up``), and what made the line.

    Raises ConfigError, FedDiffError.
    """
    with line(shape, folder, congestion) as (near, far, made_by), Processes(folder) as processes:
        layout = daemons.layout_of(parameters)
        config, address = daemons.found(folder / "federator", layout, rounds, codec, (near, far))
        token = site.invite(config, "silo", "1d")
        python = (sys.executable, "-m")
        processes.start("iperf3", [*near.prefix, "iperf3", "-s"])
        processes.start(FEDERATOR, [*near.prefix, *python, "feddiff.federator.cli", "serve", "--config", str(config)])
        processes.wait_for(FEDERATOR, "port ")
        silo = ("feddiff.bench.timed", address, str(folder / "silo"), "silo", token, near.address)
        processes.start("silo", [*far.prefix, *python, *silo])
        processes.wait("silo", PATIENCE_S)
    rates: dict[tuple[str, str], list[float]] = {}
    for text in processes.log("silo").read_text().splitlines():
        if text.startswith("{"):
            told = json.loads(text)
            rates.setdefault((told["who"], told["way"]), []).append(float(told["rate"]))
    return rates, made_by


def table(rates: Mapping[tuple[str, str], list[float]]) -> str:
    """Medians in Mbit/s, with the least and the most, and ours as a share of iperf3's."""
    lines = ["| | feddiff, Mbit/s | iperf3, Mbit/s | share |", "|---|---|---|---|"]
    for way, name in WAYS.items():
        ours, theirs = rates["feddiff", way], rates["iperf3", way]
        share = statistics.median(ours) / statistics.median(theirs)
        lines.append(f"| {name} | {_spread(ours)} | {_spread(theirs)} | {100 * share:.0f} % |")
    return "\n".join(lines)


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates) / 1e6:.1f} ({min(rates) / 1e6:.1f}-{max(rates) / 1e6:.1f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-link", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay", type=float, default=50, help="ms, each way (default: 50)")
    parser.add_argument("--loss", type=float, default=1, help="%% of the packets, each way (default: 1)")
    parser.add_argument("--rate", type=float, default=200, help="Mbit/s (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--parameters", type=int, default=35_750_000, help="in the model, 4 bytes each")
    parser.add_argument("--codec", choices=CODECS, default="fp32")
    parser.add_argument("--congestion", default="", help="TCP's congestion control, e.g. cubic (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every rate, added to the file")
    options = parser.parse_args(arguments)
    return console.run("feddiff-bench-link", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    check_allowed()
    if shutil.which("iperf3") is None:
        raise ConfigError("there is no iperf3 here to compare with; install it (Debian: apt-get install iperf3)")
    shape = Shape(options.delay / 1e3, options.loss / 100, options.rate * 1e6)
    folder = Path(tempfile.mkdtemp(prefix="feddiff-link-"))
    rates, made_by = measure(shape, options.parameters, options.rounds, options.codec, options.congestion, folder)
    print(f"{shape} ({made_by}); {options.rounds} rounds, alternating; payload rates, medians (least-most)\n")
    print(table(rates))
    for way in WAYS:
        share = statistics.median(rates["feddiff", way]) / statistics.median(rates["iperf3", way])
        print(f"{'met   ' if share >= SHARE else 'MISSED'} {way}: {share:.2f} of iperf3, at least {SHARE:g}")
    if options.json is not None:
        with options.json.open("a") as lines:
            found = [{"who": who, "way": way, "rates": each} for (who, way), each in rates.items()]
            lines.write(json.dumps({**vars(options), "json": None, "made_by": made_by, "found": found}) + "\n")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
