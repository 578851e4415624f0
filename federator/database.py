"""The federation's one SQLite database: opening, schema version, transactions.

WAL with ``synchronous=FULL``: what a transaction says is durable when it returns, and the command line may read (and
invite, and evict) while the daemon runs. Tables belong to the modules that use them: roster, journal, ledger.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feddiff.core import state
from feddiff.core.errors import NewerState, StoreError


class Database:
    """One connection shared by the threads of a process, one at a time."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        state.check(path.parent)
        try:
            self.connection = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from None
        if version > state.VERSION:
            software = state.writer(path.parent)
            raise NewerState(f"{path} has state {version}, of {software}; {state.SOFTWARE} reads {state.VERSION}")
        if version == 0:
            self.connection.execute(f"PRAGMA user_version = {state.VERSION}")

    def define(self, schema: str) -> None:
        """Create the tables that are not there yet."""
        with self.lock:
            self.connection.executescript(schema)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end. May be nested: the outermost one counts."""
        with self.lock:
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # on a full disk SQLite has rolled back already
                    self.connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self.lock:
            return self.connection.execute(query, values).fetchall()

    def close(self) -> None:
        with self.lock:
            self.connection.close()
