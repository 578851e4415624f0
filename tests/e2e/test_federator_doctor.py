"""``feddiff-federator doctor`` on real folders and beside real daemons: each thing is broken on purpose."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from stage import FEDERATOR, Stage

from feddiff.core import machine
from feddiff.core.finding import Finding, exit_code
from feddiff.federator import doctor, site


def examined(stage: Stage, **more: object) -> tuple[dict[str, Finding], int]:
    """The gravest finding of each subject, and the exit code."""
    found = list(doctor.examine(replace(doctor.Patient(stage.rules), **more)))  # type: ignore[arg-type]
    order = ("ok", "warning", "problem")
    worst = sorted(found, key=lambda each: order.index(each.level))
    return {each.subject: each for each in worst}, exit_code(found)


def problems(found: dict[str, Finding]) -> list[str]:
    return sorted(subject for subject, each in found.items() if each.level == "problem")


def test_from_the_rules_to_a_running_federation(stage: Stage) -> None:
    stage.found(rounds=2)
    found, code = examined(stage)
    assert (problems(found), code) == ([], 0)
    assert "it has not begun" in found["federation"].sentence
    assert f"[::]:{stage.port} is free" in found["port"].sentence
    assert "plan full, 2 rounds of 2 silos, with 2 updates at least" in found["rules"].sentence
    size = 4 * stage.layout.size
    assert size < found["traffic"].numbers["round_bytes"] / 4 < 1.1 * size + 5000
    stage.invite("hospital-a")
    found, _ = examined(stage)
    assert "that of hospital-a is open until" in found["invitations"].sentence

    server = stage.serve()
    hospital = stage.hospital("hospital-a").start()
    stage.until("it is here", lambda: stage.silo_status("hospital-a").get("reachable"))
    before = (stage.home / "lock").stat()
    found, code = examined(stage)
    assert (problems(found), code) == ([], 0)
    assert "the federator is running in this folder" in found["daemon"].sentence
    assert "the daemon answers at" in found["port"].sentence
    assert found["silos"].level == "warning"
    assert found["silos"].sentence == "enrolled: hospital-a (here); the first round waits for 2"
    assert "5 published files" in found["versions"].sentence
    assert (stage.home / "lock").stat() == before
    assert server.code is None
    assert "refused" not in server.told()
    hospital.stop()
    assert server.terminate() == 0
    found, code = examined(stage)
    assert (problems(found), code) == ([], 0)


def test_what_is_broken_in_the_folder(stage: Stage) -> None:
    stage.found()
    server = stage.serve()
    assert server.terminate() == 0
    with socket.create_server(("::", stage.port), family=socket.AF_INET6):
        found, code = examined(stage)
    assert (problems(found), code) == (["port"], 78)
    assert "cannot be listened on: address already in use" in found["port"].sentence

    rules = stage.rules.read_text()
    stage.rules.write_text(rules.replace("seed = 5", "seed = 6"))
    found, code = examined(stage)
    assert (problems(found), code) == (["rules"], 78)
    assert "the rules have changed since the federation began" in found["rules"].sentence
    stage.rules.write_text(rules.replace("rounds", "round"))
    found, code = examined(stage)
    assert (problems(found), code) == (["rules"], 78)
    stage.rules.write_text(rules)

    weights = stage.home / "weights" / "bottleneck@0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found, code = examined(stage)
    assert (problems(found), code) == (["versions"], 74)
    assert "damaged on disk: bottleneck@0.safetensors" in found["versions"].sentence
    data[-1] ^= 1
    weights.write_bytes(data)

    address = (stage.home / "address").read_text()
    (stage.home / "address").write_text("federator.invalid:50051\n")
    found, code = examined(stage)
    assert (problems(found), code) == (["host name"], 78)
    assert found["name"].level == "warning"
    (stage.home / "address").write_text(address)

    (stage.home / "ca.key").chmod(0o644)
    found, code = examined(stage)
    assert (found["private key"].level, code) == ("warning", 0)

    other = stage.folder / "other"
    site.init(other, "trial", "digits-16", stage.address, [])
    (stage.home / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    found, code = examined(stage)
    assert (problems(found), code) == (["certificates"], 77)

    database = stage.home / "federation.db"
    database.write_bytes(b"no database" * 1000)
    found, code = examined(stage)
    assert "database" in problems(found)
    assert code == 74


def test_dates_disk_and_files(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extractor = f'[quality]\nextractor = "{"0" * 64}"\n'
    stage.found(more=extractor)
    stage.invite("hospital-a")
    later = lambda: time.time() + timedelta(days=40).total_seconds()  # noqa: E731
    found, code = examined(stage, now=later)
    assert (problems(found), code) == (["certificate"], 77)
    assert "the server's certificate ended on" in found["certificate"].sentence
    assert "that of hospital-a ended on" in found["invitations"].sentence
    assert found["files"].level == "warning"
    assert "give --extractor FILE" in found["files"].sentence
    (tmp_path / "wrong.pt").write_bytes(b"wrong")
    found, code = examined(stage, extractor=tmp_path / "wrong.pt")
    assert (problems(found), code) == (["files"], 78)
    inspect = machine.inspect
    monkeypatch.setattr(machine, "inspect", lambda *given: replace(inspect(*given), free=1000))
    found, code = examined(stage)
    assert (problems(found), code) == (["disk"], 74)


def test_the_command(stage: Stage) -> None:
    stage.found()
    done = stage.call(FEDERATOR, "doctor", "--config", str(stage.rules), "--json")
    table = json.loads(done.out)
    assert (done.code, table["exit_code"], done.err) == (0, 0, "")
    assert {each["level"] for each in table["findings"]} <= {"ok", "warning"}
    absent = stage.call(FEDERATOR, "doctor", "--config", str(stage.folder / "none.toml"))
    assert absent.code == 78
    assert absent.out.startswith("PROBLEM  rules")
