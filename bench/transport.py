"""A round without training: what it costs of time, CPU, wire and memory, ours beside others on the same job.

``make bench-transport`` runs this project with several codecs and, as a reference, bare gRPC streams of the same bytes;
``make bench-transport PEERS=DIR`` also the floor (bare TLS sockets) and every framework that the folder has a driver
for, in the same run. One table, rounds after the first; ``--json`` keeps every row.

The model is as large as ``--parameters`` says, cut like a UNet; ``--largest`` puts that many into one single tensor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from feddiff.bench import daemons, peers, stream
from feddiff.bench.network import LOOPBACK, Network, Place
from feddiff.bench.row import Row, table
from feddiff.bench.targets import OURS, judged
from feddiff.core import console
from feddiff.core.codec import CODECS
from feddiff.core.errors import ConfigError, FedDiffError

PARAMETERS = 35_750_000
"""Of the common job: a UNet for 32x32 images (Ho et al. 2020)."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-transport", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--silos", default="4", help="one or several numbers, e.g. 4,16 (default: 4)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--codecs", default="fp32,int8,int4", help="of our rows (default: fp32,int8,int4)")
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help=f"in the model (default: {PARAMETERS})")
    parser.add_argument("--largest", type=int, default=0, help="values in its largest tensor (default: a tenth)")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of the peers' harness; needs root and ip")
    parser.add_argument("--scratch", type=Path, help="where the peers' environments are made (their own default)")
    parser.add_argument("--only", default="", help="of stream, feddiff, floor, and peers by name; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line for each row, added to the file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the folders and logs here")
    options = parser.parse_args(arguments)
    return console.run("feddiff-bench-transport", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    codecs = options.codecs.split(",")
    if unknown := set(codecs) - CODECS.keys():
        raise ConfigError(f"there is no codec {min(unknown)!r}; known: {', '.join(CODECS)}")
    others = peers.frameworks(options.peers) if options.peers else []
    wanted = options.only.split(",") if options.only else ["stream", "feddiff", *others]
    if unknown := set(wanted) - {"stream", "feddiff", *others}:
        raise ConfigError(f"there is no row {min(unknown)!r}; known here: {', '.join(['stream', 'feddiff', *others])}")
    rows: list[Row] = []
    for silos in (int(number) for number in options.silos.split(",")):
        for row in _rows(options, silos, codecs, wanted):
            rows.append(row)
            print(
                f"{row.name}, K={silos}: {row.error or f'{row.round_s or row.first_round_s or 0:.2f} s'}",
                file=sys.stderr,
            )
            if options.json is not None:
                with options.json.open("a") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
    print(f"{options.parameters} parameters, {options.rounds} rounds, rounds after the first:\n")
    print(table(rows))
    print("\n".join(["", *judged(rows)]))
    return int(any(row.error for row in rows))


def _rows(options: argparse.Namespace, silos: int, codecs: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    layout = daemons.layout_of(options.parameters, options.largest)
    if "stream" in wanted:
        for message in stream.MESSAGES:
            run = partial(stream.measure, options.parameters, message, options.rounds)
            yield _ours(options, silos, f"{stream.ROW}, {message >> 10} KiB", run)
    if "feddiff" in wanted:
        for codec in codecs:
            yield _ours(options, silos, f"{OURS}{codec}", partial(daemons.measure, layout, options.rounds, codec))
    for name in wanted:
        if name not in ("stream", "feddiff"):
            yield peers.measure(options.peers, name, silos, options.rounds, options.parameters, options.scratch)


def _ours(options: argparse.Namespace, silos: int, name: str, measure: Callable[[Sequence[Place], Path], Row]) -> Row:
    """One run of our own: on loopback, or beside peers in namespaces as theirs."""
    folder = Path(tempfile.mkdtemp(prefix="feddiff-transport-", dir=options.keep))
    with contextlib.ExitStack() as network:
        places = network.enter_context(Network(silos + 1)) if options.peers else [LOOPBACK] * (silos + 1)
        try:
            row = measure(places, folder)
        except FedDiffError as error:
            return Row(name, silos, options.parameters, error=f"{error} (logs: {folder})")
    if options.keep is None:
        shutil.rmtree(folder)
    return replace(row, network="namespaces" if options.peers else "loopback")


if __name__ == "__main__":
    sys.exit(main())
