"""bench/pareto.py, bench/setting.py, bench/looks.py: what is drawn is what the results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.bench import pareto, table
from feddiff.bench.looks import BASELINES, PLANS, looks, tick
from feddiff.bench.setting import settings, spread
from feddiff.federator.appraisal import front

numbers = st.integers(0, 12).map(float)


class TestFront:
    @given(st.lists(st.tuples(numbers, numbers), max_size=30))
    def test_is_exactly_what_none_beats(self, points: list[tuple[float, float]]) -> None:
        def beaten(at: int) -> bool:
            x, y = points[at]
            return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)

        found = front(points)
        assert sorted(found) == [at for at in range(len(points)) if not beaten(at)]
        assert [points[at] for at in found] == sorted(points[at] for at in found)

    def test_of_one_and_of_none(self) -> None:
        assert front([]) == []
        assert front([(1.0, 1.0)]) == [0]


def known(plant: Any, results: list[dict[str, Any]]) -> Any:
    return settings(table.read(plant(results)))


class TestSettings:
    def test_seeds_become_mean_and_spread_of_their_basis(self, plant: Any, planted: Any) -> None:
        results = [planted.result("full", "int8", seed) for seed in range(3)]
        for one, value in zip(results, (10.0, 12.0, 14.0), strict=True):
            one["quality"]["metrics"] = [planted.number("fid", value)]
        results[2]["quality"]["metrics"][0]["samples"] = 50
        (one,) = known(plant, results)
        (most, few), (odd, alone) = one.measured("fid", "test").items()
        assert (most.samples, few.mean, few.low, few.high, few.count) == (1000, 11.0, 10.0, 12.0, 2)
        assert few.deviation == pytest.approx(2**0.5)
        assert (odd.samples, alone.mean, alone.deviation) == (50, 14.0, None)

    def test_baselines_come_last_and_scenarios_together(self, plant: Any, planted: Any) -> None:
        cells = [("centralised", 4), ("full", 4), ("full", 9), ("alone", 4), ("udec", 4), ("udec", 9)]
        found = known(plant, [planted.result(plan, "int8", 0, silos=silos) for plan, silos in cells])
        assert [(each.number, each.plan) for each in found] == [
            (1, "full"), (2, "udec"), (3, "full"), (4, "udec"), (5, "centralised"), (6, "alone")
        ]  # fmt: skip
        assert [each.scenario for each in found[:3]] == ["K=4, iid", "K=4, iid", "K=9, iid"]

    def test_names_tell_apart_what_the_codec_does_not(self, plant: Any, planted: Any) -> None:
        results = [planted.result("full", codec, 0) for codec in ("fp32", "int8", "int8", "thrifty")]
        for place, (one, epochs) in enumerate(zip(results, (2, 2, 8, 10), strict=True)):
            one["settings"]["epochs"], one["key"] = epochs, f"{place}"
        assert [each.name for each in known(plant, results)] == [
            "full fp32", "full int8 E=2", "full int8 E=8", "full thrifty"
        ]  # fmt: skip

    def test_a_curve_has_the_bytes_until_then(self, plant: Any, planted: Any) -> None:
        results = [planted.result("full", "int8", seed, rounds=3) for seed in (0, 1)]
        del results[1]["rounds"][1]["loss"]
        (one,) = known(plant, results)
        curve = one.curve(lambda each: each.get("loss"))
        each = results[0]["rounds"][0]["down"] + results[0]["rounds"][0]["up"]
        assert curve.rounds == (1, 2, 3)
        assert curve.sent == (each, 2 * each, 3 * each)
        assert [value.count for value in curve.values] == [2, 1, 2]

    @given(st.lists(st.one_of(st.none(), st.just(float("nan")), st.floats(-1e6, 1e6)), max_size=6))
    def test_what_is_no_number_is_left_out(self, values: list[float | None]) -> None:
        real = [value for value in values if value is not None and value == value]
        found = spread(values)
        assert (found is None) == (not real)
        if found is not None:
            assert (found.low, found.high, found.count) == (min(real), max(real), len(real))


class TestChart:
    def test_marks_stand_where_the_numbers_are(self, plant: Any, planted: Any) -> None:
        results = [planted.result(plan, "int8", seed) for plan in ("full", "udec") for seed in (0, 1)]
        found = known(plant, results)
        figure = pareto.chart(found, lambda each: each.loss, "loss", looks(["int8"]))
        (axes,) = figure.axes
        marks = {line.get_color(): line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "s"}
        for each in found:
            assert tuple(marks[PLANS[each.plan]]) == pytest.approx((each.wire.mean, each.loss.mean))
        assert axes.get_xscale() == "log"
        assert {text.get_text() for text in axes.texts} >= {"1", "2"}

    def test_baselines_are_lines_with_their_names(self, plant: Any, planted: Any) -> None:
        plans = ("full", "udec", "centralised", "alone")
        found = known(plant, [planted.result(plan, "int8", 0) for plan in plans])
        figure = pareto.chart(found, lambda each: each.loss, "loss", looks(["int8"]))
        told = [text.get_text() for text in figure.axes[0].texts]
        assert any(text.startswith("centralised 0.2") for text in told)
        assert any("alone 0.4" in text for text in told)

    def test_scenarios_have_panels_of_their_own(self, plant: Any, planted: Any) -> None:
        several = [planted.result(plan, "int8", 0, silos=silos) for plan in ("full", "udec") for silos in (2, 5, 9, 20)]
        found = known(plant, several)
        assert list(pareto.panels(found)) == ["K=2, iid", "K=5, iid", "K=9, iid", "K=20, iid"]

    def test_scenarios_of_one_setting_each_are_one_panel_and_in_the_names(self, plant: Any, planted: Any) -> None:
        found = known(plant, [planted.result("full", "int8", 0, silos=silos) for silos in (2, 5, 9)])
        assert list(pareto.panels(found)) == ["iid"]
        assert [each.name for each in found] == ["full int8 K=2", "full int8 K=5", "full int8 K=9"]

    def test_nothing_to_draw_is_none(self, plant: Any, planted: Any) -> None:
        found = known(plant, [planted.result("centralised", "", 0)])
        assert pareto.chart(found, lambda each: each.loss, "loss", {}) is None


class TestLooks:
    def test_codecs_look_the_same_beside_whatever_stands(self) -> None:
        alone, among = looks(["int8"]), looks(["topk1", "int8", "fp32/int4", "thrifty", "fp32"])
        assert alone["int8"] == among["int8"]
        assert len({look.marker for look in among.values()}) == len({str(look.dash) for look in among.values()}) == 5

    @given(st.lists(st.text(max_size=5), max_size=60))
    def test_there_is_one_for_each(self, names: list[str]) -> None:
        assert list(looks(names)) == list(dict.fromkeys(names))

    def test_plans_and_baselines_have_a_colour_each(self) -> None:
        assert len({*PLANS.values(), *BASELINES.values()}) == len(PLANS) + len(BASELINES)

    @pytest.mark.parametrize(("size", "text"), [(200, "200 B"), (1e5, "100 kB"), (2e6, "2 MB"), (5e9, "5 GB")])
    def test_bytes_have_units(self, size: float, text: str) -> None:
        assert tick(size) == text


def test_a_run_without_any_result_has_no_settings(plant: Any, planted: Any, tmp_path: Path) -> None:
    run = plant([planted.result("full", "int8", 0)])
    for file in (run / "cells").iterdir():
        file.unlink()
    assert settings(table.read(run)) == []
