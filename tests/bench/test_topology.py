"""bench/topology.py: the closed formulas, the table and the chart."""

from __future__ import annotations

from pathlib import Path

import pytest

from feddiff.bench import topology
from feddiff.bench.topology import Row, chart, seconds, table
from feddiff.core.errors import ConfigError

D = U = 12.5e6  # 2 s together at 100 Mbit/s
ROWS = [
    Row("star", 8, 1000, "fp32", 100e6, 17.0, 200e6, U, D),
    Row("peer", 8, 1000, "fp32", 100e6, 3.4, 0.4e6, U, D),
    Row("star", 4, 1000, "fp32", 100e6, 9.0, 100e6, U, D),
]


@pytest.mark.parametrize(("name", "silos", "took"), [("star", 8, 16.0), ("peer", 8, 1.75), ("peer", 2, 1.0)])
def test_the_lines_alone_take_what_the_formula_says(name: str, silos: int, took: float) -> None:
    assert seconds(name, silos, U, D, 100e6) == pytest.approx(took)


def test_peers_are_faster_by_the_square_of_the_silos() -> None:
    for silos in (2, 8, 64):
        gained = seconds("star", silos, U, D, 1e6) / seconds("peer", silos, U, D, 1e6)
        assert gained == pytest.approx(silos**2 / (silos - 1))


def test_the_table_compares_runs_of_as_many_silos() -> None:
    lines = table(ROWS).splitlines()
    assert len(lines) == 3
    assert lines[-1] == "| 8 | 17.0 | 3.4 | 5.0 | 16.0 and 1.8 | 200.0 | 0.40 | 0.20 % |"


def test_the_chart_is_the_same_file_again(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        chart(ROWS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_one_round_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert topology.main(["--rounds", "1"]) == ConfigError.exit_code
    assert "at least 2" in capsys.readouterr().err
