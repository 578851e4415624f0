"""The results of a run, side by side: a text table with mean and spread over seeds, CSV and JSON of every cell."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from feddiff.bench.campaign import MARK
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.store import write_atomic
from feddiff.federator.measure import NONE

COLUMNS = ("down", "up", "encoded_down", "encoded_up", "down_parameters", "up_parameters", "raw", "images", "seconds")
"""Of a result's totals, in the CSV."""
COMPARED = ("fid", "kid", "precision", "recall", "class_kl")
COPIES = ("memorised", "copying", "authentic")
METRICS = (
    *((name, "test") for name in COMPARED),
    *((name, "training") for name in (*COMPARED, *COPIES)),
    ("inception_score", ""),
)
"""(metric, against), in the CSV."""
GAINS = ("api", "mpi", "pui")
Basis: TypeAlias = tuple[str, str, int, str | None, int | None]
BASIS = ("extractor", "extractor_digest", "samples", "sampler", "sampling_steps")
"""What metrics are comparable by, in the CSV."""
SHOWN = (("FID", "fid", 2), ("precision", "precision", 3), ("recall", "recall", 3))
"""Against the test images, in the text; with decimals."""


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
    """One row for all seeds of a setting: sizes in MB on the wire, how many times fewer than raw float32, losses.

    FID, precision and recall against the test images where they were measured, and what silos' own models gain over a
    global one; at the foot by what extractor and how many samples. What was measured otherwise has a row of its own,
    with a mark, and the foot says how.
    """
    groups: dict[tuple[str, Basis | None], list[Entry]] = {}
    for entry in entries:
        if entry.result is not None:
            groups.setdefault((entry.group, _basis(entry.result)), []).append(entry)
    wide = max((len(entry.label) for entry in entries), default=0) + 2
    bases = Counter(basis for (_, basis), group in groups.items() if basis is not None for _ in group)
    marks = {basis: "*" * place for place, (basis, _) in enumerate(bases.most_common())}
    heads = "".join(f"{head:>16}" for head, _, _ in SHOWN) if bases else ""
    gains = any((entry.result or {"quality": {}})["quality"].get("personalisation") for entry in entries)
    heads += "".join(f"{name.upper():>14}" for name in GAINS) if gains else ""
    lines = [
        f"{'':<{wide}}{'seeds':>5}{'rounds':>8}{'images':>10}{'MB down':>10}{'MB up':>9}{'x raw':>8}"
        f"{'training':>10}{'validation loss':>20}{heads}  of"
    ]
    for (_, basis), group in groups.items():
        results = [entry.result for entry in group if entry.result is not None]
        totals = [each["totals"] for each in results]
        rounds = len(results[0]["rounds"])
        found = [_spread([_metric(each, name, "test") for each in results], digits, True) for _, name, digits in SHOWN]
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
            f"{''.join(f'{each:>16}' for each in found) if bases else ''}"
            f"{''.join(f'{_gain(results, name):>14}' for name in GAINS) if gains else ''}"
            f"  {results[0]['quality']['of']}{f' {marks[basis]}' if basis is not None and marks[basis] else ''}"
        )
    lines += [
        f"{mark or 'FID, precision, recall against the test images'}: {_told(basis)}" for basis, mark in marks.items()
    ]
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
    metrics = [f"{name}_{against}" if against else name for name, against in METRICS]
    losses = ("loss", "validation_loss", "validation_of", "wall_seconds")
    writer.writerow(["key", *names, "parameters", *COLUMNS, *losses, *metrics, *GAINS, *BASIS])
    for entry, result in done:
        quality = result["quality"]
        writer.writerow(
            [
                entry.key,
                *(entry.settings[name] for name in names),
                result["parameters"],
                *(result["totals"].get(name) for name in (*COLUMNS, "loss")),
                quality["validation_loss"]["mean"],
                quality["of"],
                result["wall_seconds"],
                *(_metric(result, name, against) for name, against in METRICS),
                *((quality.get("personalisation") or {}).get(name) for name in GAINS),
                *(_basis(result) or (None,) * len(BASIS)),
            ]
        )
    write_atomic(folder / "results.csv", rows.getvalue().encode())
    write_atomic(folder / "results.json", json.dumps([result for _, result in done], indent=1).encode())
    return folder / "results.csv", folder / "results.json"


def _gain(results: Sequence[Mapping[str, Any]], name: str) -> str:
    """API, MPI or PUI, in percent."""
    return _spread([(each["quality"].get("personalisation") or {}).get(name) for each in results], 1, True)


def _metric(result: Mapping[str, Any], name: str, against: str) -> float | None:
    """The value of one number of a result's quality, where it has one."""
    rows = result["quality"].get("metrics", [])
    return next((row["value"] for row in rows if (row["metric"], row["against"]) == (name, against)), None)


def _basis(result: Mapping[str, Any]) -> Basis | None:
    """How a result's quality was measured: the values of ``BASIS``; None if only its loss was."""
    quality = result["quality"]
    row = next(iter(quality.get("metrics", [])), None)
    if row is None:
        return None
    return row["extractor"], row["digest"], row["samples"], quality.get("sampler"), quality.get("steps")


def _told(basis: Basis) -> str:
    extractor, digest, samples, sampler, steps = basis
    drawn = f" ({sampler}, {steps} steps)" if sampler else ""
    return f"extractor {extractor}, SHA-256 {digest[:12]}, {samples} samples{drawn}"


def _spread(values: Sequence[float | None], digits: int = 4, deviation: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    around = f" ±{statistics.stdev(known):.{digits}f}" if deviation and len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{around}"
