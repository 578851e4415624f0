"""Parts of the ledger: what a filter lets pass, page by page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from feddiff.federator.database import Database
from feddiff.federator.excerpt import PAGE, Excerpts, Filter, Key
from feddiff.federator.ledger import Entry, Ledger

ROUNDS = 40
SILOS, SEGMENTS = ("", "clinic-a", "clinic-b"), ("", "decoder.0", "encoder.in")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with 720 rows, each of another size."""
    ledger = Ledger(Database(tmp_path / "federation.db"))
    keys = [(n, silo, seg, way) for n in range(ROUNDS) for silo in SILOS for seg in SEGMENTS for way in ("down", "up")]
    ledger.add(*(Entry(*key, raw=2 * at, wire=at, estimated=at % 2 == 0) for at, key in enumerate(keys)))  # type: ignore[arg-type]
    return tmp_path / "federation.db"


@pytest.fixture
def excerpts(path: Path) -> Iterator[Excerpts]:
    database = Database(path)
    yield Excerpts(database)
    database.close()


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(silo="clinic-a"),
        Filter(silo="", direction="up"),
        Filter(segment="", first=3, last=30),
        Filter(silo="nobody"),
        Filter(silo="' OR 1=1 --"),
    ],
)
def test_pages_and_csv_hold_what_fits_and_nothing_else(path: Path, excerpts: Excerpts, wanted: Filter) -> None:
    fits = [
        asdict(each)
        for each in Ledger(Database(path)).entries()
        if all(getattr(wanted, key) in (None, getattr(each, key)) for key in ("silo", "segment", "direction"))
        and (wanted.first or 0) <= each.round <= (ROUNDS if wanted.last is None else wanted.last)
    ]
    pages = [excerpts.page(wanted)]
    while pages[-1]["more"]:
        before: Key = tuple(pages[-1]["more"])
        pages.append(excerpts.page(wanted, before))
        assert pages[-1]["sums"] is None
    assert [row for page in pages for row in page["rows"]] == fits[::-1]
    assert all(len(page["rows"]) == PAGE for page in pages[:-1])
    assert pages[0]["sums"]["rows"] == len(fits)
    assert pages[0]["sums"]["wire"] == sum(row["wire"] for row in fits)
    told = list(csv.DictReader(io.StringIO("".join(excerpts.csv(wanted)))))
    assert [(int(row["round"]), row["silo"], int(row["wire"])) for row in told] == [
        (row["round"], row["silo"], row["wire"]) for row in fits
    ]


def test_a_question_that_takes_too_long_is_given_up(excerpts: Excerpts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddiff.federator.excerpt.LONGEST_S", -1.0)
    excerpts._database.connection.set_progress_handler(lambda: 1, 1)  # as if every step were too late
    assert excerpts.page(Filter(silo="clinic-a")) == {"rows": [], "more": None, "sums": None}
    excerpts._database.connection.set_progress_handler(None, 0)
    assert excerpts.page(Filter(silo="clinic-a"))["rows"]
