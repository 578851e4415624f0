"""A NIfTI volume becomes slices along an axis of the body, seen as DICOM shows them.

Runs in silo/decoder.py, a process that hostile bytes may kill. The header says which way the body lies; here it is
turned to RAS+ first, then each slice so that a patient's right is left in the picture, and front or head up. Only the
numbers of the header are looked at, no text. Source: NIfTI-1.1 and NIfTI-2.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError
from feddiff.silo import window
from feddiff.silo.slices import MAX_PIXELS, MAX_VOLUME_BYTES, Decoded, Decoding, Slice, aspect, not_air
from feddiff.silo.window import Window

HEADER_BYTES, MAX_EXTENSION_BYTES = 544, 1 << 24
LABELS, VECTORS = 1002, (1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010)
"""Intent codes: a label map; matrices, vectors, points, …"""
FEW = 16
"""A volume of so few different values is a mask or a label map, whatever its header says."""
ACROSS = {"axial": 2, "coronal": 1, "sagittal": 0}


def decode(content: bytes | memoryview, how: Decoding) -> Decoded:
    """What is in a .nii or .nii.gz file; of a series of volumes the first.

    Raises DataError, in words of this module, and anything where the bytes are hostile.
    """
    import nibabel as nib

    packed = bytes(content[:2]) == b"\x1f\x8b"
    start = _unpacked(content, HEADER_BYTES) if packed else bytes(content[:HEADER_BYTES])
    kinds: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    length = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    kind = next((kinds[each] for each in length if each in kinds), None)
    if kind is None:
        raise DataError("is not a NIfTI file")
    header: Any = kind(start[: kind.sizeof_hdr], check=False)
    if header["magic"].item()[:2] != b"n+":
        raise DataError("is not a NIfTI file in one piece")
    shape, offset = _shape(header), int(header["vox_offset"])
    dtype = header.get_data_dtype()
    names = dtype.names or ()
    if dtype.kind not in "buif" and names[:3] != ("R", "G", "B"):
        raise DataError("holds neither numbers nor colours")
    if not HEADER_BYTES - 200 < offset <= MAX_EXTENSION_BYTES:
        raise DataError("has its values where none can be")
    if int(header["intent_code"]) == LABELS:
        raise DataError("is a label map")
    if int(header["intent_code"]) in VECTORS:
        raise DataError("holds no picture")
    count = int(np.prod([int(each) for each in shape], dtype=object))
    data = _unpacked(content, offset + count * dtype.itemsize) if packed else content
    if len(data) < offset + count * dtype.itemsize:
        raise DataError("is shorter than its header says")
    stored = np.frombuffer(data, dtype, count, offset).reshape(shape, order="F")
    if not names and len(np.unique(stored[::3, ::3, ::3])) <= FEW and len(np.unique(stored)) <= FEW:
        raise DataError("is a mask or a label map: it holds few different values")
    return Decoded("NIfTI", _slices(header, stored, how, bool(names)))


def _unpacked(content: bytes | memoryview, most: int) -> bytes:
    """The first bytes of a gzip file: so many, and no more whatever it holds."""
    stream = zlib.decompressobj(wbits=31)
    return stream.decompress(content, most)


def _shape(header: Any) -> tuple[int, int, int]:
    """Of the first volume. Raises DataError."""
    sides = [int(each) for each in header["dim"]]
    if not 2 <= sides[0] <= 7 or any(each < 1 for each in sides[1 : sides[0] + 1]):
        raise DataError("says no size that a volume can have")
    if sides[0] >= 5 and max(sides[5 : sides[0] + 1]) > 1:
        raise DataError("holds no picture")
    across, down, deep = (sides[axis] if axis <= sides[0] else 1 for axis in (1, 2, 3))
    longest = sorted((across, down, deep))
    if longest[1] * longest[2] > MAX_PIXELS or across * down * deep * int(header["bitpix"]) // 8 > MAX_VOLUME_BYTES:
        raise DataError("is too large")
    return across, down, deep


def _slices(header: Any, stored: npt.NDArray[Any], how: Decoding, colour: bool) -> Iterator[Slice]:
    import nibabel as nib

    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise DataError("does not say how the body lies in it")
    turned = nib.orientations.io_orientation(affine)
    if np.isnan(turned).any():
        raise DataError("does not say how the body lies in it")
    volume = nib.orientations.apply_orientation(stored, turned)
    sides = np.ones(3)
    sides[turned[:, 0].astype(int)] = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    axis = ACROSS[how.plane]
    if 1 in volume.shape and volume.shape[axis] != 1:
        axis = int(np.argmin(volume.shape))  # one picture, not a volume
    across, up = (each for each in range(3) if each != axis)
    shape = aspect(sides[up], sides[across])
    slope, shift = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        slope, shift = 1.0, 0.0
    shift = shift if np.isfinite(shift) else 0.0
    planes = np.moveaxis(volume, axis, 0)[:, ::-1, ::-1].swapaxes(1, 2)
    if colour:
        for plane in planes:
            yield Slice(np.stack([plane[name] for name in "RGB"], axis=-1), shape)
        return

    def values(plane: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return (plane.astype(np.float64) * slope + shift).astype(np.float32)

    wanted = window.parse(how.window)
    chosen = wanted.window
    if chosen is None:
        low, high = float(header["cal_min"]), float(header["cal_max"])
        own = Window((low + high) / 2, high - low, "LINEAR_EXACT")
        every = max(len(planes) // 64, 1)
        chosen = own if high > low and own.usable else window.stretch(values(planes[::every]))
    for plane in planes:
        scaled = values(plane)
        pixels = chosen.apply(scaled)
        yield Slice(pixels, shape, not_air(scaled, pixels, wanted.hounsfield))
