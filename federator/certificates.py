"""The certificates that were issued to silos: which one counts, which one is expected instead of it, when they end.

A silo has one certificate that counts, the one whose serial the roster knows. Another, issued since, is *expected*: the
first call that is made with it settles the change, and the old one is refused from then on. So nothing is lost when an
answer, or the silo with a half-written file, goes down on the way.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

from feddiff.core import trust
from feddiff.core.identity import Identity
from feddiff.federator import outbox
from feddiff.federator.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS certificates (
  name TEXT NOT NULL, serial TEXT NOT NULL, key TEXT NOT NULL, certificate BLOB NOT NULL, stage TEXT NOT NULL,
  expires_at REAL NOT NULL, PRIMARY KEY (name, serial)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attested (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprints TEXT NOT NULL);
"""
DAY_S = 86400.0


class Certificates:
    """The table of issued certificates: at most two for each silo."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self.stage = ""
        """``Authority.stage`` as it is now, once the daemon has said so."""
        database.define(SCHEMA + outbox.SCHEMA)

    def add(self, name: str, key: str, certificate: bytes, stage: str, counting: str | None) -> None:
        """Expect a certificate, issued for the public key of this digest, at this ``Authority.stage``.

        One that was expected before is not any more; the ``counting`` serial stays."""
        identity = Identity.from_certificate(certificate)
        with self._database.transaction() as change:
            change.execute("DELETE FROM certificates WHERE name = ? AND serial IS NOT ?", (name, counting))
            change.execute(
                "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?)",
                (name, str(identity.serial), key, certificate, stage, identity.not_after.timestamp()),
            )
            until = identity.not_after.isoformat(timespec="seconds")
            facts = {"serial": str(identity.serial), "certificate": identity.fingerprint, "key": key, "until": until}
            outbox.note(change, "issued", silo=name, **facts)

    def attest(self, **certificates: bytes) -> None:
        """The federation's own certificates are these (PEM; empty: none of that role). A change goes on record, whoever
        made it, and whenever: the files are what counts."""
        facts = {role: trust.fingerprint(each).hex() if each else "" for role, each in certificates.items()}
        with self._database.transaction() as change:
            known = change.execute("SELECT fingerprints FROM attested").fetchone()
            if known is None or json.loads(known[0]) != facts:
                change.execute("INSERT OR REPLACE INTO attested VALUES (1, ?)", (json.dumps(facts),))
                outbox.note(change, "certificates", **facts)

    def issued(self, name: str, key: str, stage: str) -> bytes | None:
        """What was issued for this very key, if it is still good: a repeated question has the same answer."""
        query = "SELECT certificate FROM certificates WHERE name = ? AND key = ? AND stage = ? AND expires_at > ?"
        found = self._database.rows(query, (name, key, stage, self._clock()))
        return bytes(found[0][0]) if found else None

    def expected(self, name: str, serial: str) -> bool:
        return bool(self._database.rows("SELECT 1 FROM certificates WHERE name = ? AND serial = ?", (name, serial)))

    def settle(self, name: str, serial: str) -> None:
        """This one counts from now on; others do not."""
        with self._database.transaction() as change:
            change.execute("DELETE FROM certificates WHERE name = ? AND serial <> ?", (name, serial))

    def forget(self, name: str) -> None:
        """None of a silo's counts, or is expected."""
        with self._database.transaction() as change:
            change.execute("DELETE FROM certificates WHERE name = ?", (name,))

    def days(self, name: str, serial: str) -> float:
        """Until this certificate ends, in days; NaN if that is not known."""
        query = "SELECT expires_at FROM certificates WHERE name = ? AND serial = ?"
        found = self._database.rows(query, (name, serial))
        return (found[0][0] - self._clock()) / DAY_S if found else math.nan

    def stale(self, name: str, serial: str) -> bool:
        """Whether a silo came by this certificate before the federation's CAs changed, so that it is to renew it."""
        if not self.stage:
            return False
        query = "SELECT stage FROM certificates WHERE name = ? AND serial = ?"
        found = self._database.rows(query, (name, serial))
        return not found or found[0][0] != self.stage
