from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core import state
from feddiff.core.errors import ConfigError, InvitationSpent, NewerState, Revoked, StoreError, UnknownSilo
from feddiff.core.segments import cut
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal
from feddiff.federator.ledger import OVERHEAD, Entry, Ledger
from feddiff.federator.planner import plan_round
from feddiff.federator.roster import Roster

LAYOUT = cut([("conv_in.weight", (4,)), ("up_blocks.0.a", (4,))])
PLAN = plan_round("full", 1, ["clinic-a", "clinic-b"], LAYOUT, seed=0)
NOW = 1_000_000.0


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "federation.db")
    yield opened
    opened.close()


@pytest.fixture
def roster(database: Database) -> Roster:
    return Roster(database)


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def in_another_process(path: Path, query: str) -> str:
    code = f"import sqlite3; print(sqlite3.connect({str(path)!r}, timeout=5).execute({query!r}).fetchall())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# -- database


def test_an_error_undoes_the_whole_transaction_nested_ones_too(database: Database) -> None:
    database.define("CREATE TABLE t (x)")

    def dies() -> None:
        with database.transaction() as change:
            change.execute("INSERT INTO t VALUES (1)")
            with database.transaction() as inner:
                inner.execute("INSERT INTO t VALUES (2)")
            raise Killed

    with pytest.raises(Killed):
        dies()
    assert database.rows("SELECT * FROM t") == []
    with database.transaction() as change:
        change.execute("INSERT INTO t VALUES (3)")
        with database.transaction() as inner:
            inner.execute("INSERT INTO t VALUES (4)")
    assert database.rows("SELECT x FROM t ORDER BY x") == [(3,), (4,)]


def test_after_a_full_disk_the_next_transaction_is_one_again(tmp_path: Path, database: Database) -> None:
    database.define("CREATE TABLE t (x)")
    pages = database.rows("PRAGMA page_count")[0][0]
    database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(sqlite3.OperationalError, match="full"), database.transaction() as change:
        change.execute("INSERT INTO t VALUES (randomblob(100000))")
    database.connection.execute("PRAGMA max_page_count = 100000")
    with database.transaction() as change:
        change.execute("INSERT INTO t VALUES (1)")
    assert in_another_process(tmp_path / "federation.db", "SELECT * FROM t") == "[(1,)]"


def test_threads_take_turns(database: Database) -> None:
    database.define("CREATE TABLE t (x); INSERT INTO t VALUES (0)")

    def count() -> None:
        for _ in range(20):
            with database.transaction() as change:
                (value,) = change.execute("SELECT x FROM t").fetchone()
                change.execute("UPDATE t SET x = ?", (value + 1,))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.rows("SELECT x FROM t") == [(80,)]


def test_another_process_sees_what_is_committed_and_nothing_else(tmp_path: Path, database: Database) -> None:
    database.define("CREATE TABLE t (x)")
    with database.transaction() as change:
        change.execute("INSERT INTO t VALUES (1)")
    with database.transaction() as change:
        change.execute("INSERT INTO t VALUES (2)")
        assert in_another_process(tmp_path / "federation.db", "SELECT * FROM t") == "[(1,)]"
    assert in_another_process(tmp_path / "federation.db", "SELECT * FROM t") == "[(1,), (2,)]"


def test_what_was_open_when_the_process_died_never_was(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from feddiff.federator.database import Database\n"
        "database = Database(Path(sys.argv[1])); database.define('CREATE TABLE t (x)')\n"
        "with database.transaction() as change: change.execute('INSERT INTO t VALUES (1)')\n"
        "with database.transaction() as change:\n"
        "    change.execute('INSERT INTO t VALUES (2)'); os._exit(9)\n"
    )
    path = tmp_path / "federation.db"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    reopened = Database(path)
    assert reopened.rows("SELECT * FROM t") == [(1,)]
    reopened.close()


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "federation.db"
    Database(path).close()
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {state.VERSION + 1}")
    with pytest.raises(NewerState, match=f"state {state.VERSION + 1}"):
        Database(path)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "federation.db"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreError, match=r"federation\.db"):
        Database(path)
    with pytest.raises(StoreError):
        Database(tmp_path / "missing" / "federation.db")


# -- roster


def test_an_invitation_is_good_once(roster: Roster) -> None:
    roster.invite("clinic-a", b"pem", "print-1", NOW + 60)
    roster.enroll("clinic-a", "print-1", "key-1", 11, NOW)
    assert roster.check("clinic-a", 11).name == "clinic-a"
    with pytest.raises(InvitationSpent, match="already"):
        roster.enroll("clinic-a", "print-1", "key-2", 12, NOW)
    assert roster.check("clinic-a", 11).serial == "11"


def test_the_same_key_may_ask_again_because_the_answer_may_be_lost(roster: Roster) -> None:
    roster.invite("clinic-a", b"pem", "print-1", NOW + 60)
    roster.enroll("clinic-a", "print-1", "key-1", 11, NOW)
    roster.enroll("clinic-a", "print-1", "key-1", 12, NOW + 30)
    assert roster.check("clinic-a", 12).name == "clinic-a"
    with pytest.raises(Revoked, match="anew"):
        roster.check("clinic-a", 11)


@pytest.mark.parametrize(
    ("name", "fingerprint", "now"),
    [("clinic-b", "print-1", NOW), ("clinic-a", "print-2", NOW), ("clinic-a", "print-1", NOW + 60)],
    ids=["another name", "another invitation", "expired"],
)
def test_invitations_that_do_not_hold(roster: Roster, name: str, fingerprint: str, now: float) -> None:
    roster.invite("clinic-a", b"pem", "print-1", NOW + 60)
    with pytest.raises(InvitationSpent):
        roster.enroll(name, fingerprint, "key", 11, now)
    assert roster.silos() == []


def test_a_new_invitation_replaces_the_old_one(roster: Roster) -> None:
    roster.invite("clinic-a", b"old", "print-1", NOW + 60)
    roster.invite("clinic-b", b"other", "print-9", NOW + 60)
    roster.invite("clinic-a", b"new", "print-2", NOW + 60)
    assert roster.invitation_certificates() == [b"new", b"other"]
    with pytest.raises(InvitationSpent):
        roster.enroll("clinic-a", "print-1", "key", 11, NOW)
    roster.enroll("clinic-a", "print-2", "key", 11, NOW)


def test_who_is_not_known(roster: Roster) -> None:
    with pytest.raises(UnknownSilo, match="clinic-a"):
        roster.check("clinic-a", 11)
    with pytest.raises(ConfigError, match="enrolled: none"):
        roster.evict("clinic-a", "x")


def test_eviction_lasts_until_the_silo_is_invited_and_enrolled_anew(tmp_path: Path, roster: Roster) -> None:
    roster.invite("clinic-a", b"pem", "print-1", NOW + 60)
    roster.enroll("clinic-a", "print-1", "key-1", 11, NOW)
    roster.introduce("clinic-a", 500, {"sick": 200, "well": 300}, "cpu", "feddiff 1")
    roster.evict("clinic-a", "sends rubbish")
    with pytest.raises(Revoked, match="sends rubbish"):
        roster.check("clinic-a", 11)
    again = Database(tmp_path / "federation.db")
    with pytest.raises(Revoked):
        Roster(again).check("clinic-a", 11)
    again.close()
    roster.invite("clinic-a", b"pem", "print-2", NOW + 60)
    with pytest.raises(Revoked):
        roster.check("clinic-a", 11)
    roster.enroll("clinic-a", "print-2", "key-2", 12, NOW)
    silo = roster.check("clinic-a", 12)
    assert (silo.evicted, silo.samples, silo.labels) == (None, 500, {"sick": 200, "well": 300})
    with pytest.raises(Revoked):
        roster.check("clinic-a", 11)


def test_serial_numbers_may_be_as_long_as_certificates_allow(roster: Roster) -> None:
    serial = (1 << 159) - 1
    roster.invite("clinic-a", b"pem", "print-1", NOW + 60)
    roster.enroll("clinic-a", "print-1", "key-1", serial, NOW)
    assert roster.check("clinic-a", serial).serial == str(serial)
    with pytest.raises(Revoked):
        roster.check("clinic-a", serial - 1)


# -- journal


def test_a_round_is_remembered_as_it_was_planned(tmp_path: Path, journal: Journal) -> None:
    assert journal.last() is None
    journal.open(PLAN, {"clinic-a": 5, "clinic-b": 7}, NOW, "2 silos are here")
    again = Database(tmp_path / "federation.db")
    last = Journal(again).last()
    again.close()
    assert last is not None
    assert (last.round, last.plan, last.weights) == (1, PLAN, {"clinic-a": 5, "clinic-b": 7})
    assert (last.opened_at, last.closed_at, last.silos, last.reason) == (NOW, None, (), "2 silos are here")


def test_a_round_opens_once(journal: Journal) -> None:
    journal.open(PLAN, {}, NOW, "")
    with pytest.raises(sqlite3.IntegrityError):
        journal.open(PLAN, {}, NOW, "")
    assert len(journal.rounds()) == 1


def test_publishing_closes_the_round(journal: Journal) -> None:
    journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), NOW)
    journal.open(PLAN, {}, NOW, "")
    journal.publish({"decoder.0": 1}, 1, ("clinic-a",), NOW + 9)
    last = journal.last()
    assert last is not None
    assert (last.closed_at, last.silos) == (NOW + 9, ("clinic-a",))
    assert journal.current() == {"encoder.in": 0, "decoder.0": 1}


def test_versions_and_the_round_change_together_or_not_at_all(journal: Journal, database: Database) -> None:
    journal.publish({"decoder.0": 0}, None, (), NOW)
    journal.open(PLAN, {}, NOW, "")

    def dies_in_between() -> None:
        database.connection.create_function("killed", 0, lambda: 1 / 0)
        database.define("CREATE TEMP TRIGGER t BEFORE UPDATE ON rounds BEGIN SELECT killed(); END")
        journal.publish({"decoder.0": 1}, 1, ("clinic-a",), NOW + 9)

    with pytest.raises(sqlite3.OperationalError):
        dies_in_between()
    last = journal.last()
    assert last is not None
    assert last.closed_at is None
    assert journal.current() == {"decoder.0": 0}
    database.define("DROP TRIGGER t")
    journal.publish({"decoder.0": 1}, 1, ("clinic-a",), NOW + 9)
    assert journal.current() == {"decoder.0": 1}


def test_an_update_is_noted_once(journal: Journal) -> None:
    assert journal.commit_update(1, "clinic-a", "decoder.0", b"1", NOW)
    assert not journal.commit_update(1, "clinic-a", "decoder.0", b"1", NOW)
    assert journal.commit_update(1, "clinic-a", "encoder.in", b"2", NOW)
    assert journal.commit_update(2, "clinic-a", "decoder.0", b"3", NOW)
    assert journal.updates(1) == {"clinic-a": {"decoder.0", "encoder.in"}}
    assert journal.updates(3) == {}


def test_rejections_facts_and_metrics_hold_the_newest(journal: Journal) -> None:
    journal.reject(1, "clinic-a", "NaN")
    journal.reject(1, "clinic-a", "infinity")
    assert journal.rejections(1) == {"clinic-a": "infinity"}
    assert journal.rejections(2) == {}
    assert journal.fact("paused") is None
    journal.note("paused", "yes")
    journal.note("paused", "no")
    assert journal.fact("paused") == "no"
    journal.measure(1, "clinic-a", {"loss": 0.5, "images": 10})
    journal.measure(1, "clinic-a", {"loss": 0.25})
    journal.measure(2, "clinic-b", {"loss": 1.0})
    assert journal.metrics(1) == {1: {"clinic-a": {"loss": 0.25, "images": 10.0}}}
    assert journal.metrics() == {**journal.metrics(1), 2: {"clinic-b": {"loss": 1.0}}}


# -- ledger

entries = st.builds(
    Entry,
    st.integers(0, 2),
    st.sampled_from(["clinic-a", "clinic-b"]),
    st.sampled_from([OVERHEAD, "decoder.0"]),
    st.sampled_from(["up", "down"]),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(-1000, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, 1000).map(float),
    st.booleans(),
)


@given(st.lists(st.lists(entries, max_size=4), max_size=5))
@settings(max_examples=30, deadline=None)
def test_rows_add_up(additions: list[list[Entry]]) -> None:
    database = Database(Path(":memory:"))
    ledger = Ledger(database)
    for some in additions:
        ledger.add(*some)
    given_ = [entry for some in additions for entry in some]
    rows = list(ledger.entries())
    keys = [(row.round, row.silo, row.segment, row.direction) for row in rows]
    assert keys == sorted({(each.round, each.silo, each.segment, each.direction) for each in given_})
    for key, row in zip(keys, rows, strict=True):
        same = [each for each in given_ if (each.round, each.silo, each.segment, each.direction) == key]
        for field in ("parameters", "raw", "encoded", "wire", "retransmitted", "seconds"):
            assert getattr(row, field) == sum(getattr(each, field) for each in same)
        assert row.estimated is any(each.estimated for each in same)
    for number in (0, 1, 2):
        assert list(ledger.entries(number)) == [row for row in rows if row.round == number]
    for direction in ("up", "down"):
        assert ledger.wire(direction) == sum(each.wire for each in given_ if each.direction == direction)
        assert ledger.wire(direction, 1) == sum(
            each.wire for each in given_ if each.direction == direction and each.round == 1
        )
    database.close()


def test_a_delivery_counts_once_for_each_silo(ledger: Ledger) -> None:
    entry = Entry(1, "clinic-a", "decoder.0", "down", parameters=10, raw=40, encoded=20)
    assert not ledger.delivered("clinic-a", "down.decoder.0.0-1")
    assert ledger.deliver("down.decoder.0.0-1", entry)
    assert not ledger.deliver("down.decoder.0.0-1", entry)
    assert ledger.delivered("clinic-a", "down.decoder.0.0-1")
    assert not ledger.delivered("clinic-b", "down.decoder.0.0-1")
    assert ledger.deliver("down.decoder.0.1-2", entry)
    assert [(row.parameters, row.raw, row.encoded) for row in ledger.entries()] == [(20, 80, 40)]


def test_a_delivery_and_its_cost_are_noted_together(ledger: Ledger, database: Database) -> None:
    entry = Entry(1, "clinic-a", "decoder.0", "down", parameters=10)

    def dies() -> None:
        with database.transaction():
            ledger.deliver("down.decoder.0.0-1", entry)
            raise Killed

    with pytest.raises(Killed):
        dies()
    assert not ledger.delivered("clinic-a", "down.decoder.0.0-1")
    assert list(ledger.entries()) == []


def test_the_command_line_writes_while_the_daemon_has_the_database_open(tmp_path: Path, roster: Roster) -> None:
    other = Database(tmp_path / "federation.db")
    Roster(other).invite("clinic-a", b"pem", "print-1", NOW + 60)
    roster.enroll("clinic-a", "print-1", "key-1", 11, NOW)
    Roster(other).evict("clinic-a", "x")
    other.close()
    with pytest.raises(Revoked):
        roster.check("clinic-a", 11)
