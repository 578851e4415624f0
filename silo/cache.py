"""Decoded slices on the silo's disk, so that a file is decoded once and not at every start.

    STATE/decoded/slices.db    one SQLite file; who deletes it loses time, nothing else

An entry is known by a keyed digest of the file's bytes and the way of decoding; a second table, keyed as well, says
which bytes a place held when it was looked at last (path, size, times, inode), so that nothing is read that has not
changed. No path, UID or other text of a file is in it, and what is no longer under ``--data`` is wiped at the next
start.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any

from feddiff.core.errors import StoreError

NAME, LAYOUT = "slices.db", 2
SPARED_BYTES = 1 << 30
"""What is left free on the disk."""
COMMIT_S = 2.0
logger = logging.getLogger(__name__)


class Cache:
    """One folder's entries. Whatever is wrong with the file, the entries are only missing."""

    def __init__(self, folder: Path, most: int) -> None:
        """At most ``most`` bytes. Raises StoreError if the folder cannot be made."""
        self._path, self._most = folder / NAME, most
        self._full = False
        self._wanted: dict[bytes, bytes] = {}
        self.key = b""
        """Of all digests that are kept."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}; give another folder with --state") from None
        try:
            self._open()
        except sqlite3.OperationalError as error:  # another process writes, or the disk is full: it is left alone
            logger.warning("decoded slices are not kept (%s)", error)
            self._db, self.key = sqlite3.connect(":memory:"), token_bytes(32)
            self._full = True
            self._tables()
        except sqlite3.DatabaseError:
            self._wipe()
            self._open()
        self._bytes = int(self._db.execute("select coalesce(sum(length(pixels)), 0) from slices").fetchone()[0])
        self._committed = time.monotonic()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, timeout=5.0, isolation_level="DEFERRED")
        try:
            self._path.chmod(0o600)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                self._db.execute(f"pragma {pragma}")
            self._tables()
            found = dict(self._db.execute("select name, value from about").fetchall())
            if found.get("layout", str(LAYOUT).encode()) != str(LAYOUT).encode():
                raise sqlite3.DatabaseError("of another version")
            if found.get("layout") != str(LAYOUT).encode() or len(found.get("key", b"")) != 32:
                found = {"layout": str(LAYOUT).encode(), "key": token_bytes(32)}
                self._db.executemany("insert or replace into about values (?, ?)", list(found.items()))
                self._db.commit()
            self.key = found["key"]
        except BaseException:
            self._db.close()
            raise

    def _tables(self) -> None:
        for table in (
            "about (name text primary key, value blob)",
            "slices (entry blob primary key, facts text, proof blob, pixels blob)",
            "places (place blob primary key, file blob, entry blob)",
        ):
            self._db.execute(f"create table if not exists {table}")

    def _wipe(self) -> None:
        for name in (NAME, f"{NAME}-wal", f"{NAME}-shm"):
            self._path.with_name(name).unlink(missing_ok=True)

    def named(self, *words: object) -> bytes:
        """What stands for some words: nothing can be learnt of them without the key."""
        text = "\0".join(str(each) for each in words)
        return blake2b(text.encode(errors="surrogatepass"), key=self.key, digest_size=16).digest()

    def get(self, place: bytes) -> tuple[dict[str, Any], bytes] | None:
        """(facts, pixels) of a place, if they are known and whole."""
        try:
            row = self._db.execute(
                "select facts, proof, pixels from places join slices using (entry) where place = ?", (place,)
            ).fetchone()
            if row is None or row[1] != _proof(row[0], row[2]):
                return None
            return json.loads(row[0]), bytes(row[2])
        except (sqlite3.Error, ValueError, TypeError):
            return None

    def put(self, place: bytes, entry: bytes, facts: dict[str, Any], pixels: bytes) -> None:
        """Keep what a place held; nothing more once the bound or the disk's end is reached."""
        if self._full:
            return
        if self._bytes + len(pixels) > self._most:
            self._delete("place", set(self._wanted))
        if self._bytes + len(pixels) > self._most or shutil.disk_usage(self._path.parent).free < SPARED_BYTES:
            self._full = True
            logger.warning("%s: no room for more decoded slices; the rest is decoded at every start", self._path.parent)
            return
        text = json.dumps(facts)
        try:
            done = self._db.execute(
                "insert or replace into slices values (?, ?, ?, ?)", (entry, text, _proof(text, pixels), pixels)
            )
            row = (place, self._wanted.get(place, b""), entry)
            self._db.execute("insert or replace into places values (?, ?, ?)", row)
            self._bytes += len(pixels) * done.rowcount
            if time.monotonic() - self._committed > COMMIT_S:
                self.commit()
        except sqlite3.Error as error:
            self._full = True
            logger.warning("%s: decoded slices are not kept (%s)", self._path.parent, error)

    def keep_only(self, wanted: dict[bytes, bytes]) -> None:
        """Wipe everything that is of other files than these: places with what stands for their files.

        The same files read another way stay, until there is no more room.
        """
        self._wanted = wanted
        self._delete("file", set(wanted.values()))

    def _delete(self, column: str, kept: Collection[bytes]) -> None:
        """Wipe what is not of these; nothing if it is all of these."""
        try:
            found = self._db.execute(f"select distinct {column} from places").fetchall()
            gone = [row for row in found if row[0] not in kept]
            if not gone:
                return
            self._db.executemany(f"delete from places where {column} = ?", gone)
            self._db.execute("delete from slices where entry not in (select entry from places)")
            self._bytes = int(self._db.execute("select coalesce(sum(length(pixels)), 0) from slices").fetchone()[0])
            self.commit()
        except sqlite3.Error as error:
            logger.warning("%s: decoded slices are not kept (%s)", self._path.parent, error)

    def commit(self) -> None:
        self._db.commit()
        self._committed = time.monotonic()

    def close(self) -> None:
        try:
            self._db.commit()
        except sqlite3.Error as error:
            logger.warning("%s: decoded slices are not kept (%s)", self._path.parent, error)
        finally:
            self._db.close()


def _proof(facts: str, pixels: bytes) -> bytes:
    """That an entry is whole."""
    return blake2b(facts.encode() + b"\0" + pixels, digest_size=16).digest()
