"""Which layout a state folder has, and which feddiff wrote it last: an upgrade can be taken back, or says why not.

Before anything else of a folder is read. ``version.json`` holds ``{"state": 1, "software": "feddiff 0.1.0"}``; a folder
without one was written before there was such a file, in the layout of version 1. Who changes the layout of either
daemon's folder raises ``VERSION``, and in ``mark`` either brings older folders to it, one version at a time, or has
``check`` refuse them.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from feddiff.core.errors import NewerState, StoreError
from feddiff.core.store import write_atomic

VERSION = 1
OLDEST = 1
"""The oldest version that this feddiff still reads."""
FILE = "version.json"
SOFTWARE = f"feddiff {importlib.metadata.version('feddiff')}"


def check(folder: Path) -> None:
    """Refuse a folder that this feddiff cannot read, and change nothing. Raises NewerState, StoreError."""
    version, software = _read(folder)
    if version > VERSION:
        raise NewerState(
            f"{folder} was written by {software} (state {version}) and this is {SOFTWARE} (state {VERSION}); install"
            f" {software} or newer again, or put back the copy of the folder that was made before the upgrade"
        )
    if version < OLDEST:
        raise StoreError(
            f"{folder} was written by {software} (state {version}) and {SOFTWARE} reads none before state {OLDEST};"
            " let a version between the two run on it once, or begin with a new folder"
        )


def mark(folder: Path) -> None:
    """``check``, then note that this feddiff writes here. To be called by whoever holds the folder's lock."""
    check(folder)
    if _read(folder) != (VERSION, SOFTWARE) or not (folder / FILE).exists():
        write_atomic(folder / FILE, json.dumps({"state": VERSION, "software": SOFTWARE}).encode())


def writer(folder: Path) -> str:
    """The software that wrote a folder last, for people."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[int, str]:
    try:
        found = json.loads((folder / FILE).read_bytes())
        return int(found["state"]), f"{found['software']:.100}"
    except FileNotFoundError:
        return 1, "a feddiff of before version 0.2"
    except PermissionError:
        raise StoreError(f"{folder} is another user's; run this as the daemon's user (sudo -u USER …)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / FILE} cannot be read ({error}); put it back from a copy of the folder") from None
