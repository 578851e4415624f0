"""Link rates, from rows of the ledger and from the kernel's counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from feddiff.federator import traffic
from feddiff.federator.database import Database
from feddiff.federator.ledger import OVERHEAD, Direction, Entry, Ledger
from feddiff.federator.links import LEAST, Links
from feddiff.federator.traffic import Counts, Traffic

A, B = "clinic-a", "clinic-b"
PEER = ("192.0.2.7", 4711)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Database(tmp_path / "federation.db"))


def transfer(ledger: Ledger, round: int, rate: float, way: Direction = "up", silo: str = A, size: int = 10**6) -> None:
    """A round's transfers of two segments at a rate, in bytes a second, and what belongs to none."""
    for segment in ("encoder.in", "decoder.0"):
        ledger.add(Entry(round, silo, segment, way, wire=size // 2, seconds=size / 2 / rate))
    ledger.add(Entry(round, silo, OVERHEAD, way, wire=5 * 10**7))


def test_the_median_of_the_newest_rounds(ledger: Ledger) -> None:
    links = Links(ledger)
    assert links.rate(A, "up") is None
    for round, rate in enumerate((9e9, 1e6, 5e3, 2e6), start=1):
        transfer(ledger, round, rate)
    transfer(ledger, 4, 7e5, silo=B)
    transfer(ledger, 4, 3e5, "down")
    found = links.rate(A, "up")
    assert found is not None
    assert (found.bytes_s, found.round, found.mbit_s) == (pytest.approx(1e6), 4, pytest.approx(8.0))
    assert [links.rate(*each).bytes_s for each in ((B, "up"), (A, "down"))] == [pytest.approx(7e5), pytest.approx(3e5)]
    assert links.rate(B, "down") is None


def test_small_transfers_say_nothing(ledger: Ledger) -> None:
    transfer(ledger, 1, 1e6)
    transfer(ledger, 2, 10.0, size=LEAST - 2)
    found = Links(ledger).rate(A, "up")
    assert found is not None
    assert found.round == 1


def test_a_restart_knows_the_links_again(tmp_path: Path, ledger: Ledger) -> None:
    transfer(ledger, 1, 1e6)
    assert Links(Ledger(Database(tmp_path / "federation.db"))).rate(A, "up") == Links(ledger).rate(A, "up")


def test_who_is_not_measured_for_long_is_tried_again_step_by_step(ledger: Ledger) -> None:
    links = Links(ledger)
    assert links.taken_for(A, "up", 1, 5e5) == 5e5
    transfer(ledger, 7, 1e5)
    assert [links.taken_for(A, "up", round, 5e5) for round in (8, 10, 11, 12, 13, 5000)] == pytest.approx(
        [1e5, 1e5, 2e5, 4e5, 5e5, 5e5]
    )
    transfer(ledger, 8, 1e6, silo=B)
    assert links.taken_for(B, "up", 5000, 5e5) == pytest.approx(1e6)


def test_down_the_kernel_says_how_long_it_took(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC took all of it at once; the kernel sent it over four seconds, and polls and reports after it."""
    counts: dict[traffic.Connection, Counts] = {PEER: (0, 0, 0)}
    monkeypatch.setattr(traffic, "kernel_counts", lambda port: dict(counts))
    counted = Traffic(ledger, 1, lambda: 3)
    counted.owned("ipv4:192.0.2.7:4711", A)
    counted.flush()
    counted.add(Entry(3, A, "decoder.0", "down", wire=10**6))
    for second in range(1, 5):
        counts[PEER] = (250_000 * second, 0, 1_000_000 * second)
        counted.flush()
    for second in range(100):  # answers to small questions, each a round trip of 200 ms
        counts[PEER] = (10**6 + 150 * second, 100 * second, 4_000_000 + 200_000 * second)
        counted.flush()
    found = Links(ledger).rate(A, "down")
    assert found is not None
    assert found.bytes_s == pytest.approx(250_000, rel=0.1)
    rows = {(entry.segment, entry.direction): entry for entry in ledger.entries()}
    assert rows["decoder.0", "down"].wire == 10**6
    assert rows[OVERHEAD, "down"].wire == 99 * 150
    assert Links(ledger).rate(A, "up") is None
