"""The results of a run, side by side: a text table with mean and spread over seeds, CSV and JSON of every cell."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddiff.bench.campaign import MARK
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.store import write_atomic
from feddiff.federator.measure import NONE

COLUMNS = ("down", "up", "encoded_down", "encoded_up", "raw", "images", "seconds", "loss")
"""Of a result's totals, in the CSV."""


@dataclass(frozen=True)
class Entry:
    """A cell of the sweep that was run last."""

    key: str
    label: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any] | None
    """None while there is none."""
    failure: str

    @property
    def group(self) -> str:
        """The same for cells that differ in their seed only."""
        return json.dumps({name: value for name, value in self.settings.items() if name != "seed"}, sort_keys=True)


def read(run: Path) -> list[Entry]:
    """The cells of a run, in order. Raises ConfigError for another folder, StoreError for a damaged file."""
    if not (run / MARK).exists():
        raise ConfigError(f"{run} is not the folder of a run; `feddiff-bench run SWEEP --out {run}` makes one")
    found = []
    try:
        for each in json.loads((run / MARK).read_text())["cells"]:
            place, failed = run / "cells" / f"{each['key']}.json", run / "cells" / f"{each['key']}.failed"
            result = json.loads(place.read_text()) if place.exists() else None
            reason = failed.read_text().strip() if failed.exists() and result is None else ""
            found.append(Entry(each["key"], each["label"], each["settings"], result, reason))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{run} cannot be read: {error!r}; remove the damaged file and run the sweep again") from None
    return found


def text(entries: Sequence[Entry]) -> str:
    """One row for all seeds of a setting: sizes in MB on the wire, how many times fewer than raw float32, losses."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    wide = max((len(entry.label) for entry in entries), default=0) + 2
    lines = [
        f"{'':<{wide}}{'seeds':>5}{'rounds':>8}{'images':>10}{'MB down':>10}{'MB up':>9}{'x raw':>8}"
        f"{'training':>10}{'validation loss':>20}  of"
    ]
    for group in groups.values():
        results = [entry.result for entry in group if entry.result is not None]
        if not results:
            continue
        totals = [each["totals"] for each in results]
        rounds = len(results[0]["rounds"])
        wire = [each["down"] + each["up"] for each in totals]
        times = statistics.mean(each["raw"] / size if size else 0.0 for each, size in zip(totals, wire, strict=True))
        lines.append(
            f"{group[0].label:<{wide}}{len(results):>5}{rounds or NONE:>8}"
            f"{statistics.mean(each['images'] for each in totals):>10.0f}"
            f"{statistics.mean(each['down'] for each in totals) / 1e6:>10.2f}"
            f"{statistics.mean(each['up'] for each in totals) / 1e6:>9.2f}"
            f"{f'{times:.1f}' if times else NONE:>8}"
            f"{_spread([each['loss'] for each in totals]):>10}"
            f"{_spread([each['quality']['validation_loss']['mean'] for each in results], deviation=True):>20}"
            f"  {results[0]['quality']['of']}"
        )
    missing = [entry for entry in entries if entry.result is None]
    lines += [f"failed: {entry.key}: {entry.failure}" for entry in missing if entry.failure]
    waiting = sum(not entry.failure for entry in missing)
    return "\n".join(lines + ([f"{waiting} of {len(entries)} cells are not run yet"] if waiting else []))


def write(entries: Sequence[Entry], folder: Path) -> tuple[Path, Path]:
    """``results.csv``, a row for each finished cell, and ``results.json``, all of them whole; returns the two paths."""
    done = [(entry, entry.result) for entry in entries if entry.result is not None]
    rows = io.StringIO()
    names = list(done[0][0].settings) if done else []
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["key", *names, "parameters", *COLUMNS, "validation_loss", "validation_of", "wall_seconds"])
    for entry, result in done:
        quality = result["quality"]
        writer.writerow(
            [
                entry.key,
                *(entry.settings[name] for name in names),
                result["parameters"],
                *(result["totals"][name] for name in COLUMNS),
                quality["validation_loss"]["mean"],
                quality["of"],
                result["wall_seconds"],
            ]
        )
    write_atomic(folder / "results.csv", rows.getvalue().encode())
    write_atomic(folder / "results.json", json.dumps([result for _, result in done], indent=1).encode())
    return folder / "results.csv", folder / "results.json"


def _spread(values: Sequence[float | None], deviation: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    around = f" ±{statistics.stdev(known):.4f}" if deviation and len(known) > 1 else ""
    return f"{statistics.mean(known):.4f}{around}"
