"""A folder of scanners' files becomes a training set: labels, order, zip files, cache; nothing hostile does harm."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scans import body, dicom, federation, nifti

from feddiff.core.errors import ConfigError, DataError
from feddiff.silo import collection, decoders
from feddiff.silo.collection import Collection, collect
from feddiff.silo.source import Source

SPHERE = body(100) * np.random.default_rng(0).uniform(0.9, 1.0, (32, 32)) / 1124


def read(folder: Path, cache: Path | None = None, classes: tuple[str, ...] = (), **options: Any) -> Collection:
    return collect(Source(folder, **options), federation(32, classes=classes), cache)


def middles(found: Collection) -> list[int]:
    """The middle pixel of each image."""
    return [int(each) for each in found.images.pixels[:, 0, 16, 16]]


def reasons(found: Collection) -> dict[str, str]:
    return {path.as_posix(): reason for path, reason in found.images.skipped}


def shown(value: float, window: str = "40,400") -> int:
    """What a value becomes: PS3.3 C.11.2.1.2.1 by hand."""
    center, width = (float(each) for each in window.split(","))
    return round(min(max(((value - (center - 0.5)) / (width - 1) + 0.5) * 255, 0), 255))


def test_a_mixed_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    dicom(data / "a" / "IM0001", body(40))
    mr = {"Modality": "MR", "RescaleIntercept": 0, "WindowCenter": 1100, "WindowWidth": 200}
    dicom(data / "b.dcm", body(100), SeriesInstanceUID="1.8", **mr)
    volume = np.full((32, 32, 3), 90, np.float32)
    volume[:4] = np.arange(4 * 32 * 3).reshape(4, 32, 3)
    nifti(data / "c.nii.gz", volume, cal_min=0, cal_max=180)
    Image.new("L", (32, 32), 77).save(data / "d.png")
    with zipfile.ZipFile(data / "e.zip", "w") as archive:
        archive.write(dicom(tmp_path / "x", body(-600), SeriesInstanceUID="1.9"), "deep/er/IM1")
        archive.writestr("note.txt", "no image")
    (data / "notes.txt").write_text("no image")
    with caplog.at_level(logging.DEBUG):
        found = read(data, window="mediastinum", content=0.0)
    # A preset is of Hounsfield units: MR goes by its file; a volume of NIfTI is taken for what is asked.
    assert middles(found) == [
        shown(40),
        shown(1124, "1100,200"),
        *[shown(90)] * 3,
        77,
        shown(-600),
    ]
    inventory = found.inventory
    assert inventory.images == {"DICOM CT": 2, "DICOM MR": 1, "NIfTI": 3, "PNG": 1}
    assert (inventory.other, inventory.volumes, inventory.left_out, inventory.cached) == (1, 4, 0, 0)
    assert inventory.lines()[0] == "7 images (3 NIfTI, 2 DICOM CT, 1 DICOM MR, 1 PNG) of 4 series or volumes"


def test_monochrome1_frames_colour_and_spacing(tmp_path: Path) -> None:
    dicom(tmp_path / "a", body(40), PhotometricInterpretation="MONOCHROME1", SeriesInstanceUID="1.1")
    frames = np.stack([body(0), body(100), body(200)])
    dicom(tmp_path / "b", frames, SeriesInstanceUID="1.2")
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    dicom(tmp_path / "c", red, Modality="US", SeriesInstanceUID="1.3", RescaleSlope=None, RescaleIntercept=None)
    # Rows twice as far apart as columns: the square in the middle is 32 columns by 16 rows.
    tall = np.zeros((64, 32), np.int16)
    tall[24:40] = 1024 + 40
    dicom(tmp_path / "d", tall, SeriesInstanceUID="1.4", PixelSpacing=[2.0, 1.0])
    found = collect(Source(tmp_path, window="40,400"), federation(32, 3))
    assert found.images.pixels[:, :, 16, 16].tolist() == [
        [255 - shown(40)] * 3,
        *[[shown(value)] * 3 for value in (0, 100, 200)],
        [200, 0, 0],
        [shown(40)] * 3,
    ]
    assert (found.images.pixels[-1] == shown(40)).mean() > 0.9


def test_a_series_is_in_the_order_of_its_slices(tmp_path: Path) -> None:
    for number, (height, value) in enumerate([(30.0, 130), (-10.0, 10), (20.5, 120), (0.0, 100)]):
        place = {"ImagePositionPatient": [5, 5, height], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(tmp_path / f"{number}", body(value), SeriesInstanceUID="1.7", **place)
    dicom(tmp_path / "1b", body(240), SeriesInstanceUID="1.8")
    assert middles(read(tmp_path, window="40,400")) == [shown(value) for value in (10, 100, 120, 130, 240)]


def test_what_is_no_slice_of_a_body_is_left_out(tmp_path: Path) -> None:
    dicom(tmp_path / "good", body(40))
    dicom(tmp_path / "localiser", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dicom(tmp_path / "derived", ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    dicom(tmp_path / "kept", ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    dicom(tmp_path / "dose", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dicom(tmp_path / "report", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", PixelData=None)
    dicom(tmp_path / "state", SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1", PixelData=None)
    dicom(tmp_path / "mask", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    dicom(tmp_path / "burned", BurnedInAnnotation="YES")
    dicom(tmp_path / "air", np.full((32, 32), 24, np.int16))
    nifti(tmp_path / "seg.nii", np.eye(32, dtype=np.uint8)[..., None].repeat(4, axis=2))
    nifti(tmp_path / "stack.nii", np.stack([SPHERE, np.zeros((32, 32))], axis=2).astype(np.float32))
    found = read(tmp_path)
    assert found.inventory.images == {"DICOM CT": 2, "NIfTI": 1}
    assert found.inventory.empty == 2
    assert reasons(found) == {
        "burned": "says that text is burned into its pixels",
        "derived": "is derived from other images (reformatted, projected)",
        "dose": "is a captured screen (dose report, annotated slice)",
        "localiser": "is a localiser",
        "mask": "is a segmentation, registration or raw data",
        "report": "is a report",
        "seg.nii": "is a mask or a label map: it holds few different values",
        "state": "is a presentation state",
    }


class TestLabels:
    CLASSES = ("chest", "head")

    def labelled(self, folder: Path, **options: Any) -> tuple[list[int], dict[str, str]]:
        found = read(folder, classes=self.CLASSES, **options)
        assert found.images.labels is not None
        return found.images.labels.tolist(), reasons(found)

    def test_of_the_folder_also_in_a_zip_file(self, tmp_path: Path) -> None:
        data, out = tmp_path / "data", dicom(tmp_path / "x")
        dicom(data / "head" / "deep" / "1", SeriesInstanceUID="1.1")
        dicom(data / "foot" / "1", SeriesInstanceUID="1.2")
        dicom(data / "0", SeriesInstanceUID="1.3")
        for name, member in (("head/a.zip", "chest/1"), ("z.zip", "chest/1")):
            with zipfile.ZipFile(data / name, "w") as archive:
                archive.write(out, member)
        labels, left_out = self.labelled(data)
        assert labels == [-1, 1, 0, 1], "the two in zip files are of one series"
        assert left_out == {"foot/1": "is in a folder that is not one of data.classes"}

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("path,label\np1,head\np1/b,chest\n", {"p1/a": 1, "p1/b": 0, "p2/c": -1}),
            ("label,Series\nhead,1.1\nchest, 1.2\nhead,9.9\n", {"p1/a": 1, "p1/b": 0, "p2/c": -1}),
            ("study,label,more\n2.1,head,x\n2.2,foot,\n", {"p1/a": 1, "p1/b": 1}),
        ],
    )
    def test_of_a_csv(self, tmp_path: Path, text: str, expected: dict[str, int]) -> None:
        data, table = tmp_path / "data", tmp_path / "labels.csv"
        for name, series, study in (("p1/a", "1.1", "2.1"), ("p1/b", "1.2", "2.1"), ("p2/c", "1.3", "2.2")):
            dicom(data / name, SeriesInstanceUID=series, StudyInstanceUID=study)
        table.write_text("\ufeff" + text, encoding="utf-8")
        labels, left_out = self.labelled(data, labels=table)
        assert labels == list(expected.values())
        rest = "has a label that is not one of data.classes"
        assert left_out == {name: rest for name in ("p1/a", "p1/b", "p2/c") if name not in expected}
        again, _ = self.labelled(data, labels=table)
        assert again == labels

    def test_lines_that_name_nothing_are_counted(self, tmp_path: Path) -> None:
        dicom(tmp_path / "data" / "a")
        (tmp_path / "t.csv").write_text("path,label\na,head\nb,head\nc,chest\n")
        found = read(tmp_path / "data", classes=self.CLASSES, labels=tmp_path / "t.csv")
        assert found.inventory.notes == ("2 of 3 lines of --labels name nothing here",)

    def test_if_they_fit_no_file_the_error_speaks_of_them_and_not_of_folders(self, tmp_path: Path) -> None:
        dicom(tmp_path / "data" / "a")
        (tmp_path / "t.csv").write_text("path,label\na,haed\nelsewhere/b,head\n")
        with pytest.raises(DataError, match=r"--labels gives each one of chest, head \(1 of 2 lines") as error:
            read(tmp_path / "data", classes=self.CLASSES, labels=tmp_path / "t.csv")
        assert "one folder for each class" not in str(error.value)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "first line must name"),
            ("path,series,label\n", "first line must name"),
            ("patient,label\n", "first line must name"),
            ("path,label\na\n", "line 2: has fewer columns"),
            ("path,label\na,head\na,chest\n", "line 3: gives another label"),
            ("path,label\n\udcff", "is not a CSV file in UTF-8"),
        ],
    )
    def test_a_csv_that_is_none(self, tmp_path: Path, text: str, says: str) -> None:
        dicom(tmp_path / "data" / "a")
        (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ConfigError, match=says):
            read(tmp_path / "data", classes=self.CLASSES, labels=tmp_path / "t.csv")

    def test_of_an_attribute(self, tmp_path: Path) -> None:
        for number, part in enumerate(("HEAD", "chest ", "FOOT", None)):
            dicom(tmp_path / f"{number}", BodyPartExamined=part, SeriesInstanceUID=f"1.{number}")
        labels, left_out = self.labelled(tmp_path, label_from="dicom:BodyPartExamined")
        assert labels == [1, 0, -1]
        assert left_out == {"2": "has a label that is not one of data.classes"}

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            *(
                (f"dicom:{name}", "may identify a patient or is free text")
                for name in (
                    "PatientName",
                    "PatientID",
                    "PatientSex",
                    "PatientAge",
                    "StudyInstanceUID",
                    "InstitutionName",
                    "AccessionNumber",
                    "SeriesDescription",
                    "StudyDate",
                    "SmokingStatus",
                    "ProtocolName",
                    "StationName",
                )
            ),
            ("dicom:Nonsense", "DICOM has no attribute 'Nonsense'"),
            ("BodyPartExamined", "must be dicom:KEYWORD"),
        ],
    )
    def test_an_attribute_of_a_patient_is_refused(self, tmp_path: Path, asked: str, says: str) -> None:
        dicom(tmp_path / "a")
        with pytest.raises(ConfigError, match=says):
            read(tmp_path, label_from=asked)


def test_a_folder_that_may_not_be_entered_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(DataError, match="does not exist; --data needs"):
        read(tmp_path / "nothing")
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match=r"cannot be opened .* enter each folder above it"):
        read(tmp_path)


def test_options_that_cannot_be(tmp_path: Path) -> None:
    dicom(tmp_path / "a")
    for options, says in (
        ({"window": "liver"}, "--window must be lung, "),
        ({"window": "40,0"}, "--window must be"),
        ({"window": "nan,400"}, "--window must be"),
        ({"content": 1.0}, "--content must be a share"),
        ({"cache_bytes": -1}, "--cache must be"),
        ({"labels": tmp_path / "t.csv", "label_from": "dicom:Modality"}, "give one of them"),
    ):
        with pytest.raises(ConfigError, match=says):
            read(tmp_path, **options)  # type: ignore[arg-type]


def test_without_pydicom_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec
    without = lambda name, package=None: None if name in ("pydicom", "nibabel") else spec(name)  # noqa: E731
    monkeypatch.setattr(collection.importlib.util, "find_spec", without)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    dicom(tmp_path / "a" / "1")
    with zipfile.ZipFile(tmp_path / "b" / "1.zip", "w") as archive:
        archive.writestr("x.nii", b"")
    for folder in ("a", "b"):
        with pytest.raises(DataError, match=r"is not installed; run: pip install 'feddiff\[medical\]'"):
            read(tmp_path / folder)


class TestHostile:
    def test_files_are_skipped_and_named_by_their_paths(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        good = dicom(tmp_path / "good", body(40)).read_bytes()
        dicom(tmp_path / "wide", Rows=65535, Columns=65535)
        dicom(tmp_path / "many", NumberOfFrames=2_000_000_000)
        dicom(tmp_path / "none", Rows=0)
        dicom(tmp_path / "strange", SamplesPerPixel=7)
        (tmp_path / "cut").write_bytes(good[:-700])
        (tmp_path / "meta").write_bytes(good[:140])
        (tmp_path / "noise.dcm").write_bytes(b"\x08\x00" + os.urandom(500))
        (tmp_path / "zero.dcm").write_bytes(b"")
        deep = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        (tmp_path / "nested.dcm").write_bytes(bytes(128) + b"DICM" + deep * 20_000)
        whole = nifti(tmp_path / "good.nii", np.random.default_rng(0).random((32, 32, 2), np.float32)).read_bytes()
        (tmp_path / "cut.nii").write_bytes(whole[:-99])
        huge = bytearray(whole)
        huge[40:56] = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], "<i2").tobytes()
        (tmp_path / "huge.nii").write_bytes(huge)
        (tmp_path / "bomb.nii.gz").write_bytes(b"\x1f\x8b\x08" + os.urandom(99))
        (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + os.urandom(99))
        os.mkfifo(tmp_path / "pipe.dcm")
        with caplog.at_level(logging.DEBUG):
            found = read(tmp_path, window="40,400", content=0.0)
        assert found.inventory.images == {"DICOM CT": 1, "NIfTI": 2}
        wanted = "wide many none strange cut meta noise.dcm zero.dcm nested.dcm cut.nii huge.nii bomb.nii.gz bad.zip"
        assert sorted(reasons(found)) == sorted([*wanted.split(), "pipe.dcm"])
        assert {reasons(found)[name] for name in ("wide", "many", "huge.nii")} == {"is too large"}
        assert "Mustermann" not in caplog.text

    def test_zip_files_that_are_traps(self, tmp_path: Path) -> None:
        good = dicom(tmp_path / "x").read_bytes()
        data = tmp_path / "data"
        data.mkdir()
        with zipfile.ZipFile(data / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("good.dcm", good)
            archive.writestr("../../out.dcm", good)
            archive.writestr("/etc/out.dcm", good)
            archive.writestr("bomb.npy", bytes(100 << 20))
            archive.writestr("__MACOSX/._good.dcm", b"x")
            archive.writestr("inner.zip", b"PK")
            link = zipfile.ZipInfo("link.dcm")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        locked = bytearray((data / "a.zip").read_bytes())
        at = locked.index(b"PK\x01\x02")
        locked[at + 8] |= 1
        (data / "b.zip").write_bytes(locked)
        found = read(data, window="40,400")
        assert found.inventory.total == 1
        assert reasons(found) == {
            "a.zip/../../out.dcm": "has a name that leads out of its archive",
            "a.zip/bomb.npy": "unpacks to more than 250 times its size",
            "a.zip/inner.zip": "is an archive in an archive",
            "a.zip/link.dcm": "is not a regular file",
            "a.zip/etc/out.dcm": "has a name that leads out of its archive",
        } | {name: reason for name, reason in reasons(found).items() if name.startswith("b.zip")}
        assert reasons(found)["b.zip/good.dcm"] == "is encrypted"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x"]

    def test_a_decoder_that_hangs_or_dies_costs_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process that decodes is replaced by one that does to some files what a broken library does."""
        script = tmp_path / "decoder.py"
        script.write_text(
            "import os, signal, sys, time\n"
            "from feddiff.silo import decoder\n"
            "real = decoder.Decoder.decode\n"
            "def decode(self, path, member, type):\n"
            "    if path.name == 'hangs': time.sleep(600)\n"
            "    if path.name == 'dies': os.kill(os.getpid(), signal.SIGSEGV)\n"
            "    return real(self, path, member, type)\n"
            "decoder.Decoder.decode = decode\n"
            "decoder.main(sys.argv[-1:])\n"
        )
        started = subprocess.Popen

        def other(command: list[str], **more: Any) -> Any:
            return started([command[0], str(script), command[-1]], **more)

        monkeypatch.setattr(decoders.subprocess, "Popen", other)
        monkeypatch.setattr(decoders.Decoders.__init__, "__defaults__", (1, 20.0))
        data = tmp_path / "data"
        for name in ("a", "dies", "hangs", "z"):
            dicom(data / name)
        found = read(data)
        assert found.inventory.total == 2
        assert reasons(found) == {"dies": "crashed what decodes it", "hangs": "takes too long to decode"}


class TestCache:
    def test_nothing_is_decoded_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data, cache = tmp_path / "data", tmp_path / "state" / "decoded"
        for number in range(3):
            dicom(data / f"{number}", body(number * 50), SeriesInstanceUID=f"1.{number}")
        dicom(data / "report", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", PixelData=None)
        first = read(data, cache, window="40,400")
        assert first.inventory.cached == 0
        with monkeypatch.context() as nothing:
            nothing.setattr(decoders.Decoders, "_started", lambda self: pytest.fail("a decoder was started"))
            second = read(data, cache, window="40,400")
        assert second.inventory.cached == 3
        assert np.array_equal(first.images.pixels, second.images.pixels)
        assert reasons(first) == reasons(second) == {"report": "is a report"}

        dicom(data / "1", body(150), SeriesInstanceUID="1.1")
        third = read(data, cache, window="40,400")
        assert third.inventory.cached == 2
        assert middles(third) == [shown(0), shown(150), shown(100)]
        other = read(data, cache, window="lung")
        assert other.inventory.cached == 0
        assert middles(other) == [shown(value, "-600,1500") for value in (0, 150, 100)]
        assert read(data, cache, window="40,400").inventory.cached == 3, "who looks with other options costs nobody"

    def test_what_is_gone_from_the_data_is_gone_from_the_cache(self, tmp_path: Path) -> None:
        data, cache = tmp_path / "data", tmp_path / "decoded"
        rare = np.random.default_rng(5).integers(1024, 1100, (32, 32)).astype(np.int16)
        dicom(data / "a", rare, SeriesInstanceUID="1.1")
        dicom(data / "b", SeriesInstanceUID="1.2")
        marked = read(data, cache, window="40,400").images.pixels[0].tobytes()[100:400]
        assert any(marked in path.read_bytes() for path in cache.iterdir())
        (data / "a").unlink()
        assert read(data, cache, window="40,400").inventory.total == 1
        assert not any(marked in path.read_bytes() for path in cache.iterdir())

    def test_whatever_is_wrong_with_it_costs_only_time(self, tmp_path: Path) -> None:
        data, cache = tmp_path / "data", tmp_path / "decoded"
        dicom(data / "a")
        good = read(data, cache).images.pixels
        file = cache / "slices.db"
        file.write_bytes(b"no database" * 999)
        for name in ("slices.db-wal", "slices.db-shm"):
            (cache / name).unlink(missing_ok=True)
        assert np.array_equal(read(data, cache).images.pixels, good)
        assert read(data, cache).inventory.cached == 1
        with sqlite3.connect(file) as database:
            database.execute("update slices set pixels = zeroblob(length(pixels))")
        found = read(data, cache)
        assert np.array_equal(found.images.pixels, good)
        assert found.inventory.cached == 0

    def test_it_is_bounded(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        data, cache = tmp_path / "data", tmp_path / "decoded"
        for number in range(4):
            dicom(data / f"{number}", body(number * 30), SeriesInstanceUID=f"1.{number}")
        for _ in range(2):
            found = read(data, cache, cache_bytes=2 * 32 * 32)
            assert found.inventory.total == 4
        assert found.inventory.cached == 2
        assert read(data, cache, cache_bytes=2 * 32 * 32, window="lung").inventory.cached == 0
        assert read(data, cache, cache_bytes=2 * 32 * 32, window="lung").inventory.cached == 2, "it made room"
        assert "no room for more decoded slices" in caplog.text
        assert read(data, tmp_path / "none", cache_bytes=0).inventory.total == 4
        assert not (tmp_path / "none").exists()

    def test_a_kill_in_the_middle_costs_only_time(self, tmp_path: Path) -> None:
        data, cache = tmp_path / "data", tmp_path / "decoded"
        for number in range(40):
            dicom(data / f"{number:02}", body(number), SeriesInstanceUID=f"1.{number}")
        script = (
            "import sys; from pathlib import Path\n"
            "from feddiff.silo import cache\n"
            "cache.COMMIT_S = 0.0\n"
            "sys.path.insert(0, sys.argv[3])\n"
            "from scans import federation\n"
            "from feddiff.silo.collection import collect\n"
            "collect(Path(sys.argv[1]), federation(32), Path(sys.argv[2]))\n"
        )
        words = [sys.executable, "-c", script, str(data), str(cache), str(Path(__file__).parent)]
        child = subprocess.Popen(words)
        end = time.monotonic() + 120

        def kept() -> int:
            try:
                with sqlite3.connect(f"file:{cache / 'slices.db'}?mode=ro", uri=True) as database:
                    return int(database.execute("select count(*) from slices").fetchone()[0])
            except sqlite3.Error:
                return 0

        while kept() < 3 and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert kept() >= 3
        found = read(data, cache)
        assert found.inventory.total == 40
        assert found.inventory.cached >= 3


def test_the_decoder_writes_no_file(tmp_path: Path) -> None:
    """Its limits are set before it sees the first byte of anybody's."""
    with decoders.Decoders(collection._decoding(Source(tmp_path), federation()), b"key", 1) as some:
        answer = some.decode(dicom(tmp_path / "a"), "", "DICOM")
        assert answer.facts["images"] == 1
        (child,) = some._all
        limits = Path(f"/proc/{child.pid}/limits").read_text()
    for name in ("Max core file size", "Max file size"):
        assert next(line for line in limits.splitlines() if line.startswith(name)).split()[-3:-1] == ["0", "0"]
