"""What this silo sends to others and gets from them, counted until the federator is told."""

from __future__ import annotations

import threading
from dataclasses import replace

from feddiff.core.peers import Kind, Tallied


class Tallies:
    """Rows by round; safe from any thread."""

    def __init__(self, silo: str) -> None:
        self.silo = silo
        self._lock = threading.Lock()
        self._rows: dict[int, dict[tuple[str, str, str, Kind], Tallied]] = {}

    def add(self, round: int, row: Tallied) -> None:
        """Count; what stays in this silo costs nothing."""
        if row.source == row.target:
            return
        with self._lock:
            rows = self._rows.setdefault(round, {})
            key = (row.source, row.target, row.segment, row.kind)
            old = rows.get(key)
            rows[key] = (
                row
                if old is None
                else replace(
                    old,
                    parameters=old.parameters + row.parameters,
                    encoded=old.encoded + row.encoded,
                    wire=old.wire + row.wire,
                    seconds=old.seconds + row.seconds,
                )
            )

    def take(self) -> dict[int, list[Tallied]]:
        """What was counted since the last time."""
        with self._lock:
            rows, self._rows = self._rows, {}
        return {round: list(found.values()) for round, found in rows.items()}

    def give_back(self, round: int, rows: list[Tallied]) -> None:
        """It could not be told."""
        for row in rows:
            self.add(round, row)
