"""Who belongs to the federation: silos, their invitations, and who was evicted. Durable.

Four separate truths are told about a silo (see ``federation.status``); this module keeps the first, *enrolled*.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from feddiff.core.errors import CertificateExpired, ConfigError, InvitationSpent, Revoked, UnknownSilo
from feddiff.federator import outbox
from feddiff.federator.certificates import Certificates
from feddiff.federator.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS silos (
  name TEXT PRIMARY KEY, serial TEXT NOT NULL, enrolled_at REAL NOT NULL, evicted TEXT,
  samples INTEGER NOT NULL DEFAULT 0, labels TEXT NOT NULL DEFAULT '{}', device TEXT NOT NULL DEFAULT '',
  software TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS invitations (
  name TEXT PRIMARY KEY, certificate BLOB NOT NULL, fingerprint TEXT NOT NULL, expires_at REAL NOT NULL,
  spent_by TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Silo:
    """An enrolled silo as the federation knows it. ``evicted`` is the reason, or None."""

    name: str
    serial: str
    evicted: str | None
    samples: int
    labels: Mapping[str, int]
    device: str
    software: str


class Roster:
    """The tables of silos and invitations."""

    def __init__(self, database: Database) -> None:
        self._database, self.certificates = database, Certificates(database)
        database.define(SCHEMA + outbox.SCHEMA)

    def invite(self, name: str, certificate: bytes, fingerprint: str, expires_at: float) -> None:
        """Expect a silo; an earlier invitation of this name no longer holds."""
        with self._database.transaction() as change:
            change.execute(
                "INSERT OR REPLACE INTO invitations VALUES (?, ?, ?, ?, NULL)",
                (name, certificate, fingerprint, expires_at),
            )
            until = datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")
            outbox.note(change, "invited", by=outbox.console(), name=name, invitation=fingerprint, until=until)

    def check_free(self, name: str) -> None:
        """Raises ConfigError for the name of a silo, or of one that is invited: nobody else may be called so."""
        with self._database.lock:
            taken = self._database.rows(
                "SELECT 1 FROM silos WHERE name = ?1 UNION SELECT 1 FROM invitations WHERE name = ?1", (name,)
            )
        if taken:
            raise ConfigError(f"{name} is a silo's name; an operator needs another")

    def invitation_certificates(self) -> list[bytes]:
        """Certificates of all invitations, PEM. Spent and expired ones too: their holders get a sentence, not a
        broken handshake; what they may do is decided by ``enroll``."""
        return [bytes(row[0]) for row in self._database.rows("SELECT certificate FROM invitations ORDER BY name")]

    def invitations(self) -> list[tuple[str, float, bool]]:
        """(silo, when it ends in seconds since 1970, whether it is spent) of all, by name."""
        rows = self._database.rows("SELECT name, expires_at, spent_by FROM invitations ORDER BY name")
        return [(str(name), float(ends), spent is not None) for name, ends, spent in rows]

    def check_invitation(self, name: str, fingerprint: str, now: float) -> float:
        """When an invitation ends that can still be spent. Raises InvitationSpent, as ``enroll`` would."""
        query = "SELECT fingerprint, expires_at, spent_by FROM invitations WHERE name = ?"
        found = self._database.rows(query, (name,))
        if not found or found[0][0] != fingerprint:
            raise InvitationSpent(f"{name} has no such invitation; ask the federation for a new one")
        if found[0][2] is not None:
            raise InvitationSpent(f"{name} has enrolled with it already; ask the federation for a new one")
        if found[0][1] <= now:
            raise InvitationSpent(f"the invitation of {name} has expired; ask the federation for a new one")
        return float(found[0][1])

    def invited(self, now: float) -> list[str]:
        """Names with an invitation that may still be used."""
        query = "SELECT name FROM invitations WHERE spent_by IS NULL AND expires_at > ? ORDER BY name"
        return [str(row[0]) for row in self._database.rows(query, (now,))]

    def enroll(self, name: str, fingerprint: str, key: str, serial: int, now: float) -> None:
        """Spend an invitation for a certificate over the public key with this fingerprint, in one step.

        The same key may ask again (its answer may have been lost); enrolling lifts an eviction. Raises InvitationSpent.
        """
        with self._database.transaction() as change:
            found = change.execute(
                "SELECT fingerprint, expires_at, spent_by FROM invitations WHERE name = ?", (name,)
            ).fetchone()
            if not found or found[0] != fingerprint:
                raise InvitationSpent(f"{name} has no such invitation; ask the federation for a new one")
            if found[2] is not None and found[2] != key:
                raise InvitationSpent(f"{name} has enrolled with it already; ask the federation for a new one")
            if found[1] <= now:
                raise InvitationSpent(f"the invitation of {name} has expired; ask the federation for a new one")
            change.execute("UPDATE invitations SET spent_by = ? WHERE name = ?", (key, name))
            self.admit(name, serial, now)

    def admit(self, name: str, serial: int, now: float) -> None:
        """From now on the certificate of this serial counts, and no other of the name. Lifts an eviction."""
        with self._database.transaction() as change:
            change.execute(
                "INSERT INTO silos (name, serial, enrolled_at) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " serial = excluded.serial, enrolled_at = excluded.enrolled_at, evicted = NULL",
                (name, str(serial), now),
            )
            outbox.note(change, "enrolled", silo=name, serial=str(serial))
            self.certificates.settle(name, str(serial))

    def together(self) -> AbstractContextManager[sqlite3.Connection]:
        """What is changed inside becomes durable in one step."""
        return self._database.transaction()

    def check(self, name: str, serial: int, not_after: datetime | None = None) -> Silo:
        """The silo behind a certificate; one that was expected counts from now on.

        Raises UnknownSilo, Revoked, and CertificateExpired: the handshake looked at the dates, but hours may have gone
        by on the same connection."""
        silo = self.get(name)
        if not_after is not None and not_after < datetime.now(UTC):
            raise CertificateExpired(f"the certificate of {name} ended at {not_after:%Y-%m-%d %H:%M} UTC")
        if silo.evicted is not None:
            raise Revoked(f"{name} was evicted: {silo.evicted}")
        if silo.serial == str(serial):
            return silo
        with self._database.transaction() as change:
            if not self.certificates.expected(name, str(serial)):
                raise Revoked(
                    f"{name} has enrolled anew since, or renewed its certificate; this certificate no longer counts."
                    " If that was not you, ask the federation to revoke it; else for a new invitation"
                )
            change.execute("UPDATE silos SET serial = ? WHERE name = ?", (str(serial), name))
            outbox.note(change, "renewed", silo=name, serial=str(serial), instead_of=silo.serial)
            self.certificates.settle(name, str(serial))
        return self.get(name)

    def stale(self, name: str) -> bool:
        """Whether a silo is to renew its certificate now, because the federation's CAs have changed."""
        return self.certificates.stale(name, self.get(name).serial)

    def get(self, name: str) -> Silo:
        found = self.silos(name)
        if not found:
            raise UnknownSilo(f"{name} is not enrolled in this federation")
        return found[0]

    def silos(self, name: str | None = None) -> list[Silo]:
        """All that ever enrolled, by name, or only the one of this name."""
        where, values = ("", ()) if name is None else (" WHERE name = ?", (name,))
        columns = "name, serial, evicted, samples, labels, device, software"
        rows = self._database.rows(f"SELECT {columns} FROM silos{where} ORDER BY name", values)
        return [Silo(row[0], row[1], row[2], row[3], json.loads(row[4]), row[5], row[6]) for row in rows]

    def introduce(self, name: str, samples: int, labels: Mapping[str, int], device: str, software: str) -> None:
        """Note what a silo said of itself when it joined."""
        with self._database.transaction() as change:
            change.execute(
                "UPDATE silos SET samples = ?, labels = ?, device = ?, software = ? WHERE name = ?",
                (samples, json.dumps(dict(labels)), device, software, name),
            )

    def withdraw(self, name: str) -> bool:
        """An invitation no longer holds; False if there is none."""
        with self._database.transaction() as change:
            gone = bool(change.execute("DELETE FROM invitations WHERE name = ?", (name,)).rowcount)
            if gone:
                outbox.note(change, "withdrawn", by=outbox.console(), invitation=name)
            return gone

    def evict(self, name: str, reason: str) -> None:
        """Refuse a silo's certificate from now on. Raises ConfigError if there is no such silo."""
        with self._database.transaction() as change:
            done = change.execute("UPDATE silos SET evicted = ? WHERE name = ?", (reason, name))
            # Its invitation could be used again with the same key, and would lift the eviction.
            change.execute("DELETE FROM invitations WHERE name = ?", (name,))
            self.certificates.forget(name)
            outbox.note(change, "evicted", silo=name, reason=reason)
            if not done.rowcount:
                known = ", ".join(silo.name for silo in self.silos()) or "none"
                raise ConfigError(f"there is no silo {name!r}; enrolled: {known}")
