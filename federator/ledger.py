"""What every round cost, and what it was worth: one row for each round x silo x segment x direction, one per metric.

Last noun of the flow: the service adds to it while chunks pass, publishing never changes it, reports only read it.
``parameters``, ``raw`` and ``encoded`` count a committed transfer once; ``wire`` counts every byte that crossed,
attempts that failed included. Bytes that belong to no segment (tasks, reports, heartbeats, handshakes,
acknowledgements) are in the row of segment ``""``, so that a column's sum is the connection's own total.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from feddiff.core.quality import Measured
from feddiff.federator.database import Database

Direction = Literal["down", "up"]
OVERHEAD = ""
"""Segment name of the bytes that carry no weights."""
GLOBAL = ""
"""Whose quality it is: the global model's; else a silo's, by name."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
  round INTEGER NOT NULL, silo TEXT NOT NULL, segment TEXT NOT NULL, direction TEXT NOT NULL,
  parameters INTEGER NOT NULL DEFAULT 0, raw INTEGER NOT NULL DEFAULT 0, encoded INTEGER NOT NULL DEFAULT 0,
  wire INTEGER NOT NULL DEFAULT 0, retransmitted INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
  estimated INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (round, silo, segment, direction)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
  silo TEXT NOT NULL, transfer TEXT NOT NULL, PRIMARY KEY (silo, transfer)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quality (
  round INTEGER NOT NULL, of TEXT NOT NULL, metric TEXT NOT NULL, against TEXT NOT NULL, measured TEXT NOT NULL,
  PRIMARY KEY (round, of, metric, against)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_by_silo ON ledger (silo, direction, round);
CREATE INDEX IF NOT EXISTS quality_by_model ON quality (of, round);
"""
_TOTALS = (
    "CREATE TABLE IF NOT EXISTS totals (silo TEXT NOT NULL, segment TEXT NOT NULL, direction TEXT NOT NULL,"
    " raw INTEGER NOT NULL, wire INTEGER NOT NULL, retransmitted INTEGER NOT NULL,"
    " PRIMARY KEY (silo, segment, direction)) WITHOUT ROWID",
    "INSERT INTO totals SELECT silo, segment, direction, sum(raw), sum(wire), sum(retransmitted) FROM ledger"
    " WHERE NOT EXISTS (SELECT 1 FROM totals) GROUP BY silo, segment, direction",
    "CREATE TRIGGER IF NOT EXISTS ledger_inserted AFTER INSERT ON ledger BEGIN"
    " INSERT INTO totals VALUES (new.silo, new.segment, new.direction, new.raw, new.wire, new.retransmitted)"
    " ON CONFLICT DO UPDATE SET raw = raw + excluded.raw, wire = wire + excluded.wire,"
    " retransmitted = retransmitted + excluded.retransmitted; END",
    "CREATE TRIGGER IF NOT EXISTS ledger_updated AFTER UPDATE ON ledger BEGIN"
    " UPDATE totals SET raw = raw + new.raw - old.raw, wire = wire + new.wire - old.wire,"
    " retransmitted = retransmitted + new.retransmitted - old.retransmitted"
    " WHERE silo = new.silo AND segment = new.segment AND direction = new.direction; END",
)
"""The sums over all rounds, kept by SQLite itself: whoever looks every few seconds must not read a thousand rounds."""


@dataclass(frozen=True)
class Entry:
    """One row. Sizes in bytes, ``parameters`` in float32 values, ``seconds`` of transfer time."""

    round: int
    silo: str
    segment: str
    direction: Direction
    parameters: int = 0
    """Values in the transfers that were committed."""
    raw: int = 0
    """Four bytes for each of them."""
    encoded: int = 0
    """Their payload after the codec and zstd."""
    wire: int = 0
    """Everything that crossed: payload, protobuf, gRPC, HTTP/2 and TLS framing, repeated chunks."""
    retransmitted: int = 0
    """Payload bytes that crossed more than once."""
    seconds: float = 0.0
    estimated: bool = False
    """Whether ``wire`` was computed from message sizes because the kernel could not be asked."""


@dataclass(frozen=True)
class Total:
    """The rows of all rounds with this silo, segment and direction: sizes in bytes, as in ``Entry``."""

    silo: str
    segment: str
    direction: Direction
    raw: int
    wire: int
    retransmitted: int


@dataclass(frozen=True)
class Reading:
    """One measured number of one model after a round."""

    round: int
    of: str
    """``GLOBAL``, or the silo whose own model it is."""
    measured: Measured


class Ledger:
    """The table, in the federation's own database; additions are durable when they return."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.define(SCHEMA)
        if not database.rows("SELECT 1 FROM sqlite_master WHERE name = 'ledger_updated'"):
            with database.transaction() as change:  # rows from before there were sums are summed once
                for statement in _TOTALS:
                    change.execute(statement)

    def add(self, *entries: Entry) -> None:
        """Add to the rows of these keys."""
        with self._database.transaction() as change:
            change.executemany(
                "INSERT INTO ledger VALUES (:round, :silo, :segment, :direction, :parameters, :raw, :encoded, :wire,"
                " :retransmitted, :seconds, :estimated) ON CONFLICT DO UPDATE SET parameters = parameters +"
                " excluded.parameters, raw = raw + excluded.raw, encoded = encoded + excluded.encoded, wire = wire +"
                " excluded.wire, retransmitted = retransmitted + excluded.retransmitted, seconds = seconds +"
                " excluded.seconds, estimated = max(estimated, excluded.estimated)",
                [asdict(entry) for entry in entries],
            )

    def deliver(self, transfer: str, entry: Entry) -> bool:
        """Add a downlink transfer that a silo has received whole; False if it was counted before."""
        with self._database.transaction() as change:
            done = change.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (entry.silo, transfer))
            if done.rowcount:
                self.add(entry)
            return done.rowcount > 0

    def delivered(self, silo: str, transfer: str) -> bool:
        """Whether this silo has had this transfer before."""
        query = "SELECT 1 FROM deliveries WHERE silo = ? AND transfer = ?"
        return bool(self._database.rows(query, (silo, transfer)))

    def entries(self, round: int | None = None) -> Iterator[Entry]:
        """Rows in order of round, silo, segment, direction."""
        where, values = ("", ()) if round is None else (" WHERE round = ?", (round,))
        query = f"SELECT * FROM ledger{where} ORDER BY round, silo, segment, direction"
        names = [field.name for field in fields(Entry)]
        for row in self._database.rows(query, values):
            entry = Entry(**dict(zip(names, row, strict=True)))
            yield replace(entry, estimated=bool(entry.estimated))

    def flows(self, silo: str, direction: Direction, least: int, count: int) -> list[tuple[int, int, float]]:
        """(round, bytes, seconds) of a silo's transfers in its newest rounds with at least so many bytes."""
        # Of what came down, the overhead's row has the time, where the kernel could be asked.
        query = (
            "SELECT round, sum(wire * (segment != '')) AS bytes, sum(seconds) AS took FROM ledger"
            " WHERE silo = ? AND direction = ? GROUP BY round HAVING bytes >= ? AND took > 0"
            " ORDER BY round DESC LIMIT ?"
        )
        rows = self._database.rows(query, (silo, direction, least, count))
        return [(int(round), int(size), float(took)) for round, size, took in rows]

    def flows_of(self, round: int) -> list[tuple[str, Direction, int, int, float, int]]:
        """(silo, direction, bytes on the wire, those of transfers, seconds, bytes sent again) of a round."""
        query = (
            "SELECT silo, direction, sum(wire), sum(wire * (segment != '')), sum(seconds), sum(retransmitted)"
            " FROM ledger WHERE round = ? GROUP BY silo, direction"
        )
        return [
            (str(silo), direction, int(wire), int(size), float(took), int(again))
            for silo, direction, wire, size, took, again in self._database.rows(query, (round,))
        ]

    def spent(self, round: int, silo: str) -> dict[Direction, int]:
        """Bytes on the wire of a silo's transfers in a round, what was sent again included."""
        query = (
            "SELECT direction, sum(wire) FROM ledger WHERE round = ? AND silo = ? AND segment != ? GROUP BY direction"
        )
        found = dict(self._database.rows(query, (round, silo, OVERHEAD)))
        return {"down": int(found.get("down", 0)), "up": int(found.get("up", 0))}

    def protocol(self, silo: str, since: int) -> list[int]:
        """The bytes that carried no weights, both directions, of each of a silo's rounds from ``since`` on."""
        query = "SELECT sum(wire) FROM ledger WHERE silo = ? AND round >= ? AND segment = ? GROUP BY round"
        return [int(row[0]) for row in self._database.rows(query, (silo, since, OVERHEAD))]

    def measure(self, round: int, of: str, numbers: Iterable[Measured]) -> None:
        """Put a model's quality beside the bytes of its round; measured anew, it replaces what was there."""
        rows = [(round, of, each.metric, each.against, json.dumps(asdict(each))) for each in numbers]
        with self._database.transaction() as change:
            change.executemany("INSERT OR REPLACE INTO quality VALUES (?, ?, ?, ?, ?)", rows)

    def quality(self, round: int | None = None, of: str | None = None) -> Iterator[Reading]:
        """Readings, of one round or all, of one model or all, in order of round, model, metric, reference."""
        asked = {key: value for key, value in (("round", round), ("of", of)) if value is not None}
        where = f" WHERE {' AND '.join(f'{key} = ?' for key in asked)}" if asked else ""
        return self._readings(where, tuple(asked.values()))

    def measured(self) -> list[tuple[int, str]]:
        """(round, model) of all that was measured, in order of the rounds."""
        return [
            (int(round), str(of))
            for round, of in self._database.rows("SELECT DISTINCT round, of FROM quality ORDER BY round, of")
        ]

    def newest_quality(self, of: str) -> list[Reading]:
        """What was measured of a model in the newest round that it was measured in."""
        where = " WHERE of = ? AND round = (SELECT max(round) FROM quality WHERE of = ?)"
        return list(self._readings(where, (of, of)))

    def _readings(self, where: str, values: tuple[object, ...]) -> Iterator[Reading]:
        query = f"SELECT round, of, measured FROM quality{where} ORDER BY round, of, metric, against"
        for number, of, text in self._database.rows(query, values):
            table = json.loads(text)
            yield Reading(number, of, Measured(**{**table, "cautions": tuple(table["cautions"])}))

    def counted(self, since: int) -> dict[int, int]:
        """How many numbers were measured of each round from ``since`` on."""
        query = "SELECT round, count(*) FROM quality WHERE round >= ? GROUP BY round"
        return {int(round): int(count) for round, count in self._database.rows(query, (since,))}

    def totals(self) -> list[Total]:
        """The sums over all rounds, by silo, segment and direction; as quick after a thousand rounds as after one."""
        return [Total(*row) for row in self._database.rows("SELECT * FROM totals")]

    def wire(self, direction: Direction, round: int | None = None) -> int:
        """Bytes that crossed in one direction, in one round or in all."""
        table, values = ("totals", ()) if round is None else ("ledger", (round,))
        query = f"SELECT coalesce(sum(wire), 0) FROM {table} WHERE direction = ?{' AND round = ?' if values else ''}"
        return int(self._database.rows(query, (direction, *values))[0][0])
