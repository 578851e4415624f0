"""Parts of the ledger for people who look for something: filtered, page by page, or whole as CSV.

Beside federator/ledger.py, which keeps it. Reads through a connection that is not the federation's, in steps along the
table's key, each bounded in rows and time, for a ledger of a long federation has millions of rows.
"""

from __future__ import annotations

import csv
import io
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from feddiff.federator.database import Database
from feddiff.federator.ledger import Entry

PAGE = 100
"""Rows of a page."""
BATCH = 2000
"""Rows that are read at once for CSV."""
LONGEST_S = 2.0
"""Of one question; after that it is given up."""
COLUMNS = tuple(field.name for field in fields(Entry))
SUMS = ("parameters", "raw", "encoded", "wire", "retransmitted", "seconds")
Key = tuple[int, str, str, str]


@dataclass(frozen=True)
class Filter:
    """Which rows; None: all. Rounds from ``first`` to ``last``."""

    silo: str | None = None
    segment: str | None = None
    direction: str | None = None
    first: int | None = None
    last: int | None = None

    def where(self) -> tuple[list[str], list[object]]:
        """Conditions, and their values."""
        asked = [
            (f"{name} = ?", getattr(self, name))
            for name in ("silo", "segment", "direction")
            if getattr(self, name) is not None
        ]
        asked += [("round >= ?", self.first)] * (self.first is not None)
        asked += [("round <= ?", self.last)] * (self.last is not None)
        return [text for text, _ in asked], [value for _, value in asked]


class Excerpts:
    """Of one ledger. ``database`` is this class's own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until = 0.0
        database.connection.set_progress_handler(lambda: int(time.monotonic() > self._until), 20_000)

    def page(self, wanted: Filter, before: Key | None = None) -> dict[str, Any]:
        """``rows``, the newest first, after the row of this key; ``more``, the key to go on with; ``sums`` of all rows
        that fit, with ``rows`` their number, None if there are too many to add up in time."""
        try:
            found = self._rows(wanted, before, PAGE + 1, newest=True)
        except sqlite3.OperationalError:
            return {"rows": [], "more": None, "sums": None}
        shown = found[:PAGE]
        more = None if len(found) <= PAGE else [shown[-1][name] for name in ("round", "silo", "segment", "direction")]
        return {"rows": shown, "more": more, "sums": self._sums(wanted) if before is None else None}

    def csv(self, wanted: Filter) -> Iterator[str]:
        """All rows that fit, in order, with a line of names first; the columns are those of ``Entry``."""
        yield ",".join(COLUMNS) + "\r\n"
        key: Key | None = None
        while True:
            found = self._rows(wanted, key, BATCH, newest=False, limit_s=60.0)
            if not found:
                return
            text = io.StringIO()
            csv.writer(text).writerows([row[name] for name in COLUMNS] for row in found)
            yield text.getvalue()
            last = found[-1]
            key = (last["round"], last["silo"], last["segment"], last["direction"])

    def _rows(
        self, wanted: Filter, key: Key | None, count: int, newest: bool, limit_s: float = LONGEST_S
    ) -> list[dict[str, Any]]:
        conditions, values = wanted.where()
        if key is not None:
            conditions.append(f"(round, silo, segment, direction) {'<' if newest else '>'} (?, ?, ?, ?)")
            values += key
        way = "DESC" if newest else "ASC"
        query = (
            f"SELECT {', '.join(COLUMNS)} FROM ledger{_where(conditions)}"
            f" ORDER BY round {way}, silo {way}, segment {way}, direction {way} LIMIT {count}"
        )
        found = self._asked(query, values, limit_s)
        return [dict(zip(COLUMNS, (*row[:-1], bool(row[-1])), strict=True)) for row in found]

    def _sums(self, wanted: Filter) -> dict[str, float] | None:
        conditions, values = wanted.where()
        columns = ", ".join(f"coalesce(sum({name}), 0)" for name in SUMS)
        try:
            (found,) = self._asked(f"SELECT count(*), {columns} FROM ledger{_where(conditions)}", values, LONGEST_S)
        except sqlite3.OperationalError:
            return None
        return dict(zip(("rows", *SUMS), found, strict=True))

    def _asked(self, query: str, values: list[object], limit_s: float) -> list[tuple[Any, ...]]:
        """Raises sqlite3.OperationalError if it takes too long."""
        with self._database.lock:
            self._until = time.monotonic() + limit_s
            return self._database.rows(query, tuple(values))


def _where(conditions: list[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
