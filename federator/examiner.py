"""What ``audit verify`` and ``audit show`` say of a log. Reads only, needs no daemon and, for a copy, no folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from feddiff.core.errors import ConfigError, StoreError
from feddiff.federator import audit
from feddiff.federator.measure import seconds
from feddiff.federator.notary import LOG, PUBLIC

_DIGITS = re.compile("[0-9a-f]{16,64}")


def verify(config: Path, file: Path | None, key: str | None, expected: str | None) -> str:
    """Check a log, by default the one of the folder; returns what holds of it.

    ``key``: the fingerprint that `init` printed; ``expected``: a head that was noted once. A log that lies beside its
    ``audit.pem`` and database is checked against these too. Raises AuditError that names the first broken line.
    """
    path = file or config.resolve().parent / LOG
    beside = path.resolve().parent
    wanted = _digits(key, "--key") if key else _public(beside / PUBLIC)
    # Asked before the file is read: what is written meanwhile is more than this, never less.
    database = _database(beside / "federation.db")
    head, waiting = database or ("", 0)
    noted = [head] if head else []
    if expected:
        noted.append(_digits(expected, "--expect"))
    with _opened(path) as lines:
        found = audit.check(lines, wanted, noted)
    told = [
        f"{path}: {found.entries} entries from {found.first} to {found.last}, whole and in order",
        f"head: {found.head}",
        f"key:  {found.key}" + ("" if wanted else "  (compare it with the one that the federation told)"),
    ]
    told += [f"entry {each}: the database was put back to an older state before it" for each in found.restored]
    if database is None and not expected:
        told.append(
            "no database beside it to ask for the last entry: whether the tail was cut off, --expect HASH tells"
        )
    if waiting:
        told.append(f"{waiting} more are on record in the database and will be written by the next command or `serve`")
    return "\n".join(told)


def show(config: Path, file: Path | None, since: str | None, as_json: bool) -> Iterator[str]:
    """The entries, one text each; as they are in the file if ``as_json``. Checks nothing. Raises ConfigError."""
    path = file or config.resolve().parent / LOG
    begin = _since(since)
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry, _ = audit.parse(line.removesuffix(b"\n"))
            except ValueError:
                yield f"line {number} is not an entry: `feddiff-federator audit verify`"
                continue
            if entry.at >= begin:
                yield line.decode("ascii").rstrip("\n") if as_json else _text(entry)


def _text(entry: audit.Entry) -> str:
    facts = "  ".join(f"{name}={_value(fact)}" for name, fact in entry.facts.items())
    return f"{entry.number:>7}  {ascii(entry.at)[1:-1]}  {ascii(entry.kind)[1:-1]:<12}  {facts}"


def _value(fact: object) -> str:
    return fact if isinstance(fact, str) and re.fullmatch(r"[\w.:@/+-]+", fact, re.ASCII) else json.dumps(fact)


def _since(text: str | None) -> str:
    """A moment as entries tell it. Raises ConfigError."""
    if text is None:
        return ""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            at = datetime.now(UTC) - timedelta(seconds=seconds(text, "--since"))
        except ConfigError:
            raise ConfigError(
                f"--since {text:.40}: a date such as 2026-05-01 or a time such as 7d was expected"
            ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")[:23]


def _digits(text: str, option: str) -> str:
    """Raises ConfigError for what is no fingerprint or hash."""
    digits = re.sub(r"[\s:]", "", text).lower()
    if not _DIGITS.fullmatch(digits):
        raise ConfigError(f"{option} {text:.80}: 16 to 64 hexadecimal digits were expected")
    return digits


def _public(path: Path) -> str | None:
    """The fingerprint of the public key in a file, if there is one. Raises StoreError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise StoreError(f"{path} is no public key; name the fingerprint with --key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError(f"{path} is not the key of an audit log; name the fingerprint with --key")
    return audit.fingerprint(key)


def _database(path: Path) -> tuple[str, int] | None:
    """What the database beside the log knows: the last head, and how many events wait. None if it cannot be asked."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as database:
            heads = database.execute("SELECT hash FROM audited").fetchall()
            waiting = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
    except sqlite3.Error:
        return None
    return str(heads[0][0]) if heads else "", int(waiting)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines that are there now, newlines included, and none that is being written. Raises StoreError."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    with os.fdopen(number, "rb") as file:
        with contextlib.suppress(OSError):  # a copy may lie where there are no locks
            fcntl.flock(file, fcntl.LOCK_SH)
        size = os.fstat(file.fileno()).st_size
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)

        def lines() -> Iterator[bytes]:
            left = size
            while left and (line := file.readline(min(left, audit.MAX_LINE + 1))):
                left -= len(line)
                yield line

        yield lines()
