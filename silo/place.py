"""Where a silo's state lies, if nobody says: looked up first, by the daemon and by every command beside it."""

from __future__ import annotations

import os
from pathlib import Path

from feddiff.core import state
from feddiff.core.errors import ConfigError


def state_folder(given: Path | None, address: str | None) -> Path:
    """As given, or systemd's, or one for each federator. Raises ConfigError, and NewerState if it is not for us."""
    folder = given or _usual(address)
    state.check(folder)
    return folder


def _usual(address: str | None) -> Path:
    if os.environ.get("STATE_DIRECTORY"):
        return Path(os.environ["STATE_DIRECTORY"])
    if not address:
        raise ConfigError("which silo? give --federator or --state")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "feddiff" / address.replace(":", "_").replace("[", "").replace("]", "")


def check_apart(home: Path, data: Path) -> None:
    """State and images must not lie in one another: a silo tidies its state. Raises ConfigError."""
    inner, outer = sorted((home.resolve(), data.resolve()), key=lambda path: len(path.parts), reverse=True)
    if outer == inner or outer in inner.parents:
        raise ConfigError(f"--state {home} and --data {data} must be folders apart")
