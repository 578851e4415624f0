"""Log lines for a person, the journal and a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEAKS = """
import logging, sys
from feddiff.core import console
from feddiff.core.errors import ConfigError
console.log_lines("verbose" in sys.argv, sys.argv[1])
log = logging.getLogger("feddiff.silo")
def run():
    console.tell("round 1")
    log.debug("d"); log.info("i ü"); log.warning("w\\nsecond line")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("e")
    raise ConfigError("--data is missing")
sys.exit(console.run("feddiff-silo", run))
"""


def said(tmp_path: Path, *arguments: str, journal: bool | None = None) -> list[str]:
    """The lines on stderr; ``journal``: whether $JOURNAL_STREAM names stderr, or another file, or is not there."""
    path = tmp_path / "stderr"
    with path.open("w") as stderr:
        there = os.fstat(stderr.fileno())
        stream = {
            None: {},
            True: {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"},
            False: {"JOURNAL_STREAM": "8:1"},
        }
        environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
        command = [sys.executable, "-c", SPEAKS, *arguments]
        done = subprocess.run(command, stderr=stderr, env={**environment, **stream[journal]}, check=False)
    assert done.returncode == 78
    return path.read_text().splitlines()


def test_the_journal_gets_priorities_and_no_times(tmp_path: Path) -> None:
    lines = said(tmp_path, "text", "verbose", journal=True)
    assert lines[:5] == ["<7>d", "<6>i ü", "<4>w", "<4>second line", "<3>e"]
    assert lines[5] == "<3>Traceback (most recent call last):"
    assert all(line.startswith("<3>") for line in lines[5:])
    assert lines[-1] == "<3>feddiff-silo: The configuration is wrong: --data is missing"


@pytest.mark.parametrize("journal", [None, False])
def test_a_person_gets_times(tmp_path: Path, journal: bool | None) -> None:
    lines = said(tmp_path, "text", journal=journal)
    assert [line.partition(" ")[2] for line in lines[:2]] == ["I i ü", "W w"]
    assert len(lines[0].partition(" ")[0].split(":")) == 3
    assert lines[-1] == "feddiff-silo: The configuration is wrong: --data is missing"


def test_a_machine_gets_one_object_a_line(tmp_path: Path) -> None:
    told = [json.loads(line) for line in said(tmp_path, "json", journal=True)]
    assert [(each["level"], each["message"]) for each in told] == [
        ("info", "round 1"),
        ("info", "i ü"),
        ("warning", "w\nsecond line"),
        ("error", "e"),
        ("error", "feddiff-silo: The configuration is wrong: --data is missing"),
    ]
    assert {each["logger"] for each in told} == {"feddiff.silo", "feddiff"}
    assert all(each["time"].endswith("+00:00") for each in told)
    assert "ZeroDivisionError" in told[3]["traceback"]
