"""What a silo keeps of the federator's audit log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from feddiff.core.errors import ProtocolError
from feddiff.silo import heads
from feddiff.silo.heads import Heads


def test_each_head_is_kept_once(tmp_path: Path) -> None:
    kept, one, two = Heads(tmp_path), f"1 {'a' * 64}", f"12 {'b' * 64}"
    for head in (one, one, "", two, one):
        kept.keep(head)
    lines = (tmp_path / heads.NAME).read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [one, two, one]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)


@pytest.mark.parametrize(
    "head", ["x", "0 " + "a" * 64, "1 " + "a" * 63, "1 " + "a" * 64 + "\n", "1" * 13 + " " + "a" * 64]
)
def test_nothing_else_is_kept(tmp_path: Path, head: str) -> None:
    with pytest.raises(ProtocolError, match="not the head of an audit log"):
        Heads(tmp_path).keep(head)
    assert not (tmp_path / heads.NAME).exists()


def test_the_file_has_a_bound_and_a_disk_that_fails_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heads, "MAX_BYTES", 200)
    kept = Heads(tmp_path)
    for number in range(1, 20):
        kept.keep(f"{number} {'a' * 64}")
    assert 200 <= (tmp_path / heads.NAME).stat().st_size < 300
    (tmp_path / heads.NAME).unlink()
    (tmp_path / heads.NAME).mkdir()
    kept.keep(f"20 {'a' * 64}")
    assert "Is a directory" in caplog.text
