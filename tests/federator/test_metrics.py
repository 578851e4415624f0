"""What the federator tells Prometheus: sums that are the ledger's, bounded labels, and no question that grows."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.config import from_table
from feddiff.core.quality import OWN_IMAGES, Measured
from feddiff.core.segments import cut
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Entry, Ledger
from feddiff.federator.metrics import MOST_SILOS, FederatorMetrics

LAYOUT = cut([("conv_in.weight", [7]), ("mid_block.weight", [5])])
SILOS = ("hospital-a", "hospital-b")
ENTRIES = st.builds(
    Entry,
    round=st.integers(1, 3),
    silo=st.sampled_from(["", *SILOS]),
    segment=st.sampled_from([OVERHEAD, *LAYOUT.names]),
    direction=st.sampled_from(["down", "up"]),
    raw=st.integers(0, 1 << 40),
    wire=st.integers(-1000, 1 << 40),
    retransmitted=st.integers(0, 1 << 40),
)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(tmp_path, from_table({"preset": "digits-16"}, "test"), LAYOUT, Database(tmp_path / "db"))
    enrol(made, *SILOS)
    return made


def enrol(federation: Federation, *names: str) -> None:
    for name in names:
        federation.roster.invite(name, b"", name, 2e9)
        federation.roster.enroll(name, name, name, 1, 1e9)


def scraped(metrics: FederatorMetrics) -> dict[tuple[str, frozenset[str]], float]:
    return {
        (sample.name.removeprefix("feddiff_federator_"), frozenset(sample.labels.values())): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def sums(ledger: Ledger) -> dict[tuple[str, str, str], tuple[int, ...]]:
    return {(t.silo, t.segment, t.direction): (t.raw, t.wire, t.retransmitted) for t in ledger.totals()}


@given(st.lists(ENTRIES, max_size=12), st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_totals_are_the_sums_of_the_rows_also_of_those_from_before(entries: list[Entry], older: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        first = Ledger(Database(path))
        with sqlite3.connect(path) as plain:  # as a federation was before there were totals
            plain.executescript("DROP TRIGGER ledger_inserted; DROP TRIGGER ledger_updated; DROP TABLE totals")
        for entry in entries[:older]:
            first.add(entry)
        ledger = Ledger(Database(path))
        for entry in entries[older:]:
            ledger.add(entry)
        expected: dict[tuple[str, str, str], Counter[str]] = {}
        for row in ledger.entries():
            one = expected.setdefault((row.silo, row.segment, row.direction), Counter())
            one.update(raw=row.raw, wire=row.wire, again=row.retransmitted)
        assert sums(ledger) == {key: (one["raw"], one["wire"], one["again"]) for key, one in expected.items()}
        for way in ("down", "up"):
            assert ledger.wire(way) == sum(row.wire for row in ledger.entries() if row.direction == way)  # type: ignore[arg-type]


def test_no_question_of_a_scrape_reads_a_table_that_grows_with_the_rounds(federation: Federation) -> None:
    database = Database(federation.folder / "db")
    asked: list[str] = []
    federation.database.connection.set_trace_callback(asked.append)
    list(FederatorMetrics(federation).collect())
    federation.database.connection.set_trace_callback(None)
    assert len(asked) > 10
    for query in {text for text in asked if text.startswith("SELECT")}:
        plan = " ".join(row[3] for row in database.rows(f"EXPLAIN QUERY PLAN {query}"))
        assert not re.search(
            r"SCAN (ledger|metrics|quality|updates|rounds|deliveries)\b(?! USING INDEX \S+ \()", plan
        ), query


def test_bytes_loss_and_quality(federation: Federation) -> None:
    a, segment = SILOS[0], LAYOUT.names[0]
    federation.ledger.add(Entry(1, a, segment, "up", raw=400, wire=100, retransmitted=7))
    federation.ledger.add(Entry(2, a, segment, "up", raw=400, wire=50), Entry(2, a, OVERHEAD, "up", wire=30))
    federation.ledger.add(Entry(1, "never-enrolled", "pasted", "up", wire=9))
    federation.journal.measure(1, a, {"loss": 2.0})
    federation.journal.measure(3, a, {"loss": 0.5, "other": 9.0})
    for round, value in ((1, 9.0), (3, 4.0)):
        federation.ledger.measure(round, "", [Measured("fid", value, None, 5, 5, "reference", "x", "d")])
    made_up = [
        Measured("fid", 6.0, None, 5, 5, OWN_IMAGES, "x", "d"),
        Measured("fid", 6.0, None, 5, 5, "Jane Doe", "x", "d"),
        Measured("doe_jane", 1.0, None, 5, 5, OWN_IMAGES, "x", "d"),
    ]
    federation.ledger.measure(2, a, made_up)
    found = scraped(FederatorMetrics(federation))
    assert found["wire_bytes_total", frozenset({a, segment, "up"})] == 150
    assert found["wire_bytes_total", frozenset({a, "(protocol)", "up"})] == 30
    assert found["wire_bytes_total", frozenset({"(unknown)", "(other)", "up"})] == 9
    assert found["raw_bytes_total", frozenset({segment, "up"})] == 800
    assert found["retransmitted_bytes_total", frozenset({a, "up"})] == 7
    assert found["silo_loss", frozenset({a})] == 0.5
    assert ("silo_loss", frozenset({SILOS[1]})) not in found
    assert found["quality", frozenset({"(global)", "fid", "reference"})] == 4.0
    assert found["quality_round", frozenset({"(global)"})] == 3
    assert found["quality", frozenset({a, "fid", OWN_IMAGES})] == 6.0
    assert not [key for key in found if "oe" in str(key[1]) and "ane" in str(key[1])]


def test_a_counter_never_runs_back(federation: Federation) -> None:
    metrics, key = FederatorMetrics(federation), ("wire_bytes_total", frozenset({SILOS[0], "(protocol)", "down"}))
    shown = []
    for wire in (100, -70, 20, 90):  # what gRPC has taken and the kernel has not sent is owed for a while
        federation.ledger.add(Entry(1, SILOS[0], OVERHEAD, "down", wire=wire))
        shown.append(scraped(metrics)[key])
    assert shown == [100, 100, 100, 140]


def test_series_of_bytes_are_bounded_however_many_silos_there_are(federation: Federation) -> None:
    names = [f"silo-{number}" for number in range(MOST_SILOS)]
    with federation.database.transaction():
        enrol(federation, *names)
        for name in names:
            federation.ledger.add(Entry(1, name, LAYOUT.names[0], "up", wire=2))
    found = scraped(FederatorMetrics(federation))
    assert [value for (name, _), value in found.items() if name == "wire_bytes_total"] == [2 * MOST_SILOS]


def test_rejected_updates_are_counted_by_silo(federation: Federation) -> None:
    federation.journal.reject(1, SILOS[1], "NaN")
    federation.journal.reject(4, SILOS[1], "NaN")
    found = scraped(FederatorMetrics(federation))
    assert [found["rejected_updates_total", frozenset({silo})] for silo in SILOS] == [0, 2]
