"""A DICOM file becomes slices: values rescaled, windowed, upright; or is left out for a reason.

Runs in silo/decoder.py, a process that hostile bytes may kill. Of a file's attributes only those in ``READ`` are ever
looked at, so nothing of a patient becomes a value here. Sources: PS3.3 C.7.6.3 (pixels), C.11.1 (rescaling), C.11.2
(windows), C.7.6.16 (functional groups), C.7.6.1.1.2 (image type).
"""

from __future__ import annotations

import io
import math
import warnings
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from feddiff.core.errors import DataError
from feddiff.silo.filetypes import FIRST_TAGS
from feddiff.silo.frames import SECTIONS, number, several, slices
from feddiff.silo.slices import NO_LABEL, OTHER_LABEL, Decoded, Decoding

if TYPE_CHECKING:
    from pydicom import Dataset

# fmt: off
READ = (
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "InstanceNumber",
    "BurnedInAnnotation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PixelAspectRatio",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "SmallestImagePixelValue", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
# fmt: on
"""The attributes that are looked at, all others stay bytes."""
# fmt: off
MODALITIES = (
    *SECTIONS, "BI", "CR", "DX", "ES", "GM", "IO", "IVOCT", "IVUS", "MG", "OP", "OPT", "OT", "PX", "RF", "RG", "SM",
    "US", "XA", "XC",
)
# fmt: on
"""What an inventory names; others are counted without their name."""
NO_PICTURES = (
    ("1.2.840.10008.1.3.10", "is an index of files (DICOMDIR)"),
    ("1.2.840.10008.5.1.4.1.1.88.", "is a report"),
    ("1.2.840.10008.5.1.4.1.1.11.", "is a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.66", "is a segmentation, registration or raw data"),
    ("1.2.840.10008.5.1.4.1.1.481.", "is radiotherapy data (dose, structures, plan)"),
    ("1.2.840.10008.5.1.4.1.1.104.", "is an encapsulated document"),
    ("1.2.840.10008.5.1.4.1.1.9.", "is a waveform"),
    ("1.2.840.10008.5.1.4.1.1.30", "is a parametric map"),
)
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
RECKONED = {"MPR", "MIP", "MINIP", "PROJECTION IMAGE", "REFORMATTED", "CURVED MPR", "VOLUME RENDERING", "SSD", "VRT"}
SCREEN = {"SCREEN SAVE", "SCREENSHOT", "SCREEN_SAVE", "DOSE", "DOSE_INFO", "DOSE REPORT", "CT_SOM5 PROT"}


def decode(content: bytes | memoryview, how: Decoding, key: bytes) -> Decoded:
    """What is in a file; ``key`` is that of the UIDs' digests.

    Raises DataError, in words of this module, for what is left out; its slices do so, too; and anything else at all
    where the bytes are hostile, whose text must go nowhere.
    """
    import pydicom

    whole = bytes(content[128:132]) == b"DICM"
    if not whole and bytes(content[:2]) not in FIRST_TAGS:
        raise DataError("is not a DICOM file")
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    tags = [*READ, *([how.keyword] if how.keyword else [])]
    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=list(tags), force=not whole)
    modality = _text(dataset, "Modality")
    _leave_out(dataset, modality)
    return Decoded(
        f"DICOM {modality}" if modality in MODALITIES else "DICOM",
        slices(dataset, modality, how),
        _label(dataset, how),
        _digest(dataset, "SeriesInstanceUID", key),
        _digest(dataset, "StudyInstanceUID", key),
        _position(dataset),
    )


def digest(uid: str, key: bytes) -> str:
    """What stands for a UID."""
    return blake2b(uid.strip().encode(), key=key, digest_size=16).hexdigest()


def _digest(dataset: Dataset, name: str, key: bytes) -> str:
    uid = _text(dataset, name)
    return digest(uid, key) if uid else ""


def _text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _leave_out(dataset: Dataset, modality: str) -> None:
    """Raise DataError for what is no picture of a patient's inside, or one that was taken for another reason."""
    sop = _text(dataset, "SOPClassUID")
    media = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", "")) if hasattr(dataset, "file_meta") else ""
    for prefix, reason in NO_PICTURES:
        if sop.startswith(prefix) or media.startswith(prefix):
            raise DataError(reason)
    if "PixelData" not in dataset:
        raise DataError("holds no picture")
    kinds = [str(each).strip().upper() for each in several(dataset.get("ImageType"))]
    said = set(kinds[2:]) | {word for each in kinds[2:] for word in each.split("_")}
    if _text(dataset, "BurnedInAnnotation").upper() == "YES":
        raise DataError("says that text is burned into its pixels")
    if said & LOCALIZER:
        raise DataError("is a localiser")
    if said & SCREEN or (sop.startswith(CAPTURE) and modality in SECTIONS):
        raise DataError("is a captured screen (dose report, annotated slice)")
    reckoned = bool(said & RECKONED) or kinds[:2] == ["DERIVED", "SECONDARY"]
    if modality in SECTIONS and kinds[:1] == ["DERIVED"] and reckoned:
        raise DataError("is derived from other images (reformatted, projected)")


def _label(dataset: Dataset, how: Decoding) -> int:
    if not how.keyword or not (said := "\\".join(str(each).strip() for each in several(dataset.get(how.keyword)))):
        return NO_LABEL
    known = {name.casefold(): place for place, name in reversed(list(enumerate(how.classes)))}
    return known.get(said.casefold(), OTHER_LABEL)


def _position(dataset: Dataset) -> float:
    """Where a slice lies along its series' axis, in mm; else its number in the series."""
    place = [number([each]) for each in several(dataset.get("ImagePositionPatient"))]
    along = [number([each]) for each in several(dataset.get("ImageOrientationPatient"))]
    if len(place) == 3 and len(along) == 6:
        position = float(np.dot(place, np.cross(along[:3], along[3:])))
        if math.isfinite(position):
            return position
    return number(dataset.get("InstanceNumber"), 0.0)
