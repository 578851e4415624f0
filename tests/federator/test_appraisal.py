"""federator/appraisal.py: what was measured, as people read it; values that are not comparable never look alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from feddiff.core.quality import Measured
from feddiff.core.segments import cut
from feddiff.federator import report
from feddiff.federator.appraisal import INCOMPARABLE, cell, curves, line, newest, rows, table, text
from feddiff.federator.database import Database
from feddiff.federator.ledger import GLOBAL, Entry, Ledger, Reading
from feddiff.federator.report import Story

DIGEST, OTHER = "ab" * 32, "cd" * 32
FID = Measured("fid", 12.345, None, 100, 360, "reference", "blocks", DIGEST)
KID = replace(FID, metric="kid", value=0.01234, spread=0.0021)
SCORE = replace(FID, metric="inception_score", value=3.5, spread=0.25, reference=0, against="")
LOSS = Measured("validation_loss", 0.0456, None, 0, 90, "reference", "", "")
BIASED = "biased upwards: 100 samples for 2048 features"


def own(round: int, silo: str, value: float, images: int = 50) -> Reading:
    return Reading(round, silo, replace(FID, value=value, reference=images, against="training"))


def test_one_row_holds_what_was_measured_together() -> None:
    (row,) = rows(Reading(4, GLOBAL, each) for each in (SCORE, LOSS, KID, FID))
    assert list(row.values) == ["fid", "kid", "inception_score", "validation_loss"]
    assert row.basis == "100 samples, reference (360 images), blocks abababab"
    assert (cell(row, "kid"), cell(row, "recall")) == ("0.01234 ± 0.0021", "–")


def test_other_references_and_extractors_have_rows_of_their_own() -> None:
    test = replace(FID, against="test", reference=70)
    foreign = replace(FID, extractor="inception", digest=OTHER)
    found = rows(Reading(1, GLOBAL, each) for each in (FID, test, foreign))
    assert [row.basis for row in found] == [
        "100 samples, reference (360 images), blocks abababab",
        "100 samples, test (70 images), blocks abababab",
        "100 samples, reference (360 images), inception cdcdcdcd",
    ]


def test_silos_together_are_their_mean() -> None:
    readings = [own(1, "a", 10.0, 50), own(1, "b", 20.0, 1200), own(2, "a", 8.0), Reading(2, GLOBAL, FID)]
    first, shared, second = rows(readings, together=True)
    assert (first.values["fid"], first.silos, first.against) == (15.0, 2, "training (50–1,200 images)")
    assert (shared.model, second.silos) == ("global", 1)
    assert [row.model for row in rows(readings)] == ["a", "b", "global", "a"]


def test_what_is_not_comparable_with_the_newest_is_marked_and_explained() -> None:
    fewer = replace(FID, samples=50)
    head, lines, notes = table(rows([Reading(1, GLOBAL, fewer), Reading(2, GLOBAL, FID), Reading(3, GLOBAL, FID)]))
    assert [row[head.index("FID")] for row in lines] == [f"12.35 {INCOMPARABLE}", "12.35", "12.35"]
    assert any(note.startswith(INCOMPARABLE) and "not comparable" in note for note in notes)
    assert f"blocks abababab: SHA-256 {DIGEST}" in notes
    _, _, alike = table(rows([Reading(1, GLOBAL, FID), Reading(2, GLOBAL, FID)]))
    assert not any(note.startswith(INCOMPARABLE) for note in alike)


def test_cautions_are_footnotes() -> None:
    marked = replace(FID, cautions=(BIASED,))
    head, lines, notes = table(rows([Reading(1, GLOBAL, marked), Reading(1, GLOBAL, KID), Reading(2, GLOBAL, marked)]))
    assert [row[head.index("FID")] for row in lines] == ["12.35 [1]", "12.35 [1]"]
    assert lines[0][head.index("KID")] == "0.01234 ± 0.0021"
    assert notes[0] == f"[1] {BIASED}"


def test_curves_join_only_what_is_comparable() -> None:
    readings = [
        Reading(1, GLOBAL, replace(FID, samples=50, value=9.0)),
        Reading(2, GLOBAL, FID),
        Reading(3, GLOBAL, replace(FID, value=11.0)),
        Reading(4, GLOBAL, replace(FID, value=math.nan)),
    ]
    assert curves(rows(readings)) == [
        ("global, 50, abab", [1], [9.0]),
        ("global, 100, abab", [2, 3], [12.345, 11.0]),
    ]
    assert curves(rows(readings[1:3])) == [("global", [2, 3], [12.345, 11.0])]


def test_silos_that_come_and_go_are_one_curve() -> None:
    readings = [own(1, "a", 10.0, 50), own(2, "a", 8.0, 50), own(2, "b", 6.0, 70)]
    assert curves(rows(readings, together=True)) == [("mean of silos", [1, 2], [10.0, 7.0])]


def test_lines_of_log_and_status() -> None:
    assert line([FID, KID, LOSS]) == (
        "fid 12.35, kid 0.01234 ± 0.0021, validation_loss 0.0456 (100 samples, reference (360 images), blocks abababab)"
    )
    assert newest([]) == newest([Reading(1, GLOBAL, LOSS)]) == ""
    marked = [Reading(1, GLOBAL, FID), Reading(2, GLOBAL, replace(FID, value=9.0, cautions=(BIASED,)))]
    assert newest(marked) == (
        f"round 2, global: FID 9 (100 samples, reference (360 images), blocks abababab; {BIASED})"
    )
    assert newest([own(3, "a", 4.0), own(3, "b", 6.0)]).startswith("round 3, mean of silos of 2: FID 5 (")


def test_text_has_a_line_for_each_model() -> None:
    assert text([]) == "nothing was measured"
    lines = text([Reading(1, GLOBAL, FID), own(1, "hospital-a", 3.0)]).splitlines()
    assert [each.split()[:3] for each in lines[:3]] == [
        ["round", "model", "FID"],
        ["1", "global", "12.35"],
        ["1", "hospital-a", "3"],
    ]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grid.png"
    Image.radial_gradient("L").resize((32, 32)).save(path)
    return path


def story(readings: Sequence[Reading], entries: Sequence[Entry] = (), grids: Sequence[tuple[str, Path]] = ()) -> Story:
    layout = cut([("conv_in.weight", (4, 1, 3, 3)), ("conv_out.weight", (1, 4, 3, 3))])
    return Story("trial", "full", "{}", DIGEST, layout, [], entries, [], "fp32", "fp32", grids, readings)


class TestReport:
    def test_shows_quality_beside_bytes(self, tmp_path: Path) -> None:
        entries = [Entry(number, "a", "encoder.in", "up", wire=1_000_000 * number) for number in (1, 2)]
        readings = [Reading(1, GLOBAL, FID), own(1, "a", 3.0), Reading(2, GLOBAL, replace(FID, value=9.87))]
        page = report.write(story(readings, entries), tmp_path).read_text()
        assert "Quality by round" in page
        assert "<td>12.35</td>" in page
        assert "on the wire so far, both directions, MB" in page
        assert ">global</text>" in page
        assert "quality: round 2, global: FID 9.87" in report.summary(story(readings, entries))

    def test_is_as_before_without_readings(self, tmp_path: Path) -> None:
        plain = story([])
        assert "Quality" not in report.write(plain, tmp_path).read_text()
        assert "quality" not in report.summary(plain)

    def test_shows_silos_pictures_and_skips_what_is_none(self, tmp_path: Path, picture: Path) -> None:
        fake = tmp_path / "fake.png"
        fake.write_text("<svg onload=x>" * 10)
        page = report.write(story([], grids=[("hospital-a", picture), ("hospital-b", fake)]), tmp_path).read_text()
        assert "Drawn by the silos&#x27; own models" in page
        assert 'alt="hospital-a"' in page
        assert "hospital-b" not in page


def test_readings_come_back_from_the_ledger_in_order(tmp_path: Path) -> None:
    ledger = Ledger(Database(tmp_path / "federation.db"))
    ledger.measure(2, GLOBAL, [LOSS, FID])
    ledger.measure(1, "a", [replace(FID, cautions=(BIASED,))])
    assert [row.model for row in rows(ledger.quality())] == ["a", "global"]
