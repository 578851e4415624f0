"""Facts about this machine and a folder on it, for the doctors: gathered here, judged in core/premises.py.

Nothing is changed but by a file that is made and removed at once, and no lock is taken: a daemon may be at work.
"""

from __future__ import annotations

import ctypes
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from feddiff.core import console

_UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes."""

    memory: int
    """All that this process may have: the machine's, or its control group's."""
    available: int
    cpus: int
    synchronised: bool | None
    """Whether the system's clock is kept by a time service; None: not to be known here."""


@dataclass(frozen=True)
class Folder:
    """A folder that holds, or is to hold, state. Sizes in bytes."""

    path: Path
    exists: bool
    unwritable: str
    """Why nothing can be written there; empty if it can."""
    free: int
    """On its disk, for this user."""
    used: int
    """By the files in it."""
    owner: int | None
    """User id; None if it does not exist."""
    open_files: tuple[str, ...]
    """Names of secret files that others than their owner may read."""
    in_use: bool
    """Whether a daemon has its lock."""


def look() -> Machine:
    """This machine, now."""
    total, available = _memory()
    return Machine(total, available, console.cpus(), _synchronised())


def inspect(path: Path, secrets: tuple[str, ...] = ()) -> Folder:
    """A folder as it is; ``secrets`` are files in it that are nobody else's."""
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    exists = path.is_dir()
    try:
        disk = os.statvfs(there)
        free = disk.f_bavail * disk.f_frsize
        owner = path.stat().st_uid if exists else None
    except OSError:
        free, owner = 0, None
    open_files = tuple(name for name in secrets if _shared(path / name))
    return Folder(path, exists, _unwritable(there), free, _used(path), owner, open_files, locked(path / "lock"))


def locked(path: Path) -> bool:
    """Whether somebody holds flock(2) on a file, without trying: a daemon that starts just then must not lose it."""
    try:
        status = path.stat()
        table = Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() for line in table.splitlines() if "FLOCK" in line)


def _unwritable(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        handle, name = tempfile.mkstemp(prefix=".doctor.", dir=folder)
        try:
            os.write(handle, b"x" * 4096)
        finally:
            os.close(handle)
            Path(name).unlink()
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return ""


def _shared(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False


def _used(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
            except OSError:
                continue  # a daemon tidies up meanwhile
    return total


def _memory() -> tuple[int, int]:
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        known = {words[0]: int(words[1]) << 10 for words in lines if len(words) > 1}
        total, available = known["MemTotal:"], known["MemAvailable:"]
    except (OSError, LookupError, ValueError):
        total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # control groups, version 2: systemd's MemoryMax, a container's limit
        group = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
        here = Path("/sys/fs/cgroup") / group
        limit, current = int((here / "memory.max").read_text()), int((here / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(limit - current, 0))


def _synchronised() -> bool | None:
    ask = getattr(ctypes.CDLL(None), "ntp_adjtime", None)
    if ask is None:
        return None
    state = int(ask(ctypes.create_string_buffer(512)))  # struct timex, 208 bytes; modes 0: nothing is set
    return None if state < 0 else state != _UNSYNCHRONISED
