"""Zip files under ``--data``: what is in one, and the bytes of one member.

Nothing is ever unpacked to a disk, so no member's name leads anywhere; names only stand for labels and places in a
log. Everything that a member says of its size is bounded before it is unpacked. Runs in silo/decoder.py.
"""

from __future__ import annotations

import contextlib
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from feddiff.core.errors import DataError
from feddiff.silo import filetypes

MAX_MEMBERS, MAX_NAME = 200_000, 1024
MAX_MEMBER_BYTES, MAX_ALL_BYTES = 1 << 31, 1 << 41
RATIO, SMALL_BYTES = 250, 1 << 26
"""Members may unpack to so many times their size; small ones to anything, for a blank slice packs very well."""
ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz", ".txz", ".bz2", ".xz", ".zst", ".jar", ".gz"}


@dataclass(frozen=True)
class Member:
    """A file in an archive that may be an image, or why it is left out."""

    name: str
    type: str
    size: int
    crc: int
    reason: str = ""


class Archive:
    """One zip file, open."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for one that cannot be a fair archive, and anything if the bytes are hostile."""
        self.path = path
        self._zip = zipfile.ZipFile(path)
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS or sum(each.file_size for each in members) > MAX_ALL_BYTES:
            raise DataError("is an archive of too much")
        if sum(each.compress_size for each in members) > path.stat().st_size:
            raise DataError("is an archive whose members lie over one another")

    def members(self) -> list[Member]:
        """Its images, in order of their names."""
        found = [self._member(each) for each in self._zip.infolist() if not each.is_dir()]
        return sorted((each for each in found if each is not None), key=lambda member: member.name)

    def _member(self, info: zipfile.ZipInfo) -> Member | None:
        name = PurePosixPath(info.filename)
        if any(part.startswith((".", "__MACOSX")) and part != ".." for part in name.parts):
            return None
        reason = _refused(info, name)
        type = filetypes.by_name(name)
        if not type and not reason:
            with contextlib.suppress(Exception), self._zip.open(info) as file:  # whatever it is, it is no image
                type = filetypes.by_start(file.read(filetypes.START))
        if type in ("", filetypes.ZIP):
            return Member(str(name)[:MAX_NAME], "", 0, 0, reason) if reason else None
        return Member(str(name)[:MAX_NAME], type, info.file_size, info.CRC, reason)

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises anything if they are hostile."""
        info = self._zip.getinfo(name)
        if reason := _refused(info, PurePosixPath(name)):
            raise DataError(reason)
        with self._zip.open(info) as file:
            return file.read(info.file_size + 1)

    def close(self) -> None:
        self._zip.close()


def _refused(info: zipfile.ZipInfo, name: PurePosixPath) -> str:
    """Why a member is not unpacked, or ""."""
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename or len(info.filename) > MAX_NAME:
        return "has a name that leads out of its archive"
    if not stat.S_ISREG(mode := info.external_attr >> 16) and stat.S_IFMT(mode):
        return "is not a regular file"
    if info.flag_bits & 1:
        return "is encrypted"
    if name.suffix.lower() in ARCHIVES and filetypes.by_name(name) in ("", filetypes.ZIP):
        return "is an archive in an archive"
    if info.file_size > MAX_MEMBER_BYTES:
        return "is too large"
    if info.file_size > max(SMALL_BYTES, RATIO * info.compress_size):
        return f"unpacks to more than {RATIO} times its size"
    return ""
