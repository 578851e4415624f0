"""Star against peers: how long a round takes, and what crosses the federator's line, by the number of silos.

``python -m feddiff.bench.topology`` gives each process a network namespace whose line is shaped to ``--rate`` each way,
runs rounds without training under both topologies, and prints a table; ``--chart FILE`` draws it, with the formulas
beyond what was measured. All silos begin with the model, so no round brings it. Needs root, ``ip`` and ``tc``.

    star   seconds = K (D + U) / rate              federator = K (D + U)
    peer   seconds = (K - 1) / K (D + U) / rate    federator = a few kilobytes for each silo

D and U are the bytes of one published version and of one update as they are encoded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from feddiff.bench import daemons
from feddiff.bench.loopback import free_port
from feddiff.bench.network import Network, Place
from feddiff.bench.processes import Processes
from feddiff.bench.row import FEDERATOR
from feddiff.bench.transport import PARAMETERS
from feddiff.core import console
from feddiff.core.codec import CODECS
from feddiff.core.config import load
from feddiff.core.errors import ConfigError
from feddiff.core.segments import Layout
from feddiff.federator import site
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal
from feddiff.federator.ledger import Ledger
from feddiff.federator.tally import Tally

TOPOLOGIES = ("star", "peer")
PATIENCE_S = 7200.0
_RULES = """\
name = "topology"
preset = "digits-16"
initial = "seed"
topology = "{topology}"
[codec]
up = "{codec}"
down = "{codec}"
[rounds]
count = {rounds}
participants = {silos}
"""


@dataclass(frozen=True)
class Row:
    """One run: medians of the rounds after the first. Sizes in bytes."""

    topology: str
    silos: int
    parameters: int
    codec: str
    rate: float
    """Bits a second, each way, of every line."""
    round_s: float
    """From the end of one round to the end of the next."""
    federator: float
    """Crossed the federator's line in a round, both ways."""
    update: float
    """Encoded bytes of one silo's update."""
    publication: float
    """Encoded bytes of one version."""

    @property
    def network_s(self) -> float:
        """What the lines alone take, by the formula."""
        return seconds(self.topology, self.silos, self.update, self.publication, self.rate)


def seconds(topology: str, silos: int, update: float, publication: float, rate: float) -> float:
    """The closed formula of a round's transfers on lines of ``rate`` bits a second."""
    times = silos if topology == "star" else (silos - 1) / silos
    return times * 8 * (update + publication) / rate


def measure(
    topology: str, layout: Layout, rounds: int, codec: str, rate: float, places: Sequence[Place], folder: Path
) -> Row:
    """Run one federation, the federator in the first place and a silo in each of the others. Raises FedDiffError."""
    home, silos = folder / "federator", len(places) - 1
    address = f"{places[0].address}:{free_port()}"
    site.init(home, "topology", "digits-16", address, [])
    config = home / "federation.toml"
    config.write_text(_RULES.format(topology=topology, codec=codec, rounds=rounds, silos=silos))
    load(config)
    daemons.prepare(home, layout)
    tokens = {f"silo-{number:02}": site.invite(config, f"silo-{number:02}", "1d") for number in range(1, silos + 1)}
    python = (sys.executable, "-m")
    with Processes(folder) as processes:
        serve = ("feddiff.federator.cli", "serve", "--config", str(config))
        processes.start(FEDERATOR, [*places[0].prefix, *python, *serve])
        processes.wait_for(FEDERATOR, "port ")
        for (name, token), place in zip(tokens.items(), places[1:], strict=True):
            listen = "" if topology == "star" else f"{place.address}:{free_port()}"
            silo = ("feddiff.bench.neighbour", address, str(folder / "silos"), name, token)
            initial = str(home / "initial.safetensors")
            processes.start(name, [*place.prefix, *python, *silo, initial, listen])
        for name in (FEDERATOR, *tokens):
            processes.wait(name, PATIENCE_S)
    return _row(topology, layout, codec, rate, silos, home)


def _row(topology: str, layout: Layout, codec: str, rate: float, silos: int, home: Path) -> Row:
    database = Database(home / "federation.db")
    try:
        ledger, tally = Ledger(database), Tally(database)
        closed = [each.closed_at or 0.0 for each in Journal(database).rounds()]
        later = range(2, len(closed) + 1)
        crossed = [ledger.wire("down", each) + ledger.wire("up", each) for each in later]
        encoded = {"update": 0.0, "result": 0.0}
        last = len(closed)
        for flow in tally.flows():
            if flow.round == last and flow.kind in encoded:
                encoded[flow.kind] += flow.encoded / (silos - 1)  # less what owners have of themselves: one whole
        for entry in ledger.entries(last) if topology == "star" else ():
            encoded["update" if entry.direction == "up" else "result"] += entry.encoded / silos
        took = [closed[each - 1] - closed[each - 2] for each in later]
        return Row(
            topology,
            silos,
            layout.size,
            codec,
            rate,
            median(took),
            median(crossed),
            encoded["update"],
            encoded["result"],
        )
    finally:
        database.close()


def table(rows: Sequence[Row]) -> str:
    """Of both topologies beside each other."""
    lines = [
        "| K | star, s | peer, s | times | by the lines alone | federator in the star, MB | with peers, MB | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for silos in sorted({row.silos for row in rows}):
        found = {row.topology: row for row in rows if row.silos == silos}
        if len(found) < len(TOPOLOGIES):
            continue
        star, peer = found["star"], found["peer"]
        lines.append(
            f"| {silos} | {star.round_s:.1f} | {peer.round_s:.1f} | {star.round_s / peer.round_s:.1f} |"
            f" {star.network_s:.1f} and {peer.network_s:.1f} | {star.federator / 1e6:.1f} |"
            f" {peer.federator / 1e6:.2f} | {100 * peer.federator / star.federator:.2f} % |"
        )
    return "\n".join(lines)


def chart(rows: Sequence[Row], path: Path) -> None:
    """Round time and federator bytes against K: measured as points, by the formula as lines, up to K = 64."""
    import matplotlib as mpl

    mpl.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "feddiff"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    ks = list(range(2, 65))
    update, publication = (median(getattr(row, name) for row in rows) for name in ("update", "publication"))
    rate = rows[0].rate
    for topology, colour in zip(TOPOLOGIES, ("#b5542c", "#2a6f97"), strict=True):
        mine = [row for row in rows if row.topology == topology]
        each = median(row.federator / row.silos for row in mine)
        left.plot(ks, [seconds(topology, k, update, publication, rate) for k in ks], color=colour, lw=1)
        left.plot([r.silos for r in mine], [r.round_s for r in mine], "o", color=colour, label=topology)
        right.plot(ks, [k * each / 1e6 for k in ks], color=colour, lw=1)
        right.plot([r.silos for r in mine], [r.federator / 1e6 for r in mine], "o", color=colour, label=topology)
    for axes, name in ((left, "seconds a round"), (right, "MB a round at the federator")):
        axes.set(xscale="log", yscale="log", xlabel="silos", ylabel=name)
        axes.set_xticks([2, 4, 8, 16, 32, 64], labels=["2", "4", "8", "16", "32", "64"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-topology", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--silos", default="2,4,8", help="numbers of silos (default: 2,4,8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help=f"in the model (default: {PARAMETERS})")
    parser.add_argument("--rate", type=float, default=50, help="Mbit/s of each line, each way (default: 50)")
    parser.add_argument("--codec", choices=CODECS, default="fp32")
    parser.add_argument("--only", choices=TOPOLOGIES, help="one topology (default: both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line for each run, added to the file")
    parser.add_argument("--from", dest="known", type=Path, metavar="FILE", help="such lines instead of measuring")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    options = parser.parse_args(arguments)
    return console.run("feddiff-bench-topology", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    rows: list[Row] = []
    if options.known is not None:
        rows = [Row(**json.loads(line)) for line in options.known.read_text().splitlines()]
    elif options.rounds < 2:
        raise ConfigError("--rounds: at least 2, for the first is not counted")
    for silos in () if options.known is not None else (int(number) for number in options.silos.split(",")):
        for topology in [options.only] if options.only else TOPOLOGIES:
            folder = Path(tempfile.mkdtemp(prefix="feddiff-topology-"))
            rate = options.rate * 1e6
            with Network(silos + 1, rate) as places:
                layout = daemons.layout_of(options.parameters)
                row = measure(topology, layout, options.rounds, options.codec, rate, places, folder)
            rows.append(row)
            print(f"{topology}, K={silos}: {row.round_s:.1f} s a round", file=sys.stderr)
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
            shutil.rmtree(folder)
    print(table(rows))
    if options.chart is not None:
        chart(rows, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
