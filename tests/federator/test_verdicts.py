"""federator/verdicts.py: what is decided of silos is kept with the round that it closes, once, and read off again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.core.quality import OWN_IMAGES, Measured
from feddiff.core.segments import cut
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.lookout import left_out, look
from feddiff.federator.operator import status
from feddiff.federator.verdicts import Verdicts

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (40,)), ("up_blocks.0.a", (50,))])
A, B, C = SILOS = ["clinic-a", "clinic-b", "clinic-c"]
DIGEST = "ab" * 32


def running(folder: Path, **table: Any) -> Federation:
    """Three clinics, before the first round; or as it was left in this folder."""
    rules = {
        "plan": "udec",
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "rounds": {"count": 9, "participants": 3, "quorum": 1},
        "quality": {"extractor": DIGEST, "samples": 20},
        "filter": {"since": 1, **table},
    }
    federation = Federation(folder, from_table(rules, "test"), LAYOUT, Database(folder / "federation.db"))
    if not federation.current:
        federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
        federation.current = federation.journal.current()
        for samples, silo in enumerate(SILOS, start=1):
            federation.roster.invite(silo, b"pem", silo, time.time() + 60)
            federation.roster.enroll(silo, silo, f"key of {silo}", samples, time.time())
    for silo in SILOS:
        federation.join(silo, 10, {}, dict.fromkeys(LAYOUT.names, 0), "cpu", "feddiff")
    return federation


def measured(value: float, metric: str = "precision", against: str = OWN_IMAGES) -> Measured:
    return Measured(metric, value, None, 20, 10, against, "tiny", DIGEST)


def closes(federation: Federation, told: Mapping[str, float]) -> list[str]:
    """A round with these readings, in which nobody's update came; who it planned."""
    silos = sorted(look(federation, time.monotonic()).reachable)
    federation.begin_round(silos, "")
    number = federation.upcoming
    for silo, value in told.items():
        federation.ledger.measure(number, silo, [measured(value), measured(1 - value, "recall"), measured(9, "fid")])
    federation.published({}, ())
    return silos


def decided(federation: Federation) -> list[tuple[int, str, str]]:
    return [(each.round, each.silo[-1], each.kind) for each in federation.verdicts.all()]


def test_what_was_decided_outlives_the_process_and_is_not_decided_again(tmp_path: Path) -> None:
    federation = running(tmp_path)
    closes(federation, {A: 0.9, B: 0.5, C: 0.1})
    assert decided(federation) == [(1, "c", "warned")]
    federation = running(tmp_path)
    assert decided(federation) == [(1, "c", "warned")]
    assert closes(federation, {A: 0.9, B: 0.5, C: 0.2}) == SILOS
    assert decided(federation) == [(1, "c", "warned"), (2, "c", "out")]
    federation = running(tmp_path)
    assert [*federation.verdicts.out(3)] == [C]
    assert closes(federation, {A: 0.9, B: 0.5}) == [A, B]
    assert left_out(federation, C) == ""


def test_a_round_is_closed_with_its_verdicts_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = running(tmp_path)

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Verdicts, "_add", fails)
        with pytest.raises(OSError, match="full"):
            closes(federation, {A: 0.9, B: 0.5, C: 0.1})
    federation = running(tmp_path)
    assert federation.open_round() == 1
    federation.published({}, ())
    assert decided(federation) == [(1, "c", "warned")]


def test_only_the_rules_own_metric_of_silos_own_images_counts(tmp_path: Path) -> None:
    federation = running(tmp_path, metric="recall", rule="threshold", threshold=0.5)
    federation.begin_round(SILOS, "")
    federation.ledger.measure(1, A, [measured(0.1), measured(0.9, "recall"), measured(0.1, "recall", "something else")])
    federation.ledger.measure(1, "nobody-planned", [measured(0.1, "recall")])
    federation.ledger.measure(1, B, [measured(0.4, "recall")])
    federation.published({}, ())
    assert decided(federation) == [(1, "b", "warned")]


def test_the_last_round_decides_nothing_nor_those_before_the_filter(tmp_path: Path) -> None:
    federation = running(tmp_path, since=4, rule="threshold", threshold=0.5, out="round")
    for _ in range(9):
        closes(federation, {A: 0.9, B: 0.9, C: 0.1})
    # In round 6 it is out, so what it says of that round, in which it was not planned, is nothing.
    kinds = [(4, "c", "warned"), (5, "c", "out"), (7, "c", "warned"), (8, "c", "out")]
    assert decided(federation) == kinds


def test_the_operator_takes_back_who_is_out_and_nobody_else(tmp_path: Path) -> None:
    federation = running(tmp_path)
    for _ in range(2):
        closes(federation, {A: 0.9, B: 0.5, C: 0.1})
    for silo, said in ((A, "'clinic-a' is not out; filtered out: clinic-c"), ("x", "'x' is not out")):
        with pytest.raises(ConfigError, match=said):
            federation.reinstate(silo)
    notes = {each.name: each.note for each in status(federation, live=True).silos}
    assert notes[C].startswith("out for good: precision 0.1 in round 2")
    federation.reinstate(C)
    with pytest.raises(ConfigError, match="filtered out: none"):
        federation.reinstate(C)
    assert closes(federation, {A: 0.9, B: 0.5, C: 0.1}) == SILOS
    assert decided(federation)[-2:] == [(2, "c", "reinstated"), (3, "c", "warned")], "its record was clean"


def test_an_evicted_silo_is_not_counted_among_those_that_are_left(tmp_path: Path) -> None:
    federation = running(tmp_path, rule="threshold", threshold=0.5)
    closes(federation, {A: 0.1, B: 0.2, C: 0.9})
    federation.begin_round(SILOS, "")
    federation.evict(C, "gone")
    for silo, value in {A: 0.1, B: 0.2, C: 0.9}.items():
        federation.ledger.measure(2, silo, [measured(value)])
    federation.published({}, ())
    assert decided(federation)[2:] == [(2, "a", "out"), (2, "b", "kept")]
    assert look(federation, time.monotonic()).reachable == {B}
