"""bench/compare.py: what two runs have in common, by how much they differ, and when that says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feddiff.bench import cli
from feddiff.bench.compare import Comparison, compare
from feddiff.core.errors import ConfigError


@pytest.fixture
def runs(plant: Any, planted: Any) -> Any:
    """Makes two runs of the same cells; ``change`` is done to each result of the second."""

    def made(change: Any = lambda one: None, cells: Any = (("full", "int8"), ("udec", "int8"))) -> list[Path]:
        results = [[planted.result(plan, codec, seed) for plan, codec in cells for seed in (0, 1)] for _ in range(2)]
        for one in results[1]:
            change(one)
        return [plant(each, name=name) for each, name in zip(results, ("old", "new"), strict=True)]

    return made


def better(one: dict[str, Any]) -> None:
    """Half the bytes; FID 3 less with one seed and 1 less with the other."""
    one["totals"]["down"] //= 2
    one["totals"]["up"] //= 2
    one["quality"]["metrics"][0]["value"] -= 3 - 2 * one["settings"]["seed"]
    one["quality"]["validation_loss"]["mean"] += 0.01


def test_differences_are_of_the_same_setting_and_seed(runs: Any) -> None:
    found = compare(runs(better))
    assert [each.setting for each in found.differences] == ["full int8 K=4 iid E=2", "udec int8 K=4 iid E=2"]
    for each in found.differences:
        assert (each.run, each.seeds, each.flags) == ("new", 2, ())
        assert each.ratio == pytest.approx(0.5, rel=1e-3)
        assert each.fid_more is not None
        assert (each.fid_more.mean, each.fid_more.deviation) == pytest.approx((-2.0, 2**0.5))
        assert each.loss_more is not None
        assert each.loss_more.mean == pytest.approx(0.01)
        assert each.loss_more.deviation == pytest.approx(0, abs=1e-9)


def test_a_run_and_itself_differ_in_nothing(runs: Any) -> None:
    for each in compare(runs()).differences:
        assert (each.ratio, each.flags) == (1.0, ())
        assert each.fid_more is not None
        assert (each.fid_more.low, each.fid_more.high) == (0.0, 0.0)


def test_a_setting_that_older_runs_do_not_know_is_not_set(runs: Any) -> None:
    found = compare(runs(lambda one: one["settings"].pop("sampled")))
    assert len(found.differences) == 2
    assert found.missing == ()


def change(*path: str | int, to: Any) -> Any:
    def changed(one: dict[str, Any]) -> None:
        part: Any = one
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to

    return changed


@pytest.mark.parametrize(
    ("other", "words", "fid", "loss"),
    [
        (change("quality", "metrics", 0, "digest", to="beef" * 16), "extractor convnet c0ffee00 there", False, True),
        (change("quality", "metrics", 0, "digest", to=""), "of unknown digest", False, True),
        (change("quality", "metrics", 0, "samples", to=50), "1,000 samples there, 50 here", False, True),
        (change("quality", "metrics", 0, "reference", to=9), "359 reference images there, 9 here", False, True),
        (change("quality", "steps", to=9), "9 steps here: FIDs cannot be compared", False, True),
        (change("data", "digest", to="other"), "other images: neither FIDs nor losses", False, False),
        (change("quality", "validation_loss", "images", to=3), "", True, False),
        (change("quality", "metrics", to=[]), "FID was measured in one of them only", False, True),
        (change("quality", "of", to="silos' own"), "the numbers are of", True, True),
        (change("software", "torch", to="9.9"), "software: torch 2.13.0 there, 9.9 here", True, True),
        (change("rules", "training", "batch_size", to=9), "rules: training.batch_size 32 there, 9 here", True, True),
    ],
)
def test_what_cannot_be_compared_is_not_and_is_told(other: Any, words: str, fid: bool, loss: bool, runs: Any) -> None:
    found = compare(runs(other, cells=(("full", "int8"),)))
    (one,) = found.differences
    assert any(words in flag for flag in one.flags) or not words
    assert ((one.fid_more is not None), (one.loss_more is not None)) == (fid, loss)
    assert words in found.text()


def test_settings_that_only_one_has_are_told(runs: Any, plant: Any, planted: Any) -> None:
    old, _ = runs()
    new = plant([planted.result("full", "int8", 0), planted.result("usplit", "int4", 0)], name="newer")
    found = compare([old, new])
    assert [each.setting for each in found.differences] == ["full int8 K=4 iid E=2"]
    assert found.differences[0].seeds == 1
    assert "2 seeds there, 1 here" in found.differences[0].flags
    assert found.missing == ("only in old: udec int8 K=4 iid E=2", "only in newer: usplit int4 K=4 iid E=2")


def test_other_seeds_are_compared_by_their_means(plant: Any, planted: Any) -> None:
    runs = [plant([planted.result("full", "int8", seed)], name=f"run{seed}") for seed in (0, 1)]
    (one,) = compare(runs).differences
    assert one.seeds == 0
    assert "no seed is in both: the differences are of the means" in one.flags
    assert one.fid_more is not None
    assert one.fid_more.deviation is None


def test_three_runs_are_each_held_against_the_first(runs: Any) -> None:
    old, new = runs(better)
    found = compare([old, new, old])
    assert [(each.run, round(each.ratio or 0, 1)) for each in found.differences[:2]] == [
        (str(new), 0.5),
        (str(old), 1.0),
    ]


class TestCommand:
    def test_prints_a_table(self, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["compare", *map(str, runs(better))]) == 0
        told = capsys.readouterr().out
        row = next(line for line in told.splitlines() if line.startswith("full int8"))
        assert "0.50×" in row
        assert "-2.00 ± 1.41" in row
        assert "+0.0100 ± 0.0000" in row

    def test_prints_json(self, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["compare", "--json", *map(str, runs(better))]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["runs"] == ["old", "new"]
        assert found["differences"][0]["fid_more"]["mean"] == pytest.approx(-2)

    def test_says_what_is_missing(self, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old, _ = runs()
        assert cli.main(["compare", str(old), str(tmp_path / "none")]) == ConfigError.exit_code
        assert capsys.readouterr().err.count("\n") == 1
        with pytest.raises(SystemExit) as usage:
            cli.main(["compare", str(old)])
        assert usage.value.code == 2


def test_nothing_in_common_is_said() -> None:
    assert "no setting is in both" in Comparison(("a", "b"), (), ()).text()
