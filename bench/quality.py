"""Bytes against loss: the same number of training images, spent with more or fewer bytes on the wire.

``python -m feddiff.bench.quality`` trains the preset digits-8 in real federations of four silos, 60 passes over the
images in each, for three seeds, and prints one row for each combination: bytes on the wire in both directions (the
ledger's, everything counted), how many times fewer than the raw float32 weights of the literature's setting (FULL, one
local epoch a round) and than our lossless one, and the final validation loss beside it. Outcomes are kept in ``--out``;
what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from feddiff.bench import trial
from feddiff.bench.trial import Outcome
from feddiff.core import console
from feddiff.core.errors import ConfigError

SILOS = 4
PASSES = 60
BASELINE = "fp32"


@dataclass(frozen=True)
class Combination:
    """A way to save bytes: presets over the model's, and more of the federation's TOML."""

    epochs: int = 1
    """Local epochs of a round. The rounds follow: ``PASSES`` in all."""
    economy: str = ""
    rules: str = ""

    def toml(self, seed: int) -> str:
        """The federation's file."""
        presets = ["digits-8", *([self.economy] if self.economy else [])]
        return (
            f'name = "trial"\npreset = {json.dumps(presets)}\nseed = {seed}\n{self.rules}\n'
            f"[training]\nepochs = {self.epochs}\nthreads = 1\n"
            f"[rounds]\ncount = {PASSES // self.epochs}\nparticipants = {SILOS}\n"
        )


COMBINATIONS: Mapping[str, Combination] = {
    BASELINE: Combination(),
    "int8": Combination(rules='[codec]\nup = "int8"\ndown = "int8"'),
    "int4": Combination(rules='[codec]\nup = "int4"\ndown = "int4"'),
    "careful": Combination(epochs=4, economy="careful"),
    "thrifty": Combination(epochs=10, economy="thrifty"),
}


def outcome(name: str, seed: int, out: Path) -> Outcome:
    """Of one federation; from its file if it was run before."""
    rules = COMBINATIONS[name].toml(seed)
    place = out / f"{name.replace(' ', '-')}-{seed}.json"
    if place.exists():
        kept = json.loads(place.read_text())
        if kept.pop("rules") == rules:
            return Outcome(**kept)
    folder = out / place.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = trial.run(rules, SILOS, seed, folder)
    place.write_text(json.dumps(asdict(found) | {"rules": rules}, indent=1))
    shutil.rmtree(folder)
    return found


def table(found: Mapping[str, Sequence[Outcome]]) -> str:
    """One row for each combination; means over the seeds, and the spread of each seed's loss against the baseline's."""
    baseline = found[BASELINE]
    raw = [4 * each.parameters * 2 * SILOS * each.rounds for each in baseline]
    lines = [
        f"{'':<22}{'E':>3}{'rounds':>8}{'MB up':>9}{'MB down':>9}{'x raw':>8}{'x fp32':>8}{'loss':>9}"
        f"{'against fp32':>17}"
    ]
    for name, outcomes in found.items():
        pairs = list(zip(outcomes, baseline, strict=True))
        worse = [100 * (one.loss / other.loss - 1) for one, other in pairs]
        spread = f" (+-{statistics.stdev(worse):.1f})" if len(worse) > 1 else ""
        times_raw = statistics.mean(size / one.wire for one, size in zip(outcomes, raw, strict=True))
        times_fp32 = statistics.mean(other.wire / one.wire for one, other in pairs)
        lines.append(
            f"{name:<22}{COMBINATIONS[name].epochs:>3}{outcomes[0].rounds:>8}"
            f"{statistics.mean(each.up for each in outcomes) / 1e6:>9.2f}"
            f"{statistics.mean(each.down for each in outcomes) / 1e6:>9.2f}{times_raw:>8.1f}{times_fp32:>8.1f}"
            f"{statistics.mean(each.loss for each in outcomes):>9.4f}"
            f"{statistics.mean(worse):>+9.1f} %{spread}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="federations of each combination (default: 3)")
    parser.add_argument("--only", default=",".join(COMBINATIONS), help="combinations, by name, with commas between")
    parser.add_argument("--out", type=Path, default=Path("bench-run/quality"), help="where outcomes are kept")
    options = parser.parse_args(arguments)

    def run() -> int:
        wanted = [BASELINE, *(name for name in options.only.split(",") if name != BASELINE)]
        unknown = [name for name in wanted if name not in COMBINATIONS]
        if unknown or options.seeds < 1:
            raise ConfigError(f"--only {unknown[0] if unknown else ''!r}: known are {', '.join(COMBINATIONS)}")
        options.out.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Outcome]] = {name: [] for name in wanted}
        for seed in range(options.seeds):
            for name in wanted:
                began = time.monotonic()
                one = outcome(name, seed, options.out)
                found[name].append(one)
                took = time.monotonic() - began
                print(f"{name}, seed {seed}: loss {one.loss:.4f}, {one.wire / 1e6:.2f} MB, {took:.0f} s", flush=True)
        print(table(found))
        return 0

    return console.run("feddiff-bench-quality", run)


if __name__ == "__main__":
    sys.exit(main())
