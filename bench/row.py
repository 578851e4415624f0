"""One line of the transport's table, the same nouns for every framework, and the table.

The columns are those of the common job's harness: what it calls ``server`` and ``client`` is our federator and silo.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from feddiff.bench.processes import Processes

FEDERATOR = "federator"
"""Name of the process that all others call; the rest are silos."""


@dataclass(frozen=True)
class Row:
    """Times in seconds, sizes in MB (1e6); rounds after the first, unless said. None: not measured."""

    name: str
    silos: int
    parameters: int
    error: str = ""
    """Why there are no numbers, in one line."""
    start_s: float | None = None
    """First process launched, to the opening of round 1."""
    first_round_s: float | None = None
    round_s: float | None = None
    """Median time between the ends of rounds after the first. A round ends when the aggregate exists."""
    rounds_s: list[float] = field(default_factory=list)
    cpu_s: float | None = None
    """CPU seconds a round of all processes together."""
    cpu_federator_s: float | None = None
    down_mb: float | None = None
    """On the network, out of the federator, all silos together."""
    up_mb: float | None = None
    first_down_mb: float | None = None
    federator_idle_mb: float | None = None
    federator_peak_mb: float | None = None
    silo_idle_mb: float | None = None
    silo_peak_mb: float | None = None
    """Of the worst silo."""
    max_error: float | None = None
    """Largest difference of the result from the exact weighted average (float64)."""
    network: str = ""
    load: float | None = None
    """The machine's over one minute when the row was done, other users' included."""

    @property
    def silo_models(self) -> float | None:
        """A silo's peak over its idle, in models."""
        if self.silo_peak_mb is None or self.silo_idle_mb is None:
            return None
        return (self.silo_peak_mb - self.silo_idle_mb) / (4e-6 * self.parameters)


def observed(row: Row, processes: Processes, opened: float, ends: Sequence[float], idle_from: float) -> Row:
    """A row with what the processes used. ``ends``: of the rounds; ``idle_from``: when the federator was ready."""
    durations = [after - before for before, after in pairwise(ends)]
    begin, rounds = (ends[0], len(durations)) if durations else (opened, 1)
    silos = [name for name in processes.samples[-1].cpu if name != FEDERATOR]
    return replace(
        row,
        start_s=opened - processes.begun,
        first_round_s=ends[0] - opened,
        round_s=statistics.median(durations) if durations else None,
        rounds_s=durations,
        cpu_s=processes.cpu(begin, ends[-1]) / rounds,
        cpu_federator_s=processes.cpu(begin, ends[-1], FEDERATOR) / rounds,
        federator_idle_mb=processes.resident(idle_from, FEDERATOR),
        federator_peak_mb=processes.peak(ends[-1], FEDERATOR),
        silo_idle_mb=max(processes.resident(opened, silo) for silo in silos),
        silo_peak_mb=max(processes.peak(ends[-1], silo) for silo in silos),
        load=os.getloadavg()[0],
    )


_COLUMNS = {
    "start, s": ("start_s", 1),
    "first round, s": ("first_round_s", 2),
    "round, s": ("round_s", 2),
    "CPU s": ("cpu_s", 2),
    "of it federator": ("cpu_federator_s", 2),
    "down, MB": ("down_mb", 1),
    "up, MB": ("up_mb", 1),
    "federator idle, MB": ("federator_idle_mb", 0),
    "peak, MB": ("federator_peak_mb", 0),
    "silo idle, MB": ("silo_idle_mb", 0),
    "peak, MB ": ("silo_peak_mb", 0),
    "over idle, models": ("silo_models", 2),
    "max. error": ("max_error", -1),
    "load": ("load", 1),
}


def table(rows: Iterable[Row]) -> str:
    """All rows in Markdown; one that failed says why."""
    lines = [["K", "row", *_COLUMNS]]
    failed = []
    for row in rows:
        if row.error:
            failed.append(f"{row.name}, K={row.silos}: {row.error}")
            continue
        cells = [_cell(getattr(row, attribute), digits) for attribute, digits in _COLUMNS.values()]
        lines.append([str(row.silos), row.name, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join([*text, *(f"failed: {each}" for each in failed)])


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.1g}" if digits < 0 else f"{value:,.{digits}f}"
