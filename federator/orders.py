"""What operators order, carried out and noted: who, what, when.

Every order comes through here, from the console (federator/operator.py) and from the page (federator/web.py), so that
none is without a name. It is noted, durably, before it is carried out; one that could not be is noted with the reason.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal, get_args

from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation

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
        self._database.define(SCHEMA)

    def give(self, operator: str, what: str, silo: str = "", reason: str = "") -> None:
        """Note an order and carry it out. Raises ConfigError for one that there is not, or that makes no sense."""
        if what not in get_args(What):
            raise ConfigError(f"there is no order {what!r:.40}; known: {', '.join(get_args(What))}")
        if (what in OF_SILOS) != bool(silo):
            raise ConfigError(f"{what} {'needs the name of a silo' if what in OF_SILOS else 'is of no silo'}")
        reason = reason[:MAX_REASON] or "by the operator"
        with self._database.transaction() as change:
            number = change.execute(
                "INSERT INTO orders (at, operator, what, silo, reason) VALUES (?, ?, ?, ?, ?)",
                (time.time(), operator, what, silo, reason if what == "evict" else ""),
            ).lastrowid
        try:
            self._carry_out(what, silo, reason)
        except FedDiffError as error:
            with self._database.transaction() as change:
                change.execute("UPDATE orders SET refused = ? WHERE number = ?", (str(error), number))
            raise
        log.warning("%s ordered: %s%s", operator, what, f" {silo}" if silo else "")

    def _carry_out(self, what: str, silo: str, reason: str) -> None:
        federation = self._federation
        if what == "evict":
            federation.evict(silo, reason)
        elif what == "reinstate":
            federation.reinstate(silo)
        else:
            key, value = {"pause": ("paused", "yes"), "resume": ("paused", "no"), "stop": ("stopping", "yes")}[what]
            with federation.changed:
                federation.journal.note(key, value)
                federation.changed.notify_all()
