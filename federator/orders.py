"""What operators order, carried out and noted: who, what, when.

Every order comes through here, from the console (federator/operator.py) and from the page (federator/web.py), so that
none is without a name. It is noted in the very step in which it is carried out; one that could not be, with the reason.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Literal, get_args

from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.federator import outbox
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.operators import CONSOLE

What = Literal["pause", "resume", "stop", "evict", "reinstate"]
OF_SILOS: tuple[What, ...] = ("evict", "reinstate")
"""Orders that name a silo."""
MAX_REASON = 200

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
  number INTEGER PRIMARY KEY, at REAL NOT NULL, operator TEXT NOT NULL, what TEXT NOT NULL, silo TEXT NOT NULL,
  reason TEXT NOT NULL, refused TEXT NOT NULL DEFAULT '');
"""

log = logging.getLogger("feddiff.federator")


@dataclass(frozen=True)
class Order:
    """One order. ``at`` in Unix seconds; ``refused``: why it was not carried out, else empty."""

    at: float
    operator: str
    what: str
    silo: str
    reason: str
    refused: str


def given(database: Database, count: int) -> list[Order]:
    """The newest orders, newest first, of a database that has ``SCHEMA``."""
    query = "SELECT at, operator, what, silo, reason, refused FROM orders ORDER BY number DESC LIMIT ?"
    return [Order(*row) for row in database.rows(query, (count,))]


class Orders:
    """Gives orders to a running federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation, self._database = federation, federation.database
        self._database.define(SCHEMA + outbox.SCHEMA)

    def give(self, operator: str, what: str, silo: str = "", reason: str = "") -> None:
        """Note an order and carry it out. Raises ConfigError for one that there is not, or that makes no sense."""
        if what not in get_args(What):
            raise ConfigError(f"there is no order {what!r:.40}; known: {', '.join(get_args(What))}")
        if (what in OF_SILOS) != bool(silo):
            raise ConfigError(f"{what} {'needs the name of a silo' if what in OF_SILOS else 'is of no silo'}")
        reason = reason[:MAX_REASON] or "by the operator"
        told = reason if what == "evict" else ""
        try:
            with self._federation.changed, self._database.transaction() as change:
                self._note(change, operator, what, silo, told)
                self._carry_out(what, silo, reason)
        except FedDiffError as error:
            with self._database.transaction() as change:
                self._note(change, operator, what, silo, told, str(error))
            raise
        log.warning("%s ordered: %s%s", operator, what, f" {silo}" if silo else "")

    @staticmethod
    def _note(change: Connection, operator: str, what: str, silo: str, reason: str, refused: str = "") -> None:
        change.execute(
            "INSERT INTO orders (at, operator, what, silo, reason, refused) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), operator, what, silo, reason, refused),
        )
        by = outbox.console() if operator == CONSOLE else operator
        facts = {name: fact for name, fact in (("silo", silo), ("reason", reason), ("refused", refused)) if fact}
        outbox.note(change, "refused" if refused else "order", by=by, what=what, **facts)

    def _carry_out(self, what: str, silo: str, reason: str) -> None:
        federation = self._federation
        if what == "evict":
            federation.evict(silo, reason)
        elif what == "reinstate":
            federation.reinstate(silo)
        else:
            key, value = {"pause": ("paused", "yes"), "resume": ("paused", "no"), "stop": ("stopping", "yes")}[what]
            federation.journal.note(key, value)
            federation.changed.notify_all()
