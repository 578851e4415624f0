"""What is found of a folder, a disk, the memory, a clock and a certificate."""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feddiff.core import machine, pki, premises
from feddiff.core.errors import CertificateExpired, StoreError
from feddiff.core.machine import Folder, Machine

MB = 1_000_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROOMY = Folder(Path("/state"), True, "", 10_000 * MB, 100 * MB, 1000, (), False)
HERE = Machine(8_000 * MB, 4_000 * MB, 4, True)


def test_a_disk_is_judged_by_what_is_still_to_come() -> None:
    fits = premises.disk(ROOMY, 1_000 * MB)
    assert fits.level == "ok"
    assert fits.numbers == {"free_bytes": 10_000 * MB, "needed_bytes": 900 * MB}
    just = premises.disk(replace(ROOMY, free=1_000 * MB), 1_000 * MB)
    assert just.level == "warning"
    full = premises.disk(replace(ROOMY, free=500 * MB), 1_000 * MB)
    assert (full.level, full.kind) == ("problem", StoreError)
    assert (
        "only 500 MB free; the federation's model wants up to 1.00 GB here, of which 100 MB are there" in full.sentence
    )
    assert "900 MB should be free" in full.advice
    assert premises.disk(replace(ROOMY, free=MB), None).level == "problem"
    assert premises.disk(ROOMY, None).level == "ok"


def test_memory_that_is_taken_is_a_warning_and_memory_that_is_not_there_a_problem() -> None:
    assert [premises.memory(HERE, need * MB, "it").level for need in (3_000, 5_000, 9_000)] == [
        "ok",
        "warning",
        "problem",
    ]


@pytest.mark.parametrize(
    ("ahead", "level", "says"),
    [
        (0.3, "ok", "differ by 0.3 s"),
        (90.0, "warning", "this clock is 90 s behind the federator's"),
        (-600.0, "warning", "this clock is 10 minutes ahead of the federator's"),
        (-7200.0, "problem", "this clock is 2 hours ahead of the federator's"),
        (864000.0, "problem", "this clock is 10 days behind the federator's"),
    ],
)
def test_a_clock_against_the_federators(ahead: float, level: str, says: str) -> None:
    found = premises.clock(HERE, ahead, "the federator's")
    assert found.level == level
    assert says in found.sentence
    assert level != "problem" or found.kind is CertificateExpired


def test_a_clock_that_nobody_keeps_and_nobody_confirms() -> None:
    assert premises.clock(replace(HERE, synchronised=False), None, "any").level == "warning"
    assert premises.clock(HERE, None, "any").level == "ok"


@pytest.mark.parametrize(
    ("day", "level", "says"),
    [
        (5, "ok", "25 more days"),
        (25, "warning", "5 more days"),
        (29.9, "warning", "2 more hours"),
        (31, "problem", "ended"),
    ],
)
def test_a_certificate_by_its_days(day: float, level: str, says: str) -> None:
    ca, key = pki.create_authority("trial", NOW, 30)
    del key
    found = premises.certificate(ca, NOW + timedelta(days=day), "certificate", "the CA", "renew", "soon")
    assert found.level == level
    assert says in found.sentence
    assert found.advice == {"ok": "", "warning": "soon", "problem": "if the clock is right: renew"}[level]


def test_a_certificate_that_begins_later_blames_the_clock() -> None:
    ca, _ = pki.create_authority("trial", NOW, 30)
    found = premises.certificate(ca, NOW - timedelta(days=1), "certificate", "the CA", "renew")
    assert (found.level, found.kind, found.advice) == ("problem", CertificateExpired, "set the clock")


def test_a_folder_as_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    absent = machine.inspect(state)
    assert (absent.exists, absent.unwritable, absent.used, absent.owner) == (False, "", 0, None)
    assert [each.level for each in premises.folder(absent, 1000)] == ["ok"]
    state.mkdir()
    (state / "key.pem").write_text("secret")
    (state / "key.pem").chmod(0o640)
    found = machine.inspect(state, ("key.pem",))
    assert found.open_files == ("key.pem",)
    assert found.owner == os.geteuid()
    levels = {each.subject: each.level for each in premises.folder(found, os.geteuid())}
    assert levels == {"state folder": "ok", "private key": "warning"}
    assert sorted(path.name for path in state.iterdir()) == ["key.pem"]
    (tmp_path / "file").write_text("")
    [wrong] = premises.folder(machine.inspect(tmp_path / "file" / "state"), 1000)
    assert (wrong.level, wrong.kind) == ("problem", StoreError)


def test_a_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not machine.locked(lock)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    assert not machine.locked(lock)
    fcntl.flock(handle, fcntl.LOCK_EX)
    if not Path("/proc/locks").exists():
        pytest.skip("this system does not list its locks")
    assert machine.locked(lock)
    os.close(handle)
    assert not machine.locked(lock)


def test_root_is_told_that_it_may_write_everywhere() -> None:
    [found] = premises.folder(ROOMY, 0)
    assert (found.level, found.advice) == ("warning", "run the doctor as the user that runs the daemon")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "x", str(tmp_path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a file system of its own needs root")
    try:
        (tmp_path / "fill").write_bytes(b"x" * (60 << 10))
        assert premises.disk(machine.inspect(tmp_path), None).level == "problem"
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "rest").write_bytes(b"x" * (60 << 10))
        [found] = premises.folder(machine.inspect(tmp_path), 1000)
        assert (found.level, found.kind) == ("problem", StoreError)
        assert "no space left on device" in found.sentence
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
