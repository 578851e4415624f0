"""The durable memory of the rounds: plans, updates, published versions, metrics.

"Which round is it" is answered from here alone. ``publish`` writes the new versions and closes the round in one
transaction, so there is no moment at which a crash leaves a checkpoint without its round number or the reverse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from feddiff.federator import outbox
from feddiff.federator.database import Database
from feddiff.federator.planner import Plan

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rounds (
  round INTEGER PRIMARY KEY, plan TEXT NOT NULL, weights TEXT NOT NULL, opened_at REAL NOT NULL, closed_at REAL,
  silos TEXT, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
  round INTEGER NOT NULL, silo TEXT NOT NULL, segment TEXT NOT NULL, digest TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (round, silo, segment)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejections (
  round INTEGER NOT NULL, silo TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (round, silo)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
  segment TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (segment, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
  round INTEGER NOT NULL, silo TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (round, silo, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metrics_by_silo ON metrics (silo, name, round);
"""


@dataclass(frozen=True)
class Round:
    """A round as it was planned. Times in Unix seconds.

    ``weights``: samples of each silo, fixed when it opened; what counts in the average is by federator/weighting.py.
    """

    round: int
    plan: Plan
    weights: Mapping[str, int]
    opened_at: float
    closed_at: float | None
    silos: tuple[str, ...]
    """Whose updates were averaged; empty while it is open."""
    reason: str


class Journal:
    """The tables of rounds, updates, versions and metrics."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.define(SCHEMA + outbox.SCHEMA)

    def fact(self, key: str) -> str | None:
        rows = self._database.rows("SELECT value FROM facts WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def note(self, key: str, value: str) -> None:
        with self._database.transaction() as change:
            change.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def finish(self, reason: str) -> None:
        """No round opens any more, for this reason; the audit log is told the first time."""
        with self._database.transaction() as change:
            if self.fact("finished") is None:
                outbox.note(change, "finished", reason=reason)
            self.note("finished", reason)

    def open(self, plan: Plan, weights: Mapping[str, int], now: float, reason: str) -> None:
        """Open a round with its plan."""
        with self._database.transaction() as change:
            change.execute(
                "INSERT INTO rounds VALUES (?, ?, ?, ?, NULL, NULL, ?)",
                (plan.round, plan.to_json(), json.dumps(dict(weights)), now, reason),
            )
            digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
            images = dict(sorted(weights.items()))
            outbox.note(
                change, "planned", round=plan.round, reason=reason, plan=plan.reason, digest=digest, images=images
            )

    def rounds(self, after: int = 0) -> list[Round]:
        """All rounds so far, in order; or those after one."""
        rows = self._database.rows("SELECT * FROM rounds WHERE round > ? ORDER BY round", (after,))
        return [self._round(row) for row in rows]

    def get(self, round: int) -> Round | None:
        """The round of this number."""
        rows = self._database.rows("SELECT * FROM rounds WHERE round = ?", (round,))
        return self._round(rows[0]) if rows else None

    def last(self) -> Round | None:
        """The newest round, open or closed."""
        rows = self._database.rows("SELECT * FROM rounds ORDER BY round DESC LIMIT 1")
        return self._round(rows[0]) if rows else None

    @staticmethod
    def _round(row: tuple[Any, ...]) -> Round:
        number, plan, weights, opened, closed, silos, reason = row
        return Round(
            int(number),
            Plan.from_json(str(plan)),
            json.loads(str(weights)),
            float(opened),
            None if closed is None else float(closed),
            tuple(json.loads(str(silos))) if silos else (),
            str(reason),
        )

    def commit_update(
        self, round: int, silo: str, segment: str, digest: bytes, now: float, planned: Collection[str] = ()
    ) -> bool:
        """Note one committed segment; False if it was noted before.

        With the last of ``planned``, all that the silo is to report, its update goes on record."""
        with self._database.transaction() as change:
            done = change.execute(
                "INSERT OR IGNORE INTO updates VALUES (?, ?, ?, ?, ?)",
                (round, silo, segment, digest.hex(), now),
            )
            if done.rowcount > 0 and planned and set(planned) <= (known := self._digests(round, silo)).keys():
                listed = "".join(f"{name} {each}\n" for name, each in sorted(known.items()))
                whole = hashlib.sha256(listed.encode()).hexdigest()
                outbox.note(change, "update", round=round, silo=silo, segments=len(known), digest=whole)
            return done.rowcount > 0

    def _digests(self, round: int, silo: str) -> dict[str, str]:
        """Of the segments that a silo has committed."""
        query = "SELECT segment, digest FROM updates WHERE round = ? AND silo = ?"
        return {str(segment): str(digest) for segment, digest in self._database.rows(query, (round, silo))}

    def updates(self, round: int) -> dict[str, set[str]]:
        """Committed segments by silo."""
        found: dict[str, set[str]] = {}
        for silo, segment in self._database.rows("SELECT silo, segment FROM updates WHERE round = ?", (round,)):
            found.setdefault(str(silo), set()).add(str(segment))
        return found

    def reject(self, round: int, silo: str, reason: str) -> None:
        with self._database.transaction() as change:
            change.execute("INSERT OR REPLACE INTO rejections VALUES (?, ?, ?)", (round, silo, reason))
            outbox.note(change, "rejected", round=round, silo=silo, reason=reason)

    def rejections(self, round: int) -> dict[str, str]:
        rows = self._database.rows("SELECT silo, reason FROM rejections WHERE round = ?", (round,))
        return {str(silo): str(reason) for silo, reason in rows}

    def publish(
        self,
        versions: Mapping[str, int],
        round: int | None,
        silos: tuple[str, ...],
        now: float,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Make versions current and, with them, close a round (none: these are the initial ones). ``digests``: of each,
        for the record."""
        with self._database.transaction() as change:
            change.executemany("INSERT OR REPLACE INTO versions VALUES (?, ?)", list(versions.items()))
            if round is not None:
                change.execute(
                    "UPDATE rounds SET closed_at = ?, silos = ? WHERE round = ?",
                    (now, json.dumps(silos), round),
                )
            made = {
                name: {"version": version, "digest": (digests or {}).get(name, "")}
                for name, version in versions.items()
            }
            outbox.note(change, "published", round=round or 0, silos=list(silos), versions=made)

    def current(self) -> dict[str, int]:
        """The current version of every segment."""
        rows = self._database.rows("SELECT segment, max(version) FROM versions GROUP BY segment")
        return {str(segment): int(version) for segment, version in rows}

    def measure(self, round: int, silo: str, values: Mapping[str, float]) -> None:
        """Keep a silo's newest metrics of a round."""
        with self._database.transaction() as change:
            change.executemany(
                "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)",
                [(round, silo, name, value) for name, value in values.items()],
            )

    def metrics(self, round: int | None = None) -> dict[int, dict[str, dict[str, float]]]:
        """round → silo → name → value."""
        where, values = ("", ()) if round is None else (" WHERE round = ?", (round,))
        found: dict[int, dict[str, dict[str, float]]] = {}
        for number, silo, name, value in self._database.rows(f"SELECT * FROM metrics{where}", values):
            found.setdefault(int(number), {}).setdefault(str(silo), {})[str(name)] = float(value)
        return found

    def newest(self, silo: str, name: str) -> float | None:
        """A silo's metric in the newest round that it told it in."""
        query = "SELECT value FROM metrics WHERE silo = ? AND name = ? ORDER BY round DESC LIMIT 1"
        rows = self._database.rows(query, (silo, name))
        return float(rows[0][0]) if rows else None

    def rejected(self) -> dict[str, int]:
        """How many updates of each silo were rejected."""
        return dict(self._database.rows("SELECT silo, count(*) FROM rejections GROUP BY silo"))
