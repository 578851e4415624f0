"""Findings as a terminal, a program and a script see them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core import errors, finding
from feddiff.core.finding import GRAVITY, Finding, exit_code, ok, problem, refusal, warning


def bad(kind: type[errors.FedDiffError]) -> Finding:
    return problem(kind, "x", "is wrong", "put it right")


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ([], 0),
        ([errors.ConfigError], 78),
        ([errors.CertificateExpired], 77),
        ([errors.FederatorUnavailable], 69),
        ([errors.FederatorUnavailable, errors.DataError], 66),
        ([errors.DataError, errors.StoreError, errors.FederatorUnavailable], 74),
        ([errors.Revoked, errors.ProtocolError, errors.ConfigError], 78),
        ([errors.FedDiffError], 70),
    ],
)
def test_the_gravest_problem_decides_the_exit_code(kinds: list[type[errors.FedDiffError]], code: int) -> None:
    others = [ok("a", "is well"), warning("b", "is odd", "look at it")]
    for order in (kinds, kinds[::-1]):
        assert exit_code([*others, *map(bad, order)]) == code


def test_every_class_of_error_has_its_gravity() -> None:
    """Only what no doctor finds is left out: a defect, a closed round, an update, a changed audit log."""
    direct = set(errors.FedDiffError.__subclasses__())
    assert direct - set(GRAVITY) == {errors.RoundError, errors.UpdateRejected, errors.AuditError}


def test_lines_say_the_mark_the_subject_and_below_what_to_do() -> None:
    words = "the disk holds less than the model wants, which will be noticed in the middle of the night and not before"
    lines = finding.text(problem(errors.StoreError, "disk", words, "make room"), width=60).splitlines()
    assert lines[0].startswith("PROBLEM  disk            the disk holds")
    assert lines[-1] == " " * 25 + "-> make room"
    assert " ".join(" ".join(lines[:-1]).split()) == f"PROBLEM disk {words}"
    assert max(map(len, lines)) <= 60
    assert finding.text(ok("disk", "there is room")) == "ok       disk            there is room"


def test_the_last_line_counts() -> None:
    assert finding.summary([ok("a", "x"), warning("b", "x", "y"), bad(errors.DataError), bad(errors.DataError)]) == (
        "2 problems, 1 warning, 1 ok"
    )
    assert finding.summary([ok("a", "x")]) == "no problem, 1 ok"


@given(st.text(max_size=200))
def test_what_the_other_end_says_cannot_steer_a_terminal(said: str) -> None:
    shown = Finding("problem", "TLS", f"it says {said}", said)
    assert (shown.sentence + shown.advice).isprintable()


def test_json_holds_every_finding_and_the_code() -> None:
    found = [ok("line", "fast", up_mbit_s=2.5), refusal("images", errors.DataError("none"), "name a folder")]
    table = json.loads(finding.to_json(found, "feddiff 0"))
    assert table["software"] == "feddiff 0"
    assert table["exit_code"] == 66
    first, second = table["findings"]
    assert (first["level"], first["error"], first["numbers"]) == ("ok", None, {"up_mbit_s": 2.5})
    assert second["sentence"] == "The images cannot be used: none"
    assert (second["level"], second["error"], second["advice"]) == ("problem", "DataError", "name a folder")
