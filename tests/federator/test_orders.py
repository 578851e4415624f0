"""Operators' orders: carried out, and noted with who, what and when."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.core.segments import cut
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.orders import MAX_REASON, Orders, given

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (40,)), ("up_blocks.0.a", (50,))])


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    rules = {"plan": "full", "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}}
    made = Federation(tmp_path, from_table(rules, "test"), LAYOUT, Database(tmp_path / "federation.db"))
    made.roster.invite("clinic-a", b"pem", "print", time.time() + 60)
    made.roster.enroll("clinic-a", "print", "key", 1, time.time())
    return made


def test_each_is_carried_out_and_noted(federation: Federation) -> None:
    orders, before = Orders(federation), time.time()
    for who, what in (("anna", "pause"), ("boris", "resume"), ("console", "stop")):
        orders.give(who, what)
    orders.give("anna", "evict", "clinic-a", "left the study" + "x" * 1000)
    assert federation.journal.fact("paused") == "no"
    assert federation.journal.fact("stopping") == "yes"
    assert (federation.roster.get("clinic-a").evicted or "").startswith("left the study")
    found = given(federation.database, 10)
    assert [(each.operator, each.what, each.silo, each.refused) for each in found] == [
        ("anna", "evict", "clinic-a", ""),
        ("console", "stop", "", ""),
        ("boris", "resume", "", ""),
        ("anna", "pause", "", ""),
    ]
    assert all(before <= each.at <= time.time() for each in found)
    assert len(found[0].reason) == MAX_REASON
    assert [each.what for each in given(federation.database, 2)] == ["evict", "stop"]


def test_what_cannot_be_done_is_noted_as_refused(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="no silo 'clinic-z'"):
        Orders(federation).give("anna", "evict", "clinic-z")
    with pytest.raises(ConfigError, match="is not out"):
        Orders(federation).give("anna", "reinstate", "clinic-a")
    refused = [each.refused for each in given(federation.database, 10)]
    assert [text.split(";")[0] for text in refused] == ["'clinic-a' is not out", "there is no silo 'clinic-z'"]


@pytest.mark.parametrize(("what", "silo"), [("dance", ""), ("", ""), ("evict", ""), ("pause", "clinic-a")])
def test_what_is_no_order_is_not_even_noted(federation: Federation, what: str, silo: str) -> None:
    with pytest.raises(ConfigError):
        Orders(federation).give("anna", what, silo)
    assert given(federation.database, 10) == []
