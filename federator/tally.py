"""What silos sent each other, as both ends of each transfer have counted it.

Beside the ledger, which counts what crosses the federator's own line: the federator sees none of this traffic, so it
asks both, and says where they differ. One row for each round x source x target x segment x kind x teller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields

from feddiff.core.peers import Kind, Tallied
from feddiff.federator.database import Database
from feddiff.federator.links import LEAST

SCHEMA = """
CREATE TABLE IF NOT EXISTS tallies (
  round INTEGER NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL, segment TEXT NOT NULL, kind TEXT NOT NULL,
  teller TEXT NOT NULL, parameters INTEGER NOT NULL, encoded INTEGER NOT NULL, wire INTEGER NOT NULL,
  seconds REAL NOT NULL,
  PRIMARY KEY (round, source, target, segment, kind, teller)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Flow:
    """One row as both ends told it. ``wire``: messages with their framing; ``seconds``: the source's."""

    round: int
    source: str
    target: str
    segment: str
    kind: Kind
    parameters: int
    encoded: int
    wire: int
    seconds: float
    agreed: bool
    """Whether both ends told the same parameters and encoded bytes."""


class Tally:
    """The table, in the federation's own database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.define(SCHEMA)

    def add(self, round: int, silo: str, rows: Iterable[Tallied]) -> None:
        """What a silo counted since the last time; rows in which it is neither end are passed over."""
        values = [
            {**asdict(row), "round": round, "teller": "source" if row.source == silo else "target"}
            for row in rows
            if silo in (row.source, row.target)
        ]
        with self._database.transaction() as change:
            change.executemany(
                "INSERT INTO tallies VALUES (:round, :source, :target, :segment, :kind, :teller, :parameters, :encoded,"
                " :wire, :seconds) ON CONFLICT DO UPDATE SET parameters = parameters + excluded.parameters, encoded ="
                " encoded + excluded.encoded, wire = wire + excluded.wire, seconds = seconds + excluded.seconds",
                values,
            )

    def flows(self) -> Iterator[Flow]:
        """All of it, in order; sizes are the larger of the two ends'."""
        query = (
            "SELECT round, source, target, segment, kind, max(parameters), max(encoded), max(wire),"
            " sum(seconds * (teller = 'source')), count(*) = 2 AND min(parameters) = max(parameters)"
            " AND min(encoded) = max(encoded) FROM tallies GROUP BY round, source, target, segment, kind"
        )
        names = [field.name for field in fields(Flow)][:-1]
        for row in self._database.rows(query):
            yield Flow(**dict(zip(names, row[:-1], strict=True)), agreed=bool(row[-1]))

    def rate(self, silo: str, rounds: int) -> float | None:
        """Bytes a second that a silo sent as updates in its last ``rounds`` rounds; None if it is not known."""
        query = (
            "SELECT sum(encoded), sum(seconds) FROM tallies WHERE source = ? AND teller = 'source' AND kind = 'update'"
            " GROUP BY round HAVING sum(encoded) >= ? ORDER BY round DESC LIMIT ?"
        )
        found = [float(size) / took for size, took in self._database.rows(query, (silo, LEAST, rounds)) if took > 0]
        return sorted(found)[len(found) // 2] if found else None


def text(flows: Iterable[Flow]) -> str:
    """What went from silo to silo, for people. Sizes in bytes."""
    head = (
        f"{'round':>5} {'from':<20} {'to':<20} {'segment':<12} {'kind':<7}{'parameters':>14}{'encoded':>14}{'wire':>14}"
    )
    lines, total = [head], 0
    for each in flows:
        total += each.wire
        lines.append(
            f"{each.round:>5} {each.source:<20} {each.target:<20} {each.segment or '-':<12} {each.kind:<7}"
            f"{each.parameters:>14}{each.encoded:>14}{each.wire:>14}"
            + ("" if each.agreed or each.kind == "other" else " the two ends differ")
        )
    return "\n".join([*lines, f"{'total':<95}{total:>14}"])
