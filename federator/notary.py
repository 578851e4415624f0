"""Writes the audit log: what waits in the outbox becomes signed lines of ``audit.jsonl``, in order, each once.

    audit.key     Ed25519, PKCS#8 PEM: signs entries and nothing else; it stays when the CA changes
    audit.pem     its public key, whose fingerprint `init` prints
    audit.jsonl   the log (federator/audit.py says its form); nothing but appended to

May be killed anywhere, and run by several processes: the file's lock is held while it is written, and an event's id
tells whether it is there already. Lines are durable (fsync) before the database forgets what they were made of.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from feddiff.core.errors import FedDiffError, StoreError
from feddiff.core.store import sync_folder, write_atomic
from feddiff.core.wire import SOFTWARE
from feddiff.federator import audit, outbox
from feddiff.federator.database import Database

LOG, KEY, PUBLIC = "audit.jsonl", "audit.key", "audit.pem"

log = logging.getLogger("feddiff.federator")


class Notary:
    """Of one federator's folder."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self._database = folder, database
        database.define(outbox.SCHEMA)
        self._key: Ed25519PrivateKey | None = None
        self._trouble = ""

    def start(self, **facts: object) -> None:
        """A federator begins to serve. Raises StoreError if its log cannot be written."""
        with self._database.transaction() as change:
            outbox.note(change, "started", software=SOFTWARE, **facts)
        self.write()

    def keep_up(self) -> None:
        """``write``; what fails is logged, once, and tried again by the next call."""
        try:
            self.write()
            self._trouble = ""
        except (FedDiffError, OSError, sqlite3.Error) as error:
            if str(error) != self._trouble:
                log.error("the audit log cannot be written: %s", error)
            self._trouble = str(error)

    def write(self) -> int:
        """Append what waits; returns how many entries that were. Raises StoreError."""
        count = 0
        while outbox.pending(self._database):
            with _locked(self._folder) as file:
                count += self._append(file)
        return count

    def _append(self, file: int) -> int:
        if self._key is None:
            self._key = signing_key(self._folder, os.fstat(file).st_size > 0)
        number, head = self._settled(file)
        events = outbox.pending(self._database)
        lines = []
        for each in events:
            number += 1
            key = audit.fingerprint(self._key.public_key())[:16]
            at = datetime.fromtimestamp(each.at, UTC)
            entry = audit.Entry(number, _clock(at), each.id, each.kind, json.loads(each.facts), head, key)
            lines.append(audit.seal(entry, self._key))
            head = audit.hash_of(lines[-1])
        _write(file, b"".join(line + b"\n" for line in lines))
        outbox.settle(self._database, events, number, head)
        return len(events)

    def _settled(self, file: int) -> tuple[int, str]:
        """The log's last number and head, once file and database agree on them.

        They do not after a kill between the two, or when one of them was put back to an older state or changed.
        """
        assert self._key is not None
        _cut_torn(file)
        _found(self._folder, file, self._key)
        known, found = outbox.head(self._database), audit.hash_of(_last(file))
        if found == known[1]:
            return known
        return self._reconciled(file, known, found)

    def _reconciled(self, file: int, known: tuple[int, str], found: str) -> tuple[int, str]:
        waiting = {each.id: each for each in outbox.pending(self._database)}
        at, after, written, strange, garbage = known[0] == 0, known[0], [], False, False
        for line in _lines(file):
            if not at:
                at = audit.hash_of(line) == known[1]
                continue
            try:
                entry = audit.parse(line)[0]
            except ValueError:
                garbage = True
                continue
            after = max(after, entry.number)
            if entry.id in waiting:
                written.append(waiting[entry.id])
            else:
                strange |= entry.kind != audit.FOUNDED
        with self._database.transaction() as change:
            if not at or garbage:
                log.error("%s is not what was written, which was %d entries up to now", LOG, known[0])
                outbox.note(change, "lost", entries=known[0], head=known[1])
            elif strange:
                log.error("%s knows of more than the database, which was put back to an older state", LOG)
                outbox.note(change, "restored", entries=known[0], head=known[1], found=after)
            outbox.settle(self._database, written, after, found)
        return after, found


@contextmanager
def attended(folder: Path) -> Iterator[Database]:
    """The database for a command of the operator's, whose deeds are in the log at the end, or else soon."""
    database = Database(folder / "federation.db")
    try:
        database.define(outbox.SCHEMA)
        yield database
        Notary(folder, database).keep_up()
    finally:
        database.close()


def found(folder: Path) -> str:
    """Make the log and its key, unless they are there; returns the key's fingerprint. Raises StoreError."""
    with _locked(folder) as file:
        key = signing_key(folder, os.fstat(file).st_size > 0)
        _found(folder, file, key)
        return audit.fingerprint(key.public_key())


def signing_key(folder: Path, begun: bool) -> Ed25519PrivateKey:
    """The key, made here if the log has not ``begun``. Raises StoreError for one that is lost or not the log's."""
    path = folder / KEY
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        if begun:
            raise StoreError(f"{path} is missing; put it back, the log goes on with no other key") from None
        key = Ed25519PrivateKey.generate()
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write_atomic(path, key.private_bytes(serialization.Encoding.PEM, form, plain), mode=0o600)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StoreError(f"{path} is no private key; put it back") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(f"{path} is not the key of an audit log; put it back")
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not (folder / PUBLIC).exists():
        write_atomic(folder / PUBLIC, public)
    elif (folder / PUBLIC).read_bytes() != public:
        raise StoreError(f"{path} is not the key of {folder / PUBLIC}; put the right one back")
    return key


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The log, open for appending, ours alone meanwhile. Raises StoreError."""
    try:
        file = os.open(folder / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{folder / LOG}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    except OSError as error:
        raise StoreError(f"{folder / LOG}: {error.strerror}") from None
    finally:
        os.close(file)


def _found(folder: Path, file: int, key: Ed25519PrivateKey) -> None:
    """Write the first entry, unless there is one."""
    if os.fstat(file).st_size == 0:
        entry = audit.founding(key, _clock(datetime.now(UTC)), secrets.token_hex(8), software=SOFTWARE)
        _write(file, audit.seal(entry, key) + b"\n")
        sync_folder(folder)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)


def _tail(file: int) -> bytes:
    size = os.fstat(file).st_size
    start = max(0, size - 2 * audit.MAX_LINE)
    return os.pread(file, size - start, start)


def _cut_torn(file: int) -> None:
    """Forget a line that was being written when its writer was killed: it is in the outbox still."""
    tail = _tail(file)
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(file, os.fstat(file).st_size - len(tail) + tail.rfind(b"\n") + 1)


def _last(file: int) -> bytes:
    return _tail(file).removesuffix(b"\n").rpartition(b"\n")[2]


def _lines(file: int) -> Iterator[bytes]:
    with open(file, "rb", closefd=False) as whole:
        whole.seek(0)
        for line in iter(lambda: whole.readline(2 * audit.MAX_LINE), b""):
            yield line.removesuffix(b"\n")


def _clock(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
