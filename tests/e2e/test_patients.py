"""A patient's name, IDs and a file's own texts go nowhere: no log, state folder, federator's folder or message."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from stage import SILO, TINY_UNET, Stage

sys.path.insert(0, str(Path(__file__).parent.parent / "silo"))

TAP = """
import sys
import grpc

class Tap(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
          grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    def keep(self, message):
        with open(sys.argv[1], "ab") as file:
            file.write(message.SerializeToString())
        return message
    def intercept_unary_unary(self, go, details, message):
        return go(details, self.keep(message))
    intercept_unary_stream = intercept_unary_unary
    def intercept_stream_unary(self, go, details, messages):
        return go(details, (self.keep(each) for each in messages))
    intercept_stream_stream = intercept_stream_unary

real = grpc.secure_channel
grpc.secure_channel = lambda *words, **more: grpc.intercept_channel(real(*words, **more), Tap())
from feddiff.silo.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""A silo that keeps a copy of every message before it is encrypted."""


def test_nothing_of_a_patient_leaves_the_data(stage: Stage) -> None:
    from scans import DESCRIP, PLANTED, PRIVATE, body, dicom, nifti

    stage.found("full", rounds=1, silos=1, unet=TINY_UNET, more='[data]\nclasses = ["lung-x"]')
    data, state, wire = stage.folder / "data", stage.folder / "hospital-a", stage.folder / "wire.bin"
    for number in range(4):
        dicom(data / "Schulze-0192" / f"IM{number}", body(number * 20), ImagePositionPatient=[0, 0, number])
    good = (data / "Schulze-0192" / "IM0").read_bytes()
    dicom(data / "report-0193", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", PixelData=None)
    (data / "Schulze-0192" / "cut").write_bytes(good[:-900])
    (data / "Schulze-0192" / "cut-2").write_bytes(good[:700])
    dicom(data / "wrong", WindowCenter=40, WindowWidth=400, Rows=31)
    nifti(data / "volume.nii.gz", np.random.default_rng(0).normal(0, 50, (16, 16, 4)).astype(np.float32))
    with zipfile.ZipFile(data / "export.zip", "w") as archive:
        archive.writestr("Schulze-0192/IM9", good)
    (stage.folder / "labels.csv").write_text(f"series,label\n{PLANTED['SeriesInstanceUID']},lung-x\n")

    server = stage.serve()
    token = stage.invite("hospital-a")
    words = ("--data", str(data), "--federator", stage.address, "--state", str(state), "--join", token, "--verbose")
    more = ("--window", "mediastinum", "--labels", str(stage.folder / "labels.csv"))
    silo = stage.run("silo", "-c", TAP, str(wire), *words, *more)
    assert silo.wait() == 0, silo.told()
    assert server.wait() == 0
    drawn = stage.call(SILO, "sample", "--state", str(state), "--out", "grid.png", "--count", "2", "--steps", "2")
    assert drawn.code == 0, drawn.err

    assert "10 images (6 DICOM CT, 4 NIfTI)" in silo.told()
    assert "by class: 6 lung-x, 4 without one" in silo.told()
    assert b"lung-x" in wire.read_bytes(), "classes are counted for the federator"
    assert wire.stat().st_size > 100_000, "the weights are among what was kept"
    assert (state / "decoded" / "slices.db").stat().st_size > 1000
    planted = [*PLANTED.values(), PRIVATE, DESCRIP, "Mustermann", "Erika"]
    assert all(
        any(word.encode() in path.read_bytes() for path in data.rglob("*") if path.is_file())
        for word in (
            "Mustermann^Erika",
            PRIVATE,
            PLANTED["StudyInstanceUID"],
        )
    ), "what is looked for is in the data"
    # A file's own name is the hospital's: it may stand in its log, by which the file is found, and nowhere else.
    seen = 0
    for path in stage.folder.rglob("*"):
        if path.is_file() and data not in path.parents and path.name not in ("labels.csv", "silo.log"):
            content, seen = path.read_bytes(), seen + 1
            assert not [word for word in [*planted, "Schulze-0192"] if word.encode() in content], path
    assert seen > 20
    assert not [word for word in planted if word in silo.told()]


@pytest.mark.parametrize("words", [("--window", "liver"), ("--label-from", "dicom:PatientID"), ("--content", "2")])
def test_options_that_cannot_be_are_one_line(stage: Stage, words: tuple[str, str]) -> None:
    (stage.folder / "data").mkdir()
    done = stage.call(SILO, "--data", str(stage.folder / "data"), "--federator", "127.0.0.1:1", "--state", "s", *words)
    assert done.code == 78
    assert len(done.err.splitlines()) == 1
    assert words[0] in done.err
