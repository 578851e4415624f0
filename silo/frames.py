"""The frames of a DICOM dataset become slices: decompressed, rescaled, windowed, white on black.

The second half of silo/dicom.py. Sources: PS3.3 C.7.6.3 (pixels), C.11.1 (rescaling), C.11.2 (windows), C.7.6.16
(functional groups).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError
from feddiff.silo import window
from feddiff.silo.slices import MAX_PIXELS, MAX_VOLUME_BYTES, Decoding, Slice, aspect, not_air
from feddiff.silo.window import U8, Window

if TYPE_CHECKING:
    from pydicom import Dataset

SECTIONS = ("CT", "MR", "PT", "NM")
"""Modalities of cross-sections."""
MAX_FRAMES = 1 << 15
SAMPLED = 8
"""Frames from which a window is made where the file says none."""

Array = npt.NDArray[Any]


def several(value: Any) -> list[Any]:
    """The values of an attribute of one or more."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes | float | int) else list(value)


def number(value: Any, default: float = math.nan) -> float:
    """The first value of an attribute; the default if it is no finite number."""
    try:
        found = float(several(value)[0])
    except (IndexError, TypeError, ValueError):
        return default
    return found if math.isfinite(found) else default


def slices(dataset: Dataset, modality: str, how: Decoding) -> Iterator[Slice]:
    """The pictures of a dataset, in its frames' order. Raises DataError, and anything for hostile bytes."""
    wanted = window.parse(how.window).of(modality)
    count, deep = _checked(dataset)
    made: Window | None = None
    for index, (array, colours) in enumerate(_decoded(dataset)):
        frame = _Frame(dataset, index)
        if colours == "PALETTE COLOR":
            from pydicom.pixels.processing import apply_color_lut

            array, colours = apply_color_lut(array, dataset), "RGB"
            deep = array.dtype.itemsize * 8
        if array.ndim == 3:
            if colours not in ("RGB", "YBR_ICT", "YBR_RCT"):
                raise DataError("has colours that are not read")
            yield Slice(_eight(array, deep), frame.aspect)
            continue
        values = frame.rescaled(array)
        pixels = None if wanted else frame.by_table(values)
        if pixels is None:
            chosen = wanted or frame.window
            if chosen is None and deep <= 8 and frame.plain:
                chosen = _bits(deep)
            if chosen is None:
                made = made or (window.WHOLE_CT if modality == "CT" else _made(dataset, count))
                chosen = made
            pixels = chosen.apply(values)
        content = not_air(values, pixels, modality == "CT") if modality in SECTIONS else 1.0
        yield Slice(255 - pixels if colours == "MONOCHROME1" else pixels, frame.aspect, content)


def _checked(dataset: Dataset) -> tuple[int, int]:
    """(frames, bits of a value), before anything of their size is made. Raises DataError."""
    rows, columns = number(dataset.get("Rows"), 0), number(dataset.get("Columns"), 0)
    frames, samples = number(dataset.get("NumberOfFrames"), 1) or 1, number(dataset.get("SamplesPerPixel"), 1)
    bits = number(dataset.get("BitsAllocated"), 0)
    if bits == 1:
        raise DataError("is a mask of one bit")
    if not (rows > 0 and columns > 0 and samples in (1, 3) and bits > 0 and frames > 0):
        raise DataError("says no size that a picture can have")
    if max(frames / MAX_FRAMES, rows * columns / MAX_PIXELS) > 1 or (
        rows * columns * samples * frames * bits / 8 > MAX_VOLUME_BYTES
    ):
        raise DataError("is too large")
    return int(frames), int(number(dataset.get("BitsStored"), bits))


def _decoded(dataset: Dataset, indices: list[int] | None = None) -> Iterator[tuple[Array, str]]:
    """(frame as (H, W) or (H, W, 3), photometric interpretation) of all frames, or of some. Raises DataError."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = UID(f"1.2.840.10008.1.2{'' if implicit else '.1' if little else '.2'}")
        dataset.file_meta.TransferSyntaxUID = syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError("is compressed in a way that is not read") from None
    if not decoder.is_available:
        raise DataError(f"is compressed as {syntax.name}, which needs another decoder (docs/data.md)")
    for array, told in decoder.iter_array(dataset, indices=indices):
        yield array, str(told["photometric_interpretation"])


class _Frame:
    """What a dataset says of one frame: in its functional group, the shared ones, or for all."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        each, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
        self._groups = [*([each[index]] if each and index < len(each) else []), *([shared[0]] if shared else [])]
        self._dataset = dataset

    def _get(self, group: str, name: str) -> Any:
        for groups in self._groups:
            found = groups.get(group)
            if found and (value := found[0].get(name)) is not None:
                return value
        return self._dataset.get(name)

    @property
    def aspect(self) -> float:
        """A pixel's height by its width."""
        for sides in (self._get("PixelMeasuresSequence", "PixelSpacing"), self._dataset.get("PixelAspectRatio")):
            if len(found := several(sides)) == 2:
                return aspect(number(found[:1]), number(found[1:]))
        return 1.0

    @property
    def plain(self) -> bool:
        """Whether values are stored as they are to be shown."""
        slope = self._get("PixelValueTransformationSequence", "RescaleSlope")
        return slope is None and "ModalityLUTSequence" not in self._dataset and not self._dataset.PixelRepresentation

    @property
    def window(self) -> Window | None:
        """The first of the file's own that makes sense."""
        function = str(self._get("FrameVOILUTSequence", "VOILUTFunction") or "LINEAR").strip().upper()
        centers = several(self._get("FrameVOILUTSequence", "WindowCenter"))
        widths = several(self._get("FrameVOILUTSequence", "WindowWidth"))
        windows = (Window(number([c]), number([w]), function) for c, w in zip(centers, widths, strict=False))
        return next((each for each in windows if each.usable), None)

    def rescaled(self, array: Array) -> Array:
        """Stored values as what they measure, e.g. Hounsfield units; float32, or by a table."""
        if self._dataset.get("ModalityLUTSequence"):
            from pydicom.pixels.processing import apply_modality_lut

            return np.asarray(apply_modality_lut(array, self._dataset))
        slope = number(self._get("PixelValueTransformationSequence", "RescaleSlope"), 1.0)
        intercept = number(self._get("PixelValueTransformationSequence", "RescaleIntercept"), 0.0)
        return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)

    def by_table(self, values: Array) -> U8 | None:
        """Values through the file's VOI LUT, if it has one (the first)."""
        tables = self._dataset.get("VOILUTSequence")
        if not tables or "LUTData" not in tables[0]:
            return None
        from pydicom.pixels.processing import apply_voi

        whole = np.clip(np.round(values), -(1 << 31), (1 << 31) - 1).astype(np.int64)
        entries, first, deep = (int(each) for each in tables[0].LUTDescriptor)
        inside = np.clip(whole, first, first + (entries or 1 << 16) - 1)
        return _eight(np.asarray(apply_voi(inside, self._dataset)), deep)


def _made(dataset: Dataset, count: int) -> Window:
    """A window of a file that says none, from some of its frames, without what is only padding."""
    some = sorted({at * count // min(count, SAMPLED) for at in range(min(count, SAMPLED))})
    padding, seen = number(dataset.get("PixelPaddingValue")), []
    for index, (array, _) in zip(some, _decoded(dataset, some), strict=False):
        values = _Frame(dataset, index).rescaled(array)
        seen.append(values[array != padding] if np.any(array != padding) else values.reshape(-1))
    return window.stretch(np.concatenate(seen))


def _bits(deep: int) -> Window:
    """What shows values of so many bits as they are."""
    most = (1 << deep) - 1
    return Window(most / 2, most, "LINEAR_EXACT")


def _eight(array: Array, deep: int) -> U8:
    """Unsigned values of so many bits as eight."""
    most = (1 << max(min(deep, 32), 1)) - 1
    return np.asarray(np.round(np.minimum(array, most) / most * 255)).astype(np.uint8)
