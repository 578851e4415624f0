"""What was measured, put together for people: a row is one model after one round, with all that its numbers rest on.

Between the ledger, whose readings come in as plain data, and whoever shows them: log, command line and report. Silos
may be taken together as one row, their mean. Values with another extractor, number of samples or reference than the
newest row of their model carry a mark: the lower of two FIDs that are not comparable means nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from feddiff.core.quality import Measured
from feddiff.federator.ledger import GLOBAL, Reading
from feddiff.federator.measure import NONE

METRICS = {
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception score",
    "class_kl": "class KL",
    "validation_loss": "validation loss",
}
"""The order in which they are told, and what people call them; others follow by their own names."""
SHOWN = 8
"""Figures of a digest."""
INCOMPARABLE = "†"
_Basis: TypeAlias = tuple[int, str, str, str]
"""Samples, extractor, digest, reference."""


@dataclass(frozen=True)
class Row:
    """One model after one round, or the mean of several silos' own models."""

    round: int
    model: str
    values: Mapping[str, float]
    spreads: Mapping[str, float]
    cautions: Mapping[str, tuple[str, ...]]
    samples: str
    against: str
    """The reference, and how many images it has."""
    extractor: str
    """Its name and the beginning of its digest."""
    digest: str
    silos: int = 0
    """How many models this is the mean of; 0 for a single one."""

    @property
    def comparable(self) -> tuple[str, ...]:
        """The same for rows of one model whose values can be compared."""
        # Of silos' means the number of images changes with who took part; that is no other way to measure.
        against = self.against.partition(" (")[0] if self.silos else self.against
        return self.samples, against, self.extractor, self.digest

    @property
    def basis(self) -> str:
        return ", ".join(each for each in (f"{self.samples} samples", self.against, self.extractor) if each)


def rows(readings: Iterable[Reading], together: bool = False) -> list[Row]:
    """In order of rounds, the global model first. ``together``: one row for all silos of a round and its reference."""
    groups: dict[tuple[int, bool], dict[_Basis, list[Reading]]] = {}
    by_model: dict[tuple[int, str], list[Reading]] = {}
    for each in readings:
        by_model.setdefault((each.round, each.of), []).append(each)
    found = []
    for (round, of), own in sorted(by_model.items()):
        for basis, part in _by_basis(own).items():
            if together and of != GLOBAL:
                groups.setdefault((round, True), {}).setdefault(basis, []).extend(part)
            else:
                found.append(_row(round, of or "global", basis, part, 0))
    for (round, _), bases in groups.items():
        for basis, part in bases.items():
            silos = len({each.of for each in part})
            found.append(_row(round, "mean of silos", basis, part, silos))
    return sorted(found, key=lambda row: (row.round, row.model != "global"))


def _by_basis(readings: Sequence[Reading]) -> dict[_Basis, list[Reading]]:
    """Of one model and round: what needs no reference, or no extractor, goes with what it was measured beside."""

    def basis(one: Measured) -> _Basis:
        return one.samples, one.extractor, one.digest, one.against

    found: dict[_Basis, list[Reading]] = {}
    for each in readings:
        if each.measured.digest and each.measured.against:
            found.setdefault(basis(each.measured), []).append(each)
    whole = tuple(found)
    for each in readings:
        one = each.measured
        if not (one.digest and one.against):
            beside = [key for key in whole if (key[2] == one.digest if one.digest else key[3] == one.against)]
            found.setdefault((beside or whole or (basis(one),))[0], []).append(each)
    return found


def _row(round: int, model: str, basis: _Basis, readings: Sequence[Reading], silos: int) -> Row:
    values: dict[str, list[Measured]] = {}
    for each in readings:
        values.setdefault(each.measured.metric, []).append(each.measured)
    order = [*(name for name in METRICS if name in values), *sorted(values.keys() - METRICS.keys())]
    samples, extractor, digest, against = basis
    own = (one for each in values.values() for one in each if (one.against, one.digest) == (against, digest))
    counts = sorted({one.reference for one in own})
    size = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}" if counts else ""
    return Row(
        round,
        model,
        {name: statistics.fmean(one.value for one in values[name]) for name in order},
        {name: values[name][0].spread or 0.0 for name in order if not silos and values[name][0].spread is not None},
        {name: tuple(dict.fromkeys(c for one in values[name] for c in one.cautions)) for name in order},
        f"{samples:,}",
        f"{against} ({size} images)" if against else "",
        f"{extractor} {digest[:SHOWN]}".strip(),
        digest,
        silos,
    )


def line(numbers: Iterable[Measured]) -> str:
    """One model's numbers in a line of the log."""
    found = rows(Reading(0, GLOBAL, each) for each in numbers)
    return "; ".join(f"{', '.join(f'{name} {cell(row, name)}' for name in row.values)} ({row.basis})" for row in found)


def newest(readings: Sequence[Reading]) -> str:
    """The newest FID in a line of the status, or ""."""
    known = [row for row in rows(readings, together=True) if "fid" in row.values]
    if not known:
        return ""
    row = next(each for each in known if each.round == known[-1].round)
    of = f"{row.model} of {row.silos}" if row.silos else row.model
    marks = "".join(f"; {caution}" for caution in row.cautions["fid"])
    return f"round {row.round}, {of}: FID {cell(row, 'fid')} ({row.basis}{marks})"


def cell(row: Row, metric: str) -> str:
    """A value with four figures, and its spread with two."""
    if metric not in row.values or not math.isfinite(row.values[metric]):
        return NONE
    spread = f" ± {row.spreads[metric]:.2g}" if metric in row.spreads else ""
    return f"{row.values[metric]:.4g}{spread}"


def table(found: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Head, rows and footnotes. A value's cautions stand below the table, and so does why it is not comparable."""
    metrics = list(dict.fromkeys(name for name in METRICS if any(name in row.values for row in found)))
    metrics += sorted({name for row in found for name in row.values} - METRICS.keys())
    notes: list[str] = []
    lines = []
    last = {row.model: row for row in found}
    for row in found:
        cells = []
        for name in metrics:
            marks = []
            for caution in row.cautions.get(name, ()):
                if caution not in notes:
                    notes.append(caution)
                marks.append(f"[{notes.index(caution) + 1}]")
            if name in row.values and row.comparable != last[row.model].comparable:
                marks.append(INCOMPARABLE)
            cells.append(" ".join((cell(row, name), *marks)))
        model = f"{row.model} ({row.silos})" if row.silos else row.model
        lines.append((str(row.round), model, *cells, row.samples, row.against or NONE, row.extractor or NONE))
    footnotes = [f"[{number}] {text}" for number, text in enumerate(notes, 1)]
    if any(row.comparable != last[row.model].comparable for row in found):
        text = "measured with other samples, reference or extractor than the newest of its model: not comparable"
        footnotes.append(f"{INCOMPARABLE} {text}")
    footnotes += sorted({f"{row.extractor}: SHA-256 {row.digest}" for row in found if row.digest})
    return (
        ("round", "model", *(METRICS.get(n, n) for n in metrics), "samples", "against", "extractor"),
        lines,
        footnotes,
    )


def text(readings: Iterable[Reading]) -> str:
    """All of it as a table in text; ``readings`` of silos one by one."""
    head, lines, notes = table(rows(readings))
    if not lines:
        return "nothing was measured"
    widths = [max(len(row[place]) for row in (head, *lines)) for place in range(len(head))]
    left = {1, len(head) - 1, len(head) - 2}
    shown = [
        "  ".join(
            c.ljust(w) if place in left else c.rjust(w) for place, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *lines)
    ]
    return "\n".join(each.rstrip() for each in (*shown, *notes))


def curves(found: Sequence[Row]) -> list[tuple[str, list[int], list[float]]]:
    """FID by round: name, rounds, values. Values that are not comparable are on different curves."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        if math.isfinite(row.values.get("fid", math.nan)):
            groups.setdefault((row.model, *row.comparable), []).append(row)
    names = [key[0] for key in groups]
    return [
        (
            key[0] if names.count(key[0]) == 1 else f"{key[0]}, {key[1]}, {key[4][:4]}",
            [row.round for row in part],
            [row.values["fid"] for row in part],
        )
        for key, part in groups.items()
    ]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that none beats, by the first number: none is at most as large in both and less in one."""
    best: list[int] = []
    least = float("inf")
    for at in sorted(range(len(points)), key=lambda at: points[at]):
        if points[at][1] < least or (best and points[at] == points[best[-1]]):
            best.append(at)
            least = points[at][1]
    return best
