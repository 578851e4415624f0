"""core/console.py: whatever ends a command, it is one line and the right exit code."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from feddiff.core import console
from feddiff.core import errors as kinds
from feddiff.core.errors import FedDiffError

ERRORS = [kind for kind in vars(kinds).values() if isinstance(kind, type) and issubclass(kind, FedDiffError)]


@pytest.fixture(autouse=True)
def _without_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDDIFF_DEBUG", raising=False)


def ended(error: BaseException) -> int:
    def command() -> int:
        raise error

    return console.run("feddiff-silo", command)


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_command_returns_is_its_exit_code(code: int) -> None:
    assert console.run("feddiff-silo", lambda: code) == code


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_feddiff_is_its_sentence_and_its_code(
    kind: type[FedDiffError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(kind("the facts,\n  in two lines")) == kind.exit_code
    told = capsys.readouterr()
    sentence = (kind.__doc__ or "").splitlines()[0].rstrip(".")
    assert told.err == f"feddiff-silo: {sentence}: the facts, in two lines\n"
    assert told.out == ""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/state/held"), "No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (sqlite3.OperationalError("database or\ndisk is full"), "database or disk is full"),
    ],
)
def test_a_machine_that_refuses_is_one_line_too(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == 74
    told = capsys.readouterr().err
    assert told.startswith("feddiff-silo: ")
    assert told.count("\n") == 1
    assert says in told


def test_what_nobody_expected_is_a_defect_and_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ValueError("surprise")) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "ValueError: surprise" in told
    assert "please report" in told.splitlines()[-1]


def test_ctrl_c_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [kinds.StoreError("facts"), OSError(errno.ENOSPC, "full"), sqlite3.Error("full")])
def test_on_request_the_error_itself(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDDIFF_DEBUG", "1")
    with pytest.raises(type(error)):
        ended(error)


@pytest.mark.parametrize(("asked", "found"), [("", 3), ("2", 2), ("64", 3), ("0", 1), ("2(x3)", 3)])
def test_cpus_are_those_of_the_process_and_of_its_task(monkeypatch: pytest.MonkeyPatch, asked: str, found: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 9})
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert console.cpus() == found
