"""Scanners' files for tests, written with pydicom and nibabel, full of a patient who must not be seen anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from feddiff.core.config import FederationConfig, from_table

PLANTED = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "PID-4711-X",
    "InstitutionName": "Krankenhaus Hintertupfing",
    "AccessionNumber": "ACC-0815-Y",
    "ReferringPhysicianName": "Eisenbarth^Johann",
    "StudyDescription": "Zweitmeinung Musterfrau",
    "PatientBirthDate": "19210401",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711.815",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.4711.816",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.4711.817",
}
PRIVATE, DESCRIP = "PRIVAT-Erika-0190", "descrip-Mustermann-0191"
CT = "1.2.840.10008.5.1.4.1.1.2"


def federation(size: int = 8, channels: int = 1, classes: tuple[str, ...] = (), **model: Any) -> FederationConfig:
    table = {"sample_size": size, "in_channels": channels, "out_channels": channels, **model}
    return from_table({"model": table, "data": {"classes": list(classes)}}, "test")


def body(value: float = 40.0, shape: tuple[int, int] = (32, 32)) -> npt.NDArray[np.int16]:
    """A slice of CT in stored values (HU + 1024): a round body of this value in air."""
    side = np.mgrid[0 : shape[0], 0 : shape[1]]
    inside = np.hypot(side[0] - shape[0] / 2 + 0.5, side[1] - shape[1] / 2 + 0.5) < min(shape) * 0.4
    return np.where(inside, value + 1024, 24).astype(np.int16)


def dicom(
    path: Path, pixels: npt.NDArray[Any] | None = None, syntax: str = ExplicitVRLittleEndian, **more: Any
) -> Path:
    """A CT slice (int16, slope 1, intercept -1024) unless ``more`` says something else; None deletes an attribute."""
    pixels = body() if pixels is None else pixels
    dataset = Dataset()
    frames = pixels.shape[0] if pixels.ndim == 3 and pixels.shape[-1] != 3 else 1
    colour = pixels.shape[-1] == 3
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    told: dict[str, Any] = {
        "SOPClassUID": CT,
        **PLANTED,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "HighBit": pixels.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        **({"NumberOfFrames": frames} if frames > 1 else {}),
        **({"PlanarConfiguration": 0} if colour else {}),
        "PixelData": pixels.tobytes(),
        **more,
    }
    for name, value in told.items():
        if value is not None:
            setattr(dataset, name, value)
    block = dataset.private_block(0x0009, "FEDDIFF TEST", create=True)
    block.add_new(0x01, "LO", PRIVATE)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or generate_uid()
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def nifti(path: Path, volume: npt.NDArray[Any], affine: npt.NDArray[Any] | None = None, **header: Any) -> Path:
    image = nib.Nifti1Image(volume, np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = DESCRIP.encode()
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path
