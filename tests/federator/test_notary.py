"""From the database into the file: in order, each once, whatever is killed, put back, cut off or lost in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.errors import AuditError, ConfigError, StoreError
from feddiff.federator import audit, examiner, notary, outbox
from feddiff.federator.database import Database
from feddiff.federator.notary import Notary
from feddiff.federator.operators import Operators
from feddiff.federator.roster import Roster


class Killed(BaseException):
    """Stands for kill -9 at one line."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    notary.found(tmp_path)
    return tmp_path


def opened(folder: Path) -> Database:
    database = Database(folder / "federation.db")
    database.define(outbox.SCHEMA)
    return database


def happen(database: Database, *rounds: int) -> None:
    for number in rounds:
        with database.transaction() as change:
            outbox.note(change, "planned", round=number, reason="test")


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / notary.LOG).read_text().splitlines()]


def rounds(folder: Path) -> list[int]:
    return [each["facts"]["round"] for each in entries(folder) if each["kind"] == "planned"]


def verify(folder: Path, **options: str) -> str:
    return examiner.verify(folder / "federation.toml", None, options.get("key"), options.get("expect"))


def test_what_happened_is_written_once_and_in_order(folder: Path) -> None:
    database = opened(folder)
    happen(database, 1, 2)
    assert Notary(folder, database).write() == 2
    assert Notary(folder, database).write() == 0
    happen(database, 3)
    assert Notary(folder, database).write() == 1
    assert rounds(folder) == [1, 2, 3]
    assert [each["number"] for each in entries(folder)] == [1, 2, 3, 4]
    last = (folder / notary.LOG).read_bytes().splitlines()[-1]
    assert outbox.head(database) == (4, audit.hash_of(last))
    assert outbox.told(database) == f"4 {audit.hash_of(last)}"
    assert "4 entries" in verify(folder)
    assert (folder / notary.KEY).stat().st_mode & 0o777 == 0o600


def test_a_transaction_that_fails_leaves_no_trace(folder: Path) -> None:
    database = opened(folder)
    with contextlib.suppress(ZeroDivisionError), database.transaction() as change:
        outbox.note(change, "planned", round=1)
        raise ZeroDivisionError
    assert Notary(folder, database).write() == 0
    roster = Roster(database)
    with pytest.raises(ConfigError):
        roster.evict("clinic-a", "never enrolled")
    assert outbox.pending(database) == []


def test_more_than_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BATCH", 3)
    database = opened(folder)
    happen(database, *range(1, 9))
    assert Notary(folder, database).write() == 8
    assert rounds(folder) == list(range(1, 9))
    assert "9 entries" in verify(folder)


@pytest.mark.parametrize("step", ["nothing written", "half a line", "a line and a half", "all but not settled"])
def test_killed_while_writing(folder: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = opened(folder)
    happen(database, 1)
    Notary(folder, database).write()
    happen(database, 2, 3)
    if step == "all but not settled":
        kill(monkeypatch, outbox, "settle")
    else:
        kill(monkeypatch, notary, "_write", {"nothing written": 0, "half a line": 1, "a line and a half": 3}[step])
    with pytest.raises(Killed):
        Notary(folder, database).write()
    monkeypatch.undo()
    happen(database, 4)
    database.close()
    database = opened(folder)
    Notary(folder, database).write()
    assert rounds(folder) == [1, 2, 3, 4]
    assert {each["kind"] for each in entries(folder)} == {"founded", "planned"}
    assert "5 entries" in verify(folder)


def kill(monkeypatch: pytest.MonkeyPatch, module: object, name: str, halves: int = 0) -> None:
    """Let a function die; before, write so many halves of the first line that it was to write."""

    def dies(*given: object) -> None:
        if halves:
            data = given[1]
            assert isinstance(data, bytes)
            os.write(int(str(given[0])), data[: halves * (data.index(b"\n") + 1) // 2])
        raise Killed

    monkeypatch.setattr(module, name, dies)


def test_a_founding_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(monkeypatch, notary, "_write", 1)
    with pytest.raises(Killed):
        notary.found(tmp_path)
    monkeypatch.undo()
    database = opened(tmp_path)
    happen(database, 1)
    Notary(tmp_path, database).write()
    assert [each["kind"] for each in entries(tmp_path)] == ["founded", "planned"]
    verify(tmp_path)


def test_several_processes_and_threads_write_one_log(folder: Path) -> None:
    """Each makes something happen and writes, over and over; some are killed by themselves, by exit without warning."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom feddiff.federator import outbox\n"
        "from feddiff.federator.database import Database\nfrom feddiff.federator.notary import Notary\n"
        "folder, base = Path(sys.argv[1]), int(sys.argv[2])\ndatabase = Database(folder / 'federation.db')\n"
        "database.define(outbox.SCHEMA)\n"
        "settle = outbox.settle\n"
        "for number in range(base, base + 20):\n"
        "    with database.transaction() as change:\n        outbox.note(change, 'planned', round=number)\n"
        "    if number == base + 19:\n        outbox.settle = lambda *_: os._exit(9)\n"
        "    Notary(folder, database).write()\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, str(folder), str(base)]) for base in (100, 200)]
    database = opened(folder)

    def work(base: int) -> None:
        for number in range(base, base + 20):
            happen(database, number)
            Notary(folder, database).write()

    threads = [threading.Thread(target=work, args=(base,)) for base in (300, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.wait(60)
    Notary(folder, database).write()
    expected = [base + each for base in (100, 200, 300, 400) for each in range(20)]
    assert sorted(rounds(folder)) == expected
    for base in (100, 200, 300, 400):
        assert [each for each in rounds(folder) if base <= each < base + 20] == list(range(base, base + 20))
    assert f"{len(expected) + 1} entries" in verify(folder)


class TestTampering:
    """What somebody does to the file between two lives of the federator is found by both: ``verify`` and the notary."""

    @pytest.fixture
    def database(self, folder: Path) -> Database:
        database = opened(folder)
        happen(database, 1, 2, 3)
        Notary(folder, database).write()
        return database

    def cut(self, folder: Path, keep: int) -> None:
        lines = (folder / notary.LOG).read_bytes().splitlines(keepends=True)
        (folder / notary.LOG).write_bytes(b"".join(lines[:keep]))

    def test_a_cut_tail(self, folder: Path, database: Database) -> None:
        head = outbox.head(database)[1]
        self.cut(folder, 3)
        with pytest.raises(
            AuditError, match=f"after line 3: truncated or rewritten: no entry has the hash {head[:16]}"
        ):
            verify(folder)
        happen(database, 4)
        Notary(folder, database).write()
        with pytest.raises(AuditError, match="line 4: gap: entry 4 is missing, entry 5 stands here"):
            verify(folder)
        assert entries(folder)[-1]["kind"] == "lost"
        assert entries(folder)[-1]["facts"] == {"entries": 4, "head": head}

    def test_a_cut_tail_of_a_federator_that_does_not_run(self, folder: Path, database: Database) -> None:
        database.close()
        assert {path.name for path in folder.glob("federation.db*")} == {"federation.db"}
        assert "no database" not in verify(folder)
        self.cut(folder, 3)
        with pytest.raises(AuditError, match="after line 3: truncated or rewritten"):
            verify(folder)
        (folder / "federation.db").unlink()
        assert "whether the tail was cut off, --expect HASH tells" in verify(folder)

    def test_a_deleted_file(self, folder: Path, database: Database) -> None:
        (folder / notary.LOG).unlink()
        with pytest.raises(StoreError, match="No such file"):
            verify(folder)
        happen(database, 4)
        Notary(folder, database).write()
        with pytest.raises(AuditError, match="line 2: gap: entry 2 to 4 is missing, entry 5 stands here"):
            verify(folder)

    def test_a_changed_last_line(self, folder: Path, database: Database) -> None:
        path = folder / notary.LOG
        path.write_bytes(path.read_bytes().replace(b'"round":3', b'"round":9'))
        with pytest.raises(AuditError, match="line 4: signature: entry 4"):
            verify(folder)
        happen(database, 4)
        Notary(folder, database).write()
        assert "lost" in {each["kind"] for each in entries(folder)}
        with pytest.raises(AuditError, match="line 4: signature: entry 4"):
            verify(folder)

    def test_garbage_at_the_end(self, folder: Path, database: Database) -> None:
        with (folder / notary.LOG).open("ab") as file:
            file.write(b"{}\n")
        with pytest.raises(AuditError, match="line 5: garbage"):
            verify(folder)
        happen(database, 4)
        Notary(folder, database).write()
        with pytest.raises(AuditError, match="line 5: garbage"):
            verify(folder)
        assert [each.get("kind") for each in entries(folder)][-2:] == ["planned", "lost"]

    def test_another_key(self, folder: Path, database: Database, tmp_path_factory: pytest.TempPathFactory) -> None:
        other = tmp_path_factory.mktemp("other")
        theirs = notary.found(other)
        shutil.copy(other / notary.KEY, folder / notary.KEY)
        happen(database, 4)
        with pytest.raises(StoreError, match=r"audit\.key is not the key of .*audit\.pem"):
            Notary(folder, database).write()
        with pytest.raises(AuditError, match="line 1: wrong key"):
            verify(folder, key=theirs)
        (folder / notary.KEY).unlink()
        with pytest.raises(StoreError, match="is missing; put it back"):
            Notary(folder, database).write()
        (folder / notary.KEY).write_bytes(b"no key")
        with pytest.raises(StoreError, match="is no private key"):
            Notary(folder, database).write()

    def test_a_database_of_before_is_noted_and_the_chain_stays_whole(self, folder: Path, database: Database) -> None:
        with sqlite3.connect(folder / "copy.db") as copy:
            database.connection.backup(copy)
        happen(database, 4, 5)
        Notary(folder, database).write()
        with sqlite3.connect(folder / "copy.db") as copy:
            copy.backup(database.connection)
        verify(folder)  # more than the database knows of is no fault
        happen(database, 4)
        Notary(folder, database).write()
        assert rounds(folder) == [1, 2, 3, 4, 5, 4]
        assert "entry 8: the database was put back to an older state" in verify(folder)
        assert [each["kind"] for each in entries(folder)].count("restored") == 1

    def test_a_copy_is_verified_by_itself(self, folder: Path, database: Database, tmp_path: Path) -> None:
        away = tmp_path / "away"
        away.mkdir()
        copy = Path(shutil.copy(folder / notary.LOG, away / "copy.jsonl"))
        key, head = notary.found(folder), outbox.head(database)[1]
        told = examiner.verify(Path("nowhere/federation.toml"), copy, key, head)
        assert f"head: {head}" in told
        assert "compare" not in told
        spoken = " ".join(key[start : start + 4] for start in range(0, 32, 4))
        assert examiner.verify(Path("nowhere/federation.toml"), copy, spoken.upper(), None)
        assert "compare it" in examiner.verify(Path("nowhere/federation.toml"), copy, None, None)
        with pytest.raises(ConfigError, match="--expect"):
            examiner.verify(Path("federation.toml"), copy, None, "12")


def test_verify_tells_what_waits_and_show_what_is_there(folder: Path) -> None:
    database = opened(folder)
    Roster(database).invite("clinic-a", b"pem", "print", 2e9)
    Operators(database).issue("anna", 1)
    Notary(folder, database).write()
    happen(database, 1)
    assert "1 more are on record" in verify(folder)
    lines = list(examiner.show(folder / "federation.toml", None, None, as_json=False))
    assert [line.split()[2] for line in lines] == ["founded", "invited", "token"]
    assert "name=clinic-a" in lines[1]
    assert f"by={outbox.console()}" in lines[1]
    shown = examiner.show(folder / "federation.toml", None, "2000-01-01", as_json=True)
    assert "\n".join(shown) + "\n" == (folder / notary.LOG).read_text()
    assert list(examiner.show(folder / "federation.toml", None, "2999-01-01T00:00:00+02:00", as_json=True)) == []
    assert len(list(examiner.show(folder / "federation.toml", None, "1h", as_json=True))) == 3
    with pytest.raises(ConfigError, match="--since"):
        list(examiner.show(folder / "federation.toml", None, "yesterday", as_json=True))


def test_what_people_write_cannot_leave_its_line(folder: Path) -> None:
    database = opened(folder)
    with database.transaction() as change:
        outbox.note(change, "evicted", silo="clinic-a", reason="\x1b[2J\n  7  forged\u202e" + "x" * 5000)
    Notary(folder, database).write()
    shown = list(examiner.show(folder / "federation.toml", None, None, as_json=False))
    assert len(shown) == 2
    assert shown[1].isprintable()
    assert len(entries(folder)[1]["facts"]["reason"]) == outbox.MAX_TEXT


def test_console_is_no_operators_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="console"):
        Operators(opened(folder)).issue("console", 1)


def test_a_command_whose_log_cannot_be_written_is_carried_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / notary.KEY).rename(folder / "kept")
    with notary.attended(folder) as database:
        Operators(database).issue("anna", 1)
    assert "the audit log cannot be written" in caplog.text
    (folder / "kept").rename(folder / notary.KEY)
    database = opened(folder)
    assert [each.name for each in Operators(database).all()] == ["anna"]
    Notary(folder, database).write()
    assert [each["kind"] for each in entries(folder)] == ["founded", "token"]
