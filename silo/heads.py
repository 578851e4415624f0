"""The heads of the federator's audit log that a silo has heard of, with its tasks: a witness outside the federator.

Who has the federator's folder and keys can write another history, whole and signed. It will lack the entries whose
hashes silos have kept: ``feddiff-federator audit verify --expect HASH`` finds that.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

from feddiff.core.errors import ProtocolError

NAME = "audit-heads"
"""One line for each: when it was heard (UTC), the entry's number and hash."""
MAX_BYTES = 16 << 20
"""Then no more are kept: some 150000."""
log = logging.getLogger("feddiff.silo")
_HEAD = re.compile(r"[1-9][0-9]{0,11} [0-9a-f]{64}", re.ASCII)


class Heads:
    """Of one silo's state folder."""

    def __init__(self, folder: Path) -> None:
        self._path, self._last = folder / NAME, ""

    def keep(self, head: str) -> None:
        """Write a head down, unless it is the last one again, or there is none. Raises ProtocolError."""
        if not head or head == self._last:
            return
        if not _HEAD.fullmatch(head):
            raise ProtocolError(f"{head[:80]!r} is not the head of an audit log")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size < MAX_BYTES:
                    os.write(file, f"{at} {head}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
        self._last = head
