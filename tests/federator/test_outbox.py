"""What each deed leaves for the audit log, in the transaction that does it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from feddiff.core import pki
from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.core.quality import OWN_IMAGES, Measured
from feddiff.core.segments import cut
from feddiff.federator import outbox
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.operators import CONSOLE
from feddiff.federator.orders import Orders
from feddiff.federator.planner import Assignment, Plan
from feddiff.federator.verdicts import Verdicts

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (40,)), ("up_blocks.0.a", (50,))])

DIGEST = "ab" * 32


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    rules = {"plan": "full", "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}}
    made = Federation(tmp_path, from_table(rules, "test"), LAYOUT, Database(tmp_path / "federation.db"))
    made.roster.invite("clinic-a", b"pem", "print", time.time() + 60)
    made.roster.enroll("clinic-a", "print", "key", 1, time.time())
    left(made)
    return made


def left(federation: Federation) -> list[tuple[str, dict[str, Any]]]:
    """Kind and facts of what waits; it is settled by that."""
    events = outbox.pending(federation.database)
    outbox.settle(federation.database, events, 1, "0" * 64)
    return [(each.kind, json.loads(each.facts)) for each in events]


def test_the_life_of_a_silo(federation: Federation) -> None:
    roster = federation.roster
    roster.invite("clinic-b", b"pem", "print-b", 1000.0)
    invited = {
        "by": outbox.console(),
        "name": "clinic-b",
        "invitation": "print-b",
        "until": "1970-01-01T00:16:40+00:00",
    }
    assert left(federation) == [("invited", invited)]
    assert roster.withdraw("clinic-b")
    assert not roster.withdraw("clinic-b")
    assert left(federation) == [("withdrawn", {"by": outbox.console(), "invitation": "clinic-b"})]
    certificate, _ = pki.invitation_certificate("clinic-a", b"s" * 32)
    roster.certificates.add("clinic-a", "key-2", certificate, "stage", "1")
    [(kind, facts)] = left(federation)
    assert kind == "issued"
    assert (facts["silo"], facts["key"], len(facts["certificate"])) == ("clinic-a", "key-2", 64)
    roster.check("clinic-a", int(facts["serial"]))
    roster.check("clinic-a", int(facts["serial"]))
    renewed = {"silo": "clinic-a", "serial": facts["serial"], "instead_of": "1"}
    assert left(federation) == [("renewed", renewed)]
    roster.introduce("clinic-a", 10, {}, "", "")
    assert left(federation) == []


def test_orders_are_told_with_who_gave_them_and_what_came_of_them(federation: Federation) -> None:
    orders = Orders(federation)
    orders.give("anna", "evict", "clinic-a", "left the study")
    ordered = {"by": "anna", "what": "evict", "silo": "clinic-a", "reason": "left the study"}
    assert left(federation) == [
        ("order", ordered),
        ("evicted", {"silo": "clinic-a", "reason": "left the study"}),
    ]
    orders.give(CONSOLE, "pause")
    assert left(federation) == [("order", {"by": outbox.console(), "what": "pause"})]
    with pytest.raises(ConfigError):
        orders.give("anna", "reinstate", "clinic-a")
    [(kind, facts)] = left(federation)
    assert (kind, facts["by"], facts["silo"]) == ("refused", "anna", "clinic-a")
    assert "is not out" in facts["refused"]


def test_a_round(federation: Federation) -> None:
    names, journal = tuple(LAYOUT.names), federation.journal
    plan = Plan(1, "full", (Assignment("clinic-a", names, names, (), "all"),), "everything")
    journal.open(plan, {"clinic-a": 10}, 5.0, "1 of 1 is here")
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
    told = {"round": 1, "reason": "1 of 1 is here", "plan": "everything", "digest": digest, "images": {"clinic-a": 10}}
    assert left(federation) == [("planned", told)]
    for number, name in enumerate(reversed(names), 1):
        for fresh in (True, False):
            assert journal.commit_update(1, "clinic-a", name, bytes([number]) * 32, 6.0, names) is fresh
        assert len(outbox.pending(federation.database)) == (number == len(names))
    order = dict(zip(reversed(names), (bytes([n]).hex() * 32 for n in range(1, 9)), strict=False))
    listed = "".join(f"{name} {order[name]}\n" for name in sorted(names))
    whole = hashlib.sha256(listed.encode()).hexdigest()
    assert left(federation) == [("update", {"round": 1, "silo": "clinic-a", "segments": len(names), "digest": whole})]
    journal.reject(1, "clinic-b", "NaN")
    assert left(federation) == [("rejected", {"round": 1, "silo": "clinic-b", "reason": "NaN"})]
    journal.publish({names[0]: 1}, 1, ("clinic-a",), 7.0, {names[0]: "d" * 64})
    made = {"round": 1, "silos": ["clinic-a"], "versions": {names[0]: {"version": 1, "digest": "d" * 64}}}
    assert left(federation) == [("published", made)]
    journal.finish("all rounds are done")
    journal.finish("again, after a restart")
    assert left(federation) == [("finished", {"reason": "all rounds are done"})]
    assert federation.journal.fact("finished") == "again, after a restart"


def test_verdicts_and_reinstatements(federation: Federation) -> None:
    rules = {
        "plan": "udec",
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "rounds": {"count": 9, "participants": 3, "quorum": 1},
        "quality": {"extractor": DIGEST, "samples": 20},
        "filter": {"since": 1},
    }
    verdicts = Verdicts(federation.database, from_table(rules, "test"))
    for number in (1, 2):
        for silo, value in (("clinic-a", 0.9), ("clinic-b", 0.1)):
            measured = Measured("precision", value, None, 20, 10, OWN_IMAGES, "tiny", DIGEST)
            federation.ledger.measure(number, silo, [measured])
        silos = ["clinic-a", "clinic-b"]
        verdicts.close(number, silos, federation.ledger.quality(number), silos)
    verdicts.reinstate("clinic-b", 3)
    told = left(federation)
    assert {kind for kind, _ in told} == {"verdict"}
    assert [(facts["round"], facts["silo"], facts["verdict"]) for _, facts in told] == [
        (1, "clinic-b", "warned"),
        (2, "clinic-b", "out"),
        (2, "clinic-b", "reinstated"),
    ]
    assert "0.1" in told[0][1]["finding"]


def test_the_federations_own_certificates_are_told_when_they_change(federation: Federation) -> None:
    one, two = (pki.invitation_certificate(name, b"s" * 32)[0] for name in ("one", "two"))
    certificates = federation.roster.certificates
    certificates.attest(ca=one, server=two, next=b"")
    certificates.attest(ca=one, server=two, next=b"")
    [(kind, before)] = left(federation)
    assert kind == "certificates"
    assert before["next"] == ""
    certificates.attest(ca=two, server=two, next=b"")
    [(_, after)] = left(federation)
    assert after == {"ca": before["server"], "server": before["server"], "next": ""}
