"""Everything in pydicom's and nibabel's own test data is read right, or left out for a reason."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from scans import federation

from feddiff.core.errors import DataError
from feddiff.silo import dicom, nifti
from feddiff.silo.collection import collect
from feddiff.silo.frames import slices
from feddiff.silo.slices import Decoding
from feddiff.silo.source import Source
from feddiff.silo.window import Window, stretch

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nib.__file__).parent / "tests" / "data"
HOW = Decoding(8, 1, "file", "axial", 0.0)
UNREAD = (
    "needs another decoder",
    "is a mask of one bit",
    "says no size",
    "is compressed in a way",
    "has colours",
)
"""Why a file with pixels may be left out; all others must be read."""


def with_pixels() -> list[str]:
    found = []
    for path in sorted(DICOM.rglob("*")):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=False)
            if "PixelData" in dataset and "SOPClassUID" in dataset:
                found.append(path.relative_to(DICOM).as_posix())
    return found


def expected(dataset: pydicom.Dataset) -> list[np.ndarray] | None:
    """What pydicom makes of a file, 0 to 255, by the window in the file; None if it says none."""
    array = dataset.pixel_array
    frames = list(array) if int(dataset.get("NumberOfFrames") or 1) > 1 else [array]
    deep = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frames = [apply_color_lut(frame, dataset) for frame in frames]
        deep = frames[0].dtype.itemsize * 8
    if frames[0].ndim == 3:
        return [frame / (2.0**deep - 1) * 255 for frame in frames]
    values = [apply_modality_lut(frame, dataset) for frame in frames]
    if dataset.get("VOILUTSequence"):
        most = 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shown = [apply_voi(each.astype(int), dataset) / most * 255 for each in values]
    elif dataset.get("WindowWidth") and float(np.ravel(dataset.WindowWidth)[0]) >= 1:
        shown = []
        for each in values:
            picture = apply_windowing(each, dataset)
            ends = apply_windowing(np.array([-1e9, 1e9]), dataset)
            shown.append((picture - ends.min()) / (ends.max() - ends.min()) * 255)
    else:
        return None
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return [255 - each if inverted else each for each in shown]


@pytest.mark.parametrize("name", with_pixels())
def test_pixels_are_those_of_pydicom(name: str) -> None:
    path = DICOM / name
    dataset = pydicom.dcmread(path, force=True)
    try:
        ours = list(slices(pydicom.dcmread(path, force=True), str(dataset.get("Modality")), HOW))
    except DataError as error:
        unread = str(error)
        if not any(reason in unread for reason in UNREAD):
            raise
        return
    except Exception:
        with pytest.raises(Exception):  # noqa: B017, PT011
            dataset.pixel_array  # noqa: B018
        return
    theirs = expected(dataset)
    assert len(ours) == int(dataset.get("NumberOfFrames") or 1)
    if theirs is not None:
        for one, other in zip(ours, theirs, strict=True):
            assert one.pixels.shape == other.shape
            assert np.abs(one.pixels.astype(float) - other).max() <= 1.0
        return
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if int(dataset.BitsStored) <= 8 and "RescaleSlope" not in dataset and not dataset.PixelRepresentation:
        picture = values / (2.0 ** int(dataset.BitsStored) - 1) * 255
    else:
        window = Window(0, 2000, "LINEAR_EXACT") if dataset.get("Modality") == "CT" else stretch(values)
        picture = np.clip((values - window.center) / window.width * 255 + 127.5, 0, 255)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        picture = 255 - picture
    if len(ours) == 1:
        assert np.abs(ours[0].pixels.astype(float) - picture).max() <= 2.0


def test_the_files_that_must_be_read_are(tmp_path: Path) -> None:
    """Left out is what the rules say; a rule that leaves out everything would pass the test above."""

    def found(name: str) -> str:
        content = (DICOM / name).read_bytes()
        decoded = dicom.decode(content, HOW, b"key")
        return f"{len(list(decoded.slices))} {decoded.kind}"

    assert found("CT_small.dcm") == "1 DICOM CT"
    assert found("examples_palette.dcm") == "1 DICOM US"
    assert found("SC_rgb_rle_2frame.dcm") == "2 DICOM OT"
    assert found("693_J2KI.dcm") == "1 DICOM CT"
    for name, reason in (
        ("rtdose.dcm", "radiotherapy"),
        ("test-SR.dcm", "report"),
        ("MR_small.dcm", "derived"),
        ("JPEG2000.dcm", "captured screen"),
        ("dicomdirtests/DICOMDIR", "index"),
        ("dicomdirtests/98892001/CT2N/6293", "localiser"),
        ("liver_1frame.dcm", "segmentation"),
        ("waveform_ecg.dcm", "waveform"),
    ):
        with pytest.raises(DataError, match=reason):
            found(name)


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_volumes_are_those_of_nibabel(name: str, plane: str) -> None:
    how = Decoding(8, 1, "500,1000", plane, 0.0)
    ours = [each.pixels for each in nifti.decode((NIFTI / name).read_bytes(), how).slices]
    volume = nib.as_closest_canonical(nib.load(NIFTI / name)).get_fdata()  # type: ignore[attr-defined]
    volume = volume[..., 0] if volume.ndim == 4 else volume
    # Radiological: a patient's right is on the left, the front or the head is up.
    theirs = {
        "axial": [volume[::-1, ::-1, k].T for k in range(volume.shape[2])],
        "coronal": [volume[::-1, k, ::-1].T for k in range(volume.shape[1])],
        "sagittal": [volume[k, ::-1, ::-1].T for k in range(volume.shape[0])],
    }[plane]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - Window(500, 1000).apply(other).astype(float)).max() <= 1


def test_a_folder_of_all_of_it_is_read_or_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for source in (*DICOM.rglob("*"), *NIFTI.glob("*.nii*"), *NIFTI.glob("*.dcm")):
        if source.is_file() and source.stat().st_size < 100_000:
            (data / f"{source.parent.name}-{source.name}").write_bytes(source.read_bytes())
    found = collect(Source(data, content=0.0), federation())
    inventory = found.inventory
    assert inventory.total == len(found.images.pixels) > 60
    assert inventory.images["DICOM CT"] > 5
    assert inventory.images["NIfTI"] > 10
    assert not [reason for reason in inventory.skipped if "crashed" in reason or "too long" in reason]
    files = sum(1 for path in data.iterdir() if path.is_file())
    assert len(set(found.images.skipped)) + inventory.other < files
