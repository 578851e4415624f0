"""bench/report.py and what stands on its page: a sweep's results, told in full, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from feddiff.bench import bars, cli, imprint, overview, report, savings, table
from feddiff.bench.savings import Parts, exchanged
from feddiff.bench.setting import Setting, settings
from feddiff.core.errors import DataError, StoreError

PLANS = ("full", "usplit", "ulatdec", "udec")


class Page(HTMLParser):
    """The cells of a page's tables, its headings, and whatever its tags point at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.titles: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.add(tag)
        self.targets += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href", "data", "srcset"}]
        self.titles += [known.get("aria-label") or ""] if tag == "svg" else []
        self._inside = "cell" if tag in {"td", "th"} else tag if tag == "h2" else self._inside if tag != "p" else ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "h2"}:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "cell":
            self.tables[-1][-1][-1] += data
        elif self._inside == "h2":
            self.headings[-1] += data


def drawn(run: Path) -> str:
    place, *_ = report.write(run, table.read(run), run / "out")
    return place.read_text()


@dataclass(frozen=True)
class Drawn:
    """A page that several tests look at: charts take seconds."""

    run: Path
    text: str
    charts: Sequence[Path]


def cells(planted: Any) -> list[dict[str, Any]]:
    """Three federations and both baselines, two seeds."""
    kinds = [("full", "fp32"), ("full", "int8"), ("udec", "int8"), ("centralised", ""), ("alone", "")]
    found = [planted.result(plan, codec, seed, rounds=3) for seed in (0, 1) for plan, codec in kinds]
    found[0]["quality"]["metrics"][0]["cautions"] = ["biased upwards: few"]
    found[0]["quality"]["personalisation"] = {"api": 12.5, "mpi": None, "pui": 75.0}
    return found


@pytest.fixture
def sweep(planted: Any) -> list[dict[str, Any]]:
    return cells(planted)


@pytest.fixture(scope="module")
def whole(planted: Any, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    run = planted.run(tmp_path_factory.mktemp("whole") / "planted", cells(planted), drawn=True)
    place, *charts = report.write(run, table.read(run), run / "out")
    assert place == run / "out" / "report.html"
    return Drawn(run, place.read_text(), charts)


class TestPage:
    def test_has_everything_that_was_measured(self, whole: Drawn) -> None:
        page = Page(whole.text)
        assert page.headings == [
            "Bytes against quality", "Every setting", "FID, test, by plan", "By round",
            "Personal models against the global one", "What travelled", "By segment", "What the plans save",
            "Drawn by the models", "From noise to image", "Who has what", "How it was measured",
        ]  # fmt: skip
        assert page.titles == [
            "Bytes against FID", "Bytes against validation loss", "FID by round", "FID by bytes sent", "FID by round",
            "FID by bytes sent", "Training loss by round", "Bytes by direction and segment", "Classes of the samples",
            "K=4, iid",
        ]  # fmt: skip
        assert whole.text.count("<img ") == 2 * 5

    def test_needs_nothing_from_elsewhere(self, whole: Drawn) -> None:
        page = Page(whole.text)
        assert not {"script", "link", "iframe", "object", "embed"} & page.tags
        assert {target[:5] for target in page.targets if not target.startswith("#")} == {"data:"}
        assert not re.search(r"https?:|@import|url\((?!#)", whole.text)

    def test_every_id_is_there_once(self, whole: Drawn) -> None:
        ids = re.findall(r' id="([^"]+)"', whole.text)
        assert len(ids) == len(set(ids)) > 0
        assert {target[1:] for target in Page(whole.text).targets if target.startswith("#")} <= set(ids)

    def test_charts_stand_beside_it_as_pictures(self, whole: Drawn) -> None:
        names = {chart.name for chart in whole.charts}
        assert {"pareto-fid.png", "pareto-loss.png", "fid-by-round.png", "bytes.png", "classes.png"} <= names
        assert names == {file.name for file in (whole.run / "out" / "charts").iterdir()}
        assert len(names) == len(Page(whole.text).titles)
        for chart in whole.charts:
            with Image.open(chart) as picture:
                assert min(picture.size) > 200

    def test_says_what_decides_whether_numbers_can_be_compared(self, whole: Drawn, planted: Any) -> None:
        assert "1,000 samples against 359 test images, extractor convnet c0ffee00" in whole.text
        assert f"SHA-256 {planted.digest}" in whole.text
        assert "Caution: fid: biased upwards: few." in whole.text
        assert "torch 2.13.0" in whole.text

    def test_animations_are_not_forced_on_anybody(self, whole: Drawn) -> None:
        assert re.search(r"prefers-reduced-motion: reduce\) \{ \.moving \{ display: none", whole.text)
        moving = whole.text[whole.text.index('<div class="moving">') :]
        assert b"acTL" in (whole.run / "cells" / "full_fp32_K4_iid_seed0.denoising.png").read_bytes()
        assert moving.count("<img ") == 5

    def test_escapes_every_name(self, plant: Any, planted: Any) -> None:
        evil = "<b onload=x>&$x^2$"
        one = planted.result("full", "int8", 0, rounds=1)
        one["label"] = evil
        one["settings"] |= {"plan": evil, "up": evil, "down": evil, "split": evil}
        one["data"] = {"path": evil, "digest": evil, "silos": {evil: {evil: 3}}}
        one["segments"] = {evil: {"down": 5, "up": 5}}
        one["quality"]["classes"] = {"names": [evil], "samples": {evil: [3]}, "reference": [3]}
        one["software"] = one["samples"] = {evil: evil}
        for number in one["quality"]["metrics"]:
            number |= {"extractor": evil, "cautions": [evil]}
        run = plant([one], drawn=True)
        (run / "sweep.json").write_text(
            (run / "sweep.json").read_text().replace('"name": "planted"', f'"name": "{evil}"')
        )
        text = drawn(run)
        assert "<b " not in text
        assert "<h1>&lt;b onload=x&gt;&amp;$x^2$</h1>" in text
        assert text.count("&lt;b onload=x&gt;&amp;$x^2$") > 20

    def test_is_the_same_for_the_same_run(self, plant: Any, planted: Any) -> None:
        run = plant([planted.result("full", "int8", 0, rounds=1)])
        assert drawn(run) == drawn(run)

    def test_a_picture_that_is_none_is_refused(self, plant: Any, planted: Any) -> None:
        one = planted.result("centralised", "", 0)
        run = plant([one])
        (run / "cells" / f"{one['key']}.png").write_text("<svg onload=x>")
        with pytest.raises(DataError, match="not a PNG"):
            drawn(run)

    def test_a_place_that_cannot_be_written_is_told(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        run = plant(sweep[:1])
        (run / "file").touch()
        with pytest.raises(StoreError, match="cannot be written"):
            report.write(run, table.read(run), run / "file")


class TestMissing:
    def test_whatever_is_not_there_is_left_out(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        results = sweep[:3]
        run = plant(results)
        del results[0]["quality"]["metrics"], results[0]["quality"]["classes"], results[0]["software"]
        del results[1]["quality"]["validation_loss"], results[1]["data"], results[1]["segments"]
        del results[2]["quality"]["of"], results[2]["samples"], results[2]["label"], results[2]["settings"]
        for one in results:
            (run / "cells" / f"{one['key']}.json").write_text(json.dumps(one))
        page = Page(drawn(run))
        assert [row[0] for row in page.tables[0][2:]] == ["1  full fp32", "2  full int8 ◆", "3  udec int8 ◆"]

    def test_an_old_result_has_its_loss_alone(self, plant: Any, planted: Any) -> None:
        results = [planted.result(plan, "int8", 0, rounds=2) for plan in ("full", "udec")]
        for one in results:
            one["quality"] = {key: value for key, value in one["quality"].items() if key in ("of", "validation_loss")}
            for each in one["rounds"]:
                del each["quality"]
        page = Page(drawn(plant(results)))
        assert "Bytes against FID" not in page.titles
        assert "Bytes against validation loss" in page.titles
        assert "Validation loss by plan" in page.headings
        assert page.tables[0][0] == ["setting", "MB down", "MB up", "× fewer than raw", "validation loss"]

    def test_a_run_without_a_result_makes_a_page(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        run = plant(sweep)
        for one in sweep:
            (run / "cells" / f"{one['key']}.json").unlink()
        (run / "cells" / f"{sweep[0]['key']}.failed").write_text("The disk is full: <none> left\n")
        text = drawn(run)
        assert "<strong>0 of 10</strong>" in text
        assert "9 of 10 cells are not run yet." in text
        assert "The disk is full: &lt;none&gt; left" in text


def known(plant: Any, results: list[dict[str, Any]]) -> list[Setting]:
    return settings(table.read(plant(results)))


def rows(settings: list[Setting]) -> list[list[str]]:
    return Page(overview.results(settings, [])).tables[0]


class TestTables:
    def test_a_row_has_its_settings_numbers(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        head, *lines = rows(known(plant, sweep))
        row = dict(zip(head, next(line for line in lines if line[0] == "2  full int8"), strict=True))
        results = [one for one in sweep if one["key"].startswith("full_int8")]
        totals = results[0]["totals"]
        values = [one["quality"]["metrics"][0]["value"] for one in results]
        mean = sum(values) / 2
        assert row["MB down"] == f"{totals['down'] / 1e6:.2f}"
        assert row["× fewer than raw"] == f"{totals['raw'] / (totals['down'] + totals['up']):.2f}"
        assert row["FID, test"] == f"{mean:.1f} ± {abs(values[0] - mean) * 2**0.5:.1f}"
        assert row["memorised"] == "1.2 % ± 0.0 %"

    def test_no_number_is_told_as_none(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        for one in sweep[:1]:
            one["quality"]["validation_loss"]["mean"] = None
            for number in one["quality"]["metrics"]:
                number["value"] = None
        row = next(line for line in rows(known(plant, sweep[:3])) if line[0].startswith("1 "))
        assert row[4:] == ["–"] * 9

    def test_numbers_of_two_bases_are_marked(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        for one in sweep:
            if one["settings"]["plan"] == "udec":
                for number in one["quality"]["metrics"]:
                    number["samples"] = 50
        settings = known(plant, sweep)
        assert [basis.samples for basis in imprint.bases(settings, "fid", "test")] == [1000, 50]
        head, *lines = rows(settings)
        row = next(line for line in lines if line[0].startswith("3  udec"))
        assert row[head.index("FID, test")].endswith("(a)")
        assert not row[head.index("validation loss")].endswith("(a)")
        assert "(a) FID, test: 50 samples against 359 test images" in overview.results(settings, [])

    def test_the_best_of_a_scenario_stands_out(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        settings = known(plant, sweep)
        columns = {column.head: column for column in overview.columns(settings)}
        federated = [each for each in settings if each.wire is not None]
        assert columns["precision"].best(federated) == {1, 2}
        assert columns["class KL"].best(federated) == {1, 2}
        assert columns["class KL"].best(federated[1:]) == {2}
        assert columns["MB up"].best(federated) == set()

    def test_plans_are_columns_as_in_the_paper(self, plant: Any, planted: Any) -> None:
        results = [planted.result(plan, "fp32", 0, silos=silos) for silos in (2, 5) for plan in PLANS]
        ((head, *lines),) = Page(overview.arranged(known(plant, results), lambda each: each.loss)).tables
        assert head == ["", *PLANS]
        assert [row[0] for row in lines] == ["K=2, iid, fp32", "K=5, iid, fp32"]
        assert lines[1][4] == f"{results[7]['quality']['validation_loss']['mean']:.3f}"

    def test_segments_have_their_bytes(self, plant: Any, sweep: list[dict[str, Any]]) -> None:
        (each,) = known(plant, [sweep[1]])
        wanted = sweep[1]["segments"]
        assert bars.segments(each, "down", "up") == {n: by["down"] + by["up"] for n, by in wanted.items()}
        ((head, _, row),) = Page(overview.by_segment([each])).tables
        assert head[1:] == ["encoder.in", "encoder.0", "bottleneck", "decoder.0", "decoder.out", "protocol"]
        assert float(row[3]) == pytest.approx(sum(wanted["bottleneck"].values()) / 1e6, rel=0.01)

    def test_savings_are_the_papers_and_those_of_the_ledger(self, plant: Any, planted: Any) -> None:
        parts = Parts(30, 20, 50)
        results = [planted.result(plan, "fp32", 0) for plan in ("full", "udec")]
        for one in results:
            found = exchanged(one["settings"]["plan"], parts, 4, 5)
            one["totals"] |= {"down_parameters": int(found.down), "up_parameters": int(found.up)}
        text = savings.table(known(plant, results), parts)
        mine, theirs = Page(text).tables
        assert [row[0] for row in mine[2:]] == list(PLANS)
        udec = mine[-1]
        assert udec[1:3] == ["1,200", "1,000"]
        assert udec[3] == udec[5] == "−45.0 %"
        assert mine[3][4:] == ["–", "–"]
        assert [row[3] for row in theirs[1:]] == ["0 %", "−25.0 %", "−41.3 %", "−73.6 %"]
        assert [row[4] for row in theirs[1:]][1] == "−23.3 %"

    @pytest.mark.parametrize(
        ("value", "like", "text"),
        [
            (1234.6, None, "1235"),
            (41.53, None, "41.5"),
            (0.0123, None, "0.0123"),
            (2.1213, 42.5, "2.1"),
            (0.0, None, "0"),
            (-3.14159, None, "-3.14"),
        ],
    )
    def test_figures_are_few(self, value: float, like: float | None, text: str) -> None:
        assert overview.figures(value, like) == text


class TestCommand:
    def test_report_prints_the_table_and_what_it_wrote(
        self, plant: Any, sweep: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = plant(sweep[3:4])
        assert cli.main(["report", str(run), "--out", str(run / "there")]) == 0
        told = capsys.readouterr().out
        assert "centralised K=4 iid" in told
        written = [line for line in told.splitlines() if line.startswith(str(run))]
        assert written[:3] == [str(run / "there" / name) for name in ("results.csv", "results.json", "report.html")]
        assert all(Path(line).exists() for line in written)
