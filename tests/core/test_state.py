"""Which state folders this feddiff takes: today's, with and without a version; none of tomorrow, none of before."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from feddiff.core import state
from feddiff.core.config import load
from feddiff.core.errors import NewerState, StoreError
from feddiff.federator import site
from feddiff.federator.cli import main as federator
from feddiff.federator.daemon import Federator
from feddiff.silo.cli import main as silo
from feddiff.silo.local import Local

CONFIG, STATE = 78, 74


def write(folder: Path, version: object, software: object = "feddiff 9.9.0") -> None:
    folder.mkdir(exist_ok=True)
    (folder / state.FILE).write_text(json.dumps({"state": version, "software": software}))


def found(folder: Path) -> object:
    return json.loads((folder / state.FILE).read_text())


NOW = {"state": state.VERSION, "software": state.SOFTWARE}


def test_a_folder_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    state.check(tmp_path)
    assert not list(tmp_path.iterdir())  # looking changes nothing
    state.mark(tmp_path)
    assert found(tmp_path) == NOW
    state.check(tmp_path)


def test_an_older_software_of_the_same_state_is_noted(tmp_path: Path) -> None:
    write(tmp_path, state.VERSION, "feddiff 9.9.0")
    state.check(tmp_path)
    state.mark(tmp_path)
    assert found(tmp_path) == NOW


def test_tomorrows_state_is_refused_and_names_who_wrote_it(tmp_path: Path) -> None:
    write(tmp_path, state.VERSION + 1)
    for look in (state.check, state.mark):
        with pytest.raises(NewerState, match=r"was written by feddiff 9\.9\.0 \(state 2\)"):
            look(tmp_path)
    assert found(tmp_path) == {"state": state.VERSION + 1, "software": "feddiff 9.9.0"}


def test_a_state_from_before_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, state.OLDEST - 1, "feddiff 0.0.1")
    with pytest.raises(StoreError, match=r"was written by feddiff 0\.0\.1.*let a version between the two") as caught:
        state.check(tmp_path)
    assert not isinstance(caught.value, NewerState)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "x", "software": "y"}', '{"state": 1}', "\xff"])
def test_a_damaged_version_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"version\.json cannot be read"):
        state.check(tmp_path)


def test_another_users_folder_is_no_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match="is another user's; run this as the daemon's user") as error:
        state.check(tmp_path)
    assert "copy" not in str(error.value)


class TestSilo:
    """A folder by hand, as a silo of before there were versions left it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "silo").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "silo" / "lock").touch()
        (tmp_path / "silo" / "identity.json").write_text('{"name": "hospital-a", "invitation": ""}')
        return tmp_path / "silo"

    def test_takes_up_what_it_left(self, folder: Path) -> None:
        Local(folder).close()
        assert found(folder) == NOW

    def test_refuses_tomorrows_before_it_touches_it(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(folder, state.VERSION + 1)
        before = sorted(path.name for path in folder.iterdir())
        data = str(folder.parent / "data")
        for command in (
            ["--data", data, "--federator", "localhost:1", "--state", str(folder)],
            ["export", "--state", str(folder), str(folder.parent / "out")],
            ["personalise", "--state", str(folder), "--data", data, "--out", str(folder.parent / "out")],
        ):
            assert silo(command) == CONFIG
            (line,) = capsys.readouterr().err.splitlines()
            assert "written by feddiff 9.9.0 (state 2)" in line
        assert sorted(path.name for path in folder.iterdir()) == before


class TestFederator:
    @pytest.fixture
    def rules(self, tmp_path: Path) -> Path:
        """As an earlier feddiff left it: a database, and no version beside it."""
        site.init(tmp_path / "fed", "trial", "digits-16", "localhost:1", [])
        rules = tmp_path / "fed" / "federation.toml"
        site.invite(rules, "hospital-a", "1d")
        return rules

    def test_looks_without_a_mark(self, rules: Path) -> None:
        site.invite(rules, "hospital-b", "1d")
        assert not (rules.parent / state.FILE).exists()  # only the daemon, which holds the lock, writes it

    def test_refuses_tomorrows(self, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(rules.parent, state.VERSION + 1)
        for command in (["invite", "hospital-c"], ["operator", "anna"]):
            assert federator([*command, "--config", str(rules)]) == CONFIG
            (line,) = capsys.readouterr().err.splitlines()
            assert "written by feddiff 9.9.0 (state 2)" in line
        with pytest.raises(NewerState):
            Federator(rules.parent, load(rules), "127.0.0.1:1")

    def test_refuses_a_database_of_tomorrow(self, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with sqlite3.connect(rules.parent / "federation.db") as database:
            database.execute(f"PRAGMA user_version = {state.VERSION + 1}")
        assert federator(["invite", "hospital-c", "--config", str(rules)]) == CONFIG
        assert f"has state {state.VERSION + 1}" in capsys.readouterr().err
