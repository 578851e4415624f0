"""The audit log of real federations: what the journal knows is in it, once, and in order, whatever was killed."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from typing import Any

from stage import FEDERATOR, Stage

from feddiff.federator import examiner
from feddiff.federator.orders import given

A, B = "hospital-a", "hospital-b"


def history(stage: Stage) -> list[dict[str, Any]]:
    """The entries, of a log that is whole."""
    told = examiner.verify(stage.rules, None, None, None)
    entries = [json.loads(line) for line in examiner.show(stage.rules, None, None, as_json=True)]
    assert f"{len(entries)} entries" in told
    assert "more are on record" not in told
    return entries


def of(entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each["facts"] for each in entries if each["kind"] == kind]


def check_history(stage: Stage) -> list[dict[str, Any]]:
    """Replays the log against the database and the published files: nothing missing, nothing doubled, all digests."""
    entries, federation = history(stage), stage.opened()
    journal = federation.journal
    assert max(Counter(each["id"] for each in entries).values()) == 1
    assert not {"lost", "restored"} & {each["kind"] for each in entries}
    rules = of(entries, "rules")
    assert [each["digest"] for each in rules] == [federation.config.digest]
    assert rules[0]["initial"] == journal.fact("initial")
    assert all(each["rules"] == federation.config.digest for each in of(entries, "started"))
    rounds = journal.rounds()
    assert [(each["round"], each["reason"], each["plan"], each["digest"], each["images"])
            for each in of(entries, "planned")] == [
        (each.round, each.reason, each.plan.reason, hashlib.sha256(each.plan.to_json().encode()).hexdigest(),
         dict(each.weights)) for each in rounds
    ]  # fmt: skip
    whole = {}
    for each in rounds:
        database = federation.database
        for assignment in each.plan.assignments:
            query = "SELECT segment, digest FROM updates WHERE round = ? AND silo = ? ORDER BY segment"
            rows = database.rows(query, (each.round, assignment.silo))
            if assignment.up and {row[0] for row in rows} >= set(assignment.up):
                text = "".join(f"{segment} {digest}\n" for segment, digest in rows)
                whole[each.round, assignment.silo] = (len(rows), hashlib.sha256(text.encode()).hexdigest())
    updates = of(entries, "update")
    assert len(updates) == len(whole)
    assert {(each["round"], each["silo"]): (each["segments"], each["digest"]) for each in updates} == whole
    published = of(entries, "published")
    assert [each["round"] for each in published] == [0, *(each.round for each in rounds if each.closed_at)]
    for entry in published:
        for segment, made in entry["versions"].items():
            digest = hashlib.sha256(stage.published(segment, made["version"]).tobytes()).hexdigest()
            assert made["digest"] == digest
    assert [tuple(each["silos"]) for each in published[1:]] == [each.silos for each in rounds if each.closed_at]
    orders = [(each["what"], each.get("silo", "")) for each in of(entries, "order") if "rotate-ca" not in each["what"]]
    noted = [(each.what, each.silo) for each in reversed(given(federation.database, 100)) if not each.refused]
    assert orders == noted
    assert len(of(entries, "finished")) == (journal.fact("finished") is not None)
    return entries


def test_a_federation_leaves_its_history(stage: Stage) -> None:
    server = stage.found(rounds=2).serve()
    first, second = stage.hospital(A).start(), stage.hospital(B)
    second.gate[2] = threading.Event()
    second.start()
    stage.until("the second round trains", lambda: second.training(2))
    stage.operate("pause")
    stage.operate("resume")
    assert stage.call(FEDERATOR, "reinstate", A, "--config", str(stage.rules)).code == 78
    stage.operate("operator", "anna")
    assert "operator=anna" in stage.operate("audit", "show")
    number, head = stage.status()["audit"].split()
    assert f"entry {number} {head}" in stage.operate("status")
    assert "whole and in order" in stage.operate("audit", "verify", "--expect", head)
    second.gate[2].set()
    assert server.wait() == 0
    stage.until("both have heard of the end", lambda: first.finished and second.finished)
    entries = check_history(stage)
    assert [each["silo"] for each in of(entries, "enrolled")] == [A, B]
    assert [each["name"] for each in of(entries, "invited")] == [A, B]
    assert len(of(entries, "issued")) == 2
    assert [each["operator"] for each in of(entries, "token")] == ["anna"]
    assert len(of(entries, "certificates")) == 1
    by = {each["by"] for each in of(entries, "order")}
    assert [name.split(":")[0] for name in by] == ["console"]
    assert [(each["what"], each["silo"]) for each in of(entries, "refused")] == [("reinstate", A)]
    kinds = [each["kind"] for each in entries]
    assert kinds[0] == "founded"
    assert kinds[-1] == "finished"
    assert kinds.index("rules") < kinds.index("started") < kinds.index("planned") < kinds.index("update")

    # Each silo is a witness: what it was told is in the log, and would be missed in another.
    for silo in (A, B):
        kept = [line.split() for line in (stage.folder / silo / "audit-heads").read_text().splitlines()]
        assert len(kept) >= 2
        lines = (stage.home / "audit.jsonl").read_bytes().splitlines()
        assert all(hashlib.sha256(lines[int(number) - 1]).hexdigest() == head for _, number, head in kept)
    last = kept[-1]
    path = stage.home / "audit.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines[: int(last[1]) - 1]))
    found = stage.call(FEDERATOR, "audit", "verify", str(path), "--expect", last[2])
    assert found.code == 65
    assert "truncated or rewritten" in found.err


def test_commands_without_a_federator_are_on_record(stage: Stage) -> None:
    stage.found()
    stage.invite(A)
    stage.operate("revoke", A)
    stage.operate("operator", "anna")
    stage.operate("revoke", "anna")
    stage.operate("rotate-ca")
    stage.operate("rotate-ca", "--finish")
    entries = history(stage)
    kinds = [each["kind"] for each in entries]
    assert kinds == ["founded", "invited", "withdrawn", "token", "withdrawn", *["order", "certificates"] * 2]
    begun, done = of(entries, "certificates")
    assert begun["next"] == done["ca"] != begun["ca"]
    assert (done["next"], begun["server"] == done["server"]) == ("", False)
    assert [each["what"] for each in of(entries, "order")] == ["rotate-ca", "rotate-ca --finish"]


def test_an_eviction_is_told_with_who_ordered_it_and_the_ca_is_no_part_of_the_chain(stage: Stage) -> None:
    server = stage.found(rounds=1, silos=3).serve()
    stage.hospital(A).start()
    stage.until("it is here", lambda: stage.silo_status(A).get("reachable"))
    stage.operate("rotate-ca")
    stage.operate("rotate-ca", "--finish")
    stage.operate("revoke", A, "--reason", "left the study")
    stage.hospitals.pop(A).stop()
    server.kill()
    server = stage.serve()
    stage.until("the log follows", lambda: (stage.home / "audit.jsonl").read_text().count('"started"') == 2)
    assert server.terminate() == 0
    entries = check_history(stage)
    ordered, evicted = of(entries, "order")[-1], of(entries, "evicted")[0]
    assert (ordered["what"], ordered["silo"], evicted["silo"]) == ("evict", A, A)
    assert ordered["reason"] == evicted["reason"] == "left the study"
    assert len({each["ca"] for each in of(entries, "certificates")}) == 2


def test_kills_leave_a_whole_history(stage: Stage) -> None:
    server, dice = stage.found(rounds=6).serve(), random.Random(7)
    for name in (A, B):
        stage.hospital(name).start()
    for _ in range(4):
        time.sleep(dice.uniform(0.3, 2.0))
        if server.code is not None:
            break
        server.kill()
        server = stage.serve()
    stage.until("the rounds are done", lambda: server.code is not None)
    assert server.code == 0, server.told()
    entries = check_history(stage)
    assert len(of(entries, "started")) > 1
    assert len(of(entries, "published")) == 7
