"""What a silo measured of its own model and told the federator: on its disk, for whoever wants to know what left it.

    measured.json     round, how often its measuring was begun, the numbers, whether the federator has them
    measured.png      the grid of samples that goes with them, if the federation asks for one

Read by ``session`` through ``Local.progress``: a round is measured once, whatever happens in between.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feddiff.core.quality import Measured
from feddiff.core.store import write_atomic


@dataclass(frozen=True)
class Reading:
    """A model's quality: numbers, and a PNG of some samples (empty: none)."""

    numbers: tuple[Measured, ...]
    grid: bytes = b""


class Readings:
    """The newest reading of a state folder."""

    def __init__(self, state: Path) -> None:
        self._file, self._grid = state / "measured.json", state / "measured.png"

    @property
    def round(self) -> int | None:
        """The newest round with whose measurement nothing more is to be done."""
        table = self._read()
        return int(table["round"]) if table.get("done") else None

    def begin(self, round: int) -> int:
        """Note that a round is about to be measured or told; returns how often that has begun."""
        table = self._of(round)
        begun = 1 + int(table.get("begun", 0))
        self._write({**table, "begun": begun})
        return begun

    def keep(self, round: int, reading: Reading) -> None:
        """A round is measured; it is still to be told."""
        if reading.grid:
            write_atomic(self._grid, reading.grid)
        else:
            self._grid.unlink(missing_ok=True)
        self._write({**self._of(round), "numbers": [asdict(each) for each in reading.numbers]})

    def kept(self, round: int) -> Reading | None:
        """A round's reading, told or not."""
        table = self._of(round)
        if "numbers" not in table:
            return None
        numbers = tuple(Measured(**{**each, "cautions": tuple(each["cautions"])}) for each in table["numbers"])
        return Reading(numbers, self._grid.read_bytes() if self._grid.exists() else b"")

    def settle(self, round: int) -> None:
        """The federator has a round's reading, or will never get one."""
        self._write({**self._of(round), "done": True})

    def _of(self, round: int) -> dict[str, Any]:
        table = self._read()
        return table if table.get("round") == round else {"round": round}

    def _read(self) -> dict[str, Any]:
        """Empty if there is none, or none that can be read: then it is measured anew."""
        try:
            table = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}

    def _write(self, table: dict[str, Any]) -> None:
        write_atomic(self._file, json.dumps(table).encode())
