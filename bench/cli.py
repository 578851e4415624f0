"""``feddiff-bench``: everything a researcher types to weigh bytes against quality.

Only parses and prints; imports what a command needs when it needs it, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from feddiff.core import console

FAILED = 1
_SHIPPED = ", ".join(sorted(path.stem for path in (Path(__file__).parent / "sweeps").glob("*.toml")))
_CODES = """\
exit codes: 0 done; 1 some cells failed (the others are done; run it again to try them anew); 2 wrong usage;
66 no images; 74 the disk; 78 a file or flag says what cannot be; 130 interrupted (run it again to go on)"""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="feddiff-bench",
        description="Sweeps of real federations, here or on a cluster: bytes on the wire against quality.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    partition = add("partition", "Deal a labelled folder of images to silos, as SILO/LABEL/IMAGE.")
    partition.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="LABEL/IMAGE (split folders: SILO/...), or an archive"
    )
    partition.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    partition.add_argument("--silos", type=int, metavar="K", help="how many (split folders: as many as there are)")
    partition.add_argument(
        "--split",
        default="iid",
        help="iid | dirichlet (label skew) | k-class | quantity (skewed sizes) | folders (default: iid)",
    )
    partition.add_argument("--beta", type=float, default=0.5, help="of dirichlet and quantity (default: 0.5)")
    partition.add_argument("--classes", type=int, default=2, help="of k-class: labels that a silo has (default: 2)")
    partition.add_argument("--least", type=int, default=1, help="images that each silo gets at least (default: 1)")
    partition.add_argument("--seed", type=int, default=0)
    partition.add_argument("--chart", type=Path, metavar="CHART.PNG", help="draw who has how many of which class")
    run = add("run", "Run the cells of a sweep that are not there yet.")
    run.add_argument("sweep", type=Path, metavar="SWEEP", help=f"a TOML file, or a shipped one: {_SHIPPED}")
    run.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder; go on with the same")
    run.add_argument("--data", type=Path, metavar="DIR", help="other images than the sweep names: a folder, an archive")
    run.add_argument("--test", type=Path, metavar="DIR", help="held-out ones; without it some of --data are held out")
    run.add_argument("--smoke", action="store_true", help="small: with the file's [smoke] on top")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (default: 1)")
    run.add_argument("--on", choices=("local", "ray", "slurm"), default="local", help="where (default: this machine)")
    run.add_argument("--ray", action="append", default=[], metavar="KEY=VALUE", help="of a cell's task: num_cpus=2")
    run.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="of a cell's job: partition=gpu, time=600"
    )
    cell = add("cell", "Run one cell of a run that `run` has prepared; what its launchers start.")
    cell.add_argument("run", type=Path, metavar="RUN")
    cell.add_argument("key", metavar="KEY")
    cell.add_argument("--share", type=int, default=1, metavar="N", help="cells at a time on this machine (default: 1)")
    features = add("features", "Train a small classifier on a labelled folder, as an extractor of features.")
    features.add_argument("--data", type=Path, required=True, metavar="DIR", help="LABEL/IMAGE, or an archive")
    features.add_argument("--out", type=Path, required=True, metavar="CONVNET.PT", help="a TorchScript file")
    features.add_argument("--size", type=int, default=32, help="images are brought to SIZE x SIZE (default: 32)")
    features.add_argument("--channels", type=int, choices=(1, 3), default=1, help="1 grey, 3 colour (default: 1)")
    features.add_argument("--epochs", type=int, help="default: by the number of images")
    features.add_argument("--seed", type=int, default=0)
    report = add("report", "Print a run's table; write report.html, charts, results.csv and results.json.")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN)")
    compare = add("compare", "Print what became of bytes, FID and loss in other runs, against the first.")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more")
    compare.add_argument("--json", action="store_true", help="as JSON, with the settings that not all have")
    return root


def main(arguments: list[str] | None = None) -> int:
    root = parser()
    options = root.parse_args(arguments)
    if options.command == "compare" and len(options.runs) < 2:
        root.error("compare needs two runs or more")
    commands = {"partition": _partition, "run": _sweep, "cell": _cell, "features": _features, "report": _report}
    commands |= {"compare": _compare}
    return console.run("feddiff-bench", lambda: commands[options.command](options))


def _partition(options: argparse.Namespace) -> int:
    from feddiff.bench import archive, dataset
    from feddiff.bench.partition import chart, split
    from feddiff.core.errors import ConfigError
    from feddiff.core.store import write_atomic

    dealt = split(options.split, options.beta, options.classes)
    if (options.silos is None) != (dealt.kind == "folders"):
        raise ConfigError("--silos is needed, but for --split folders")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ConfigError(f"{options.out} is not an empty folder; give a new one with --out")
    if options.seed < 0:
        raise ConfigError(f"--seed must be 0 or more (got {options.seed})")
    if options.chart is not None and not options.chart.parent.is_dir():
        raise ConfigError(f"--chart {options.chart}: its folder does not exist")
    by_silo = dealt.kind == "folders"
    with archive.opened(options.data, options.out, by_silo) as data:
        images = dataset.folder(data, by_silo)
        counts = images.deal(dealt, options.silos or len(images.silos), options.seed, options.least, options.out)
    for silo, by in counts.items():
        told = ", ".join(f"{label or 'no label'} {count}" for label, count in sorted(by.items()))
        print(f"{silo}: {sum(by.values())} images ({told})")
    if options.chart is not None:
        from feddiff.federator import charts

        write_atomic(options.chart, charts.png(chart(counts, f"{options.data.name}: {dealt}, seed {options.seed}")))
        print(f"{options.chart}: silo x class")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from feddiff.bench import campaign, sweep, table
    from feddiff.core.errors import ConfigError

    for name, given in (("ray", options.ray), ("slurm", options.slurm)):
        if given and options.on != name:
            raise ConfigError(f"--{name} {given[0]} goes with --on {name}")
    asked = sweep.load(options.sweep, options.smoke, options.data, options.test)
    failed = campaign.run(asked, options.out, options.jobs, _say, options.on, [*options.ray, *options.slurm])
    print(table.text(table.read(options.out)))
    return FAILED if failed else 0


def _cell(options: argparse.Namespace) -> int:
    from feddiff.bench import worker

    return 0 if worker.run(options.run, options.key, options.share, _say) else FAILED


def _say(line: str) -> None:
    print(line, flush=True)


def _features(options: argparse.Namespace) -> int:
    from feddiff.bench import archive, features

    def told(epoch: int, epochs: int) -> None:
        print(f"epoch {epoch} of {epochs}", file=sys.stderr, flush=True)

    settings = (options.size, options.channels, options.epochs, options.seed)
    with archive.opened(options.data, options.out) as data:
        print(features.train(data, options.out, *settings, progress=told))
    return 0


def _report(options: argparse.Namespace) -> int:
    from feddiff.bench import report, table

    entries = table.read(options.run)
    folder = options.out or options.run
    folder.mkdir(parents=True, exist_ok=True)
    print(table.text(entries))
    print(*table.write(entries, folder), *report.write(options.run, entries, folder), sep="\n")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from feddiff.bench import compare

    found = compare.compare(options.runs)
    print(found.json() if options.json else found.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
