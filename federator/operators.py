"""Who may steer the federation from afar: names of operators, and the bearer tokens that they were given. Durable.

An operator is no silo: a token gives no call of the ``Federation`` service, and a silo's certificate nothing that asks
for a token. The database keeps a token's SHA-256 only, so it is shown once, by ``feddiff-federator operator``.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from feddiff.core.errors import ConfigError, IdentityError
from feddiff.core.identity import check_name
from feddiff.federator import outbox
from feddiff.federator.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS operators (
  name TEXT PRIMARY KEY, digest TEXT NOT NULL, issued_at REAL NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
"""
CONSOLE = "console"
"""Who orders from the federator's own machine, where only its user can. Nobody else may be called so."""
PREFIX = "fdo1_"
MAX_CHARACTERS = 256
DAY_S = 86400.0


@dataclass(frozen=True)
class Operator:
    """Somebody with a token. Times of ``time.time``."""

    name: str
    issued_at: float
    expires_at: float


class Operators:
    """The table of operators. Changes count at once, also in a daemon that runs."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        database.define(SCHEMA + outbox.SCHEMA)

    def issue(self, name: str, days: float) -> str:
        """A new token; an earlier one of that name no longer holds. Raises ConfigError for what is no name."""
        check_name(name)
        if name == CONSOLE:
            raise ConfigError(
                f"{CONSOLE} stands for the federator's own machine in the audit log; another name is needed"
            )
        if not 0 < days <= 36_500:
            raise ConfigError(f"an operator's token lasts up to 36500 days, not {days:g}")
        token, now = PREFIX + secrets.token_urlsafe(32), self._clock()
        with self._database.transaction() as change:
            change.execute(
                "INSERT OR REPLACE INTO operators VALUES (?, ?, ?, ?)", (name, _digest(token), now, now + days * DAY_S)
            )
            until = datetime.fromtimestamp(now + days * DAY_S, UTC).isoformat(timespec="seconds")
            outbox.note(change, "token", by=outbox.console(), operator=name, until=until)
        return token

    def check(self, token: str) -> str:
        """The operator's name. Raises IdentityError for a token that is unknown, revoked or expired."""
        if len(token) > MAX_CHARACTERS:
            raise IdentityError("this is not an operator's token")
        asked, found = _digest(token.strip()), None
        for name, digest, expires_at in self._database.rows("SELECT name, digest, expires_at FROM operators"):
            if hmac.compare_digest(digest, asked):
                found = str(name), float(expires_at)
        if found is None:
            raise IdentityError(
                "no operator has this token, or no longer; `feddiff-federator operator NAME` makes a new one"
            )
        if found[1] <= self._clock():
            raise IdentityError(f"the token of {found[0]} has expired; `feddiff-federator operator {found[0]}`")
        return found[0]

    def revoke(self, name: str) -> bool:
        """The operator's token no longer holds; False if there was none."""
        with self._database.transaction() as change:
            gone = bool(change.execute("DELETE FROM operators WHERE name = ?", (name,)).rowcount)
            if gone:
                outbox.note(change, "withdrawn", by=outbox.console(), operator=name)
            return gone

    def all(self) -> list[Operator]:
        """By name; expired ones too."""
        return [Operator(*row) for row in self._database.rows("SELECT name, issued_at, expires_at FROM operators")]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
