"""What a file under ``--data`` is, by its name, or by its first bytes: DICOM files often have no suffix at all."""

from __future__ import annotations

from pathlib import PurePath

from feddiff.core.images import is_plain

PLAIN, DICOM, NIFTI, ZIP = "plain", "DICOM", "NIfTI", "zip"
START = 132
"""Bytes by which a DICOM file is known."""
SUFFIXES = {".nii": NIFTI, ".zip": ZIP, ".dcm": DICOM, ".dicom": DICOM, ".dic": DICOM, ".ima": DICOM}
FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""Groups 0002 and 0008, little-endian, and 0008, big-endian: how old files without a preamble begin."""


def by_name(path: PurePath) -> str:
    """The type that a name says, or ""."""
    if is_plain(path):
        return PLAIN
    if path.name.lower().endswith(".nii.gz"):
        return NIFTI
    return SUFFIXES.get(path.suffix.lower(), "")


def by_start(start: bytes) -> str:
    """The type of a file whose name says none, or ""."""
    return DICOM if start[128:132] == b"DICM" else ""
