"""What happened and is to go into the audit log: written in the very transaction in which it happens.

    transaction (roster, journal, …) ── note ──► outbox ── notary.write ──► audit.jsonl, then settle

So nothing happens without being on record, and nothing is on record that did not happen, whatever is killed, and
whichever process did it. The head of the log is kept here too: a file that was cut off is noticed.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from feddiff.federator.audit import NOTHING
from feddiff.federator.database import Database

Kind = Literal[
    "started",
    "rules",
    "finished",
    "invited",
    "withdrawn",
    "issued",
    "enrolled",
    "renewed",
    "evicted",
    "token",
    "certificates",
    "planned",
    "update",
    "rejected",
    "published",
    "verdict",
    "order",
    "refused",
    "restored",
    "lost",
]
SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audited (
  only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL, hash TEXT NOT NULL);
"""
MAX_TEXT = 1000
BATCH = 1000
"""Events that are written at a time."""


@dataclass(frozen=True)
class Event:
    """Something that happened and is not in the log yet, or not known to be. ``facts``: JSON."""

    number: int
    id: str
    at: float
    kind: str
    facts: str


def console() -> str:
    """Who gives an order that comes from the federator's own machine, where only its user can."""
    try:
        return f"console:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # a container's user may have no name
        return f"console:{os.getuid()}"


def note(change: sqlite3.Connection, kind: Kind, **facts: object) -> None:
    """Record something inside the transaction that makes it so. Of texts, the first ``MAX_TEXT`` characters."""
    kept = {name: fact[:MAX_TEXT] if isinstance(fact, str) else fact for name, fact in facts.items()}
    change.execute(
        "INSERT INTO outbox (id, at, kind, facts) VALUES (?, ?, ?, ?)",
        (secrets.token_hex(8), time.time(), kind, json.dumps(kept, allow_nan=False)),
    )


def pending(database: Database) -> list[Event]:
    """The oldest events that are not known to be in the log."""
    return [Event(*row) for row in database.rows("SELECT * FROM outbox ORDER BY number LIMIT ?", (BATCH,))]


def settle(database: Database, written: Collection[Event], number: int, hash: str) -> None:
    """These events are in the log, durably, whose last entry and head are now these."""
    with database.transaction() as change:
        change.executemany("DELETE FROM outbox WHERE number = ?", [(each.number,) for each in written])
        change.execute("INSERT OR REPLACE INTO audited VALUES (1, ?, ?)", (number, hash))


def head(database: Database) -> tuple[int, str]:
    """Number and hash of the log's last entry; 0 and NOTHING before there is one."""
    rows = database.rows("SELECT number, hash FROM audited")
    return (int(rows[0][0]), str(rows[0][1])) if rows else (0, NOTHING)


def told(database: Database) -> str:
    """The head as silos and people are told it: ``NUMBER HASH``; empty before there is one."""
    number, hash = head(database)
    return f"{number} {hash}" if number else ""
