"""bench/cli.py and bench/table.py: what people type, and what they read."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from feddiff.bench import cli, table
from feddiff.core.errors import ConfigError, DataError, StoreError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve of a, six of b."""
    for label, count in (("a", 12), ("b", 6)):
        (tmp_path / "ct" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(tmp_path / "ct" / label / f"{number}.png")
    return tmp_path / "ct"


class TestCommand:
    def test_it_starts_light(self) -> None:
        heavy = {"numpy", "torch", "diffusers", "sklearn", "matplotlib", "pydantic"}
        code = f"import sys, feddiff.bench.cli as c; c.parser(); print(*sorted({heavy} & sys.modules.keys()))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert not run.stdout.split()

    def test_help_names_the_commands_and_the_exit_codes(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        for word in ("feddiff-bench", "partition", "run", "report", "compare", "exit codes:", "1 some cells failed"):
            assert word in told

    @pytest.mark.parametrize("asked", [[], ["walk"], ["run"], ["partition", "--data", "x"], ["compare", "one"]])
    def test_wrong_usage_is_2(self, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(asked)
        assert ended.value.code == 2
        assert "usage: feddiff-bench" in capsys.readouterr().err


class TestPartition:
    def test_images_are_dealt_and_the_chart_is_drawn(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, chart = tmp_path / "out", tmp_path / "chart.png"
        asked = ["partition", "--data", str(images), "--silos", "3", "--split", "quantity", "--beta", "1"]
        assert cli.main([*asked, "--out", str(out), "--chart", str(chart)]) == 0
        files = [file.relative_to(out).parts for file in out.rglob("*.png")]
        assert len(files) == 18
        told = capsys.readouterr().out.splitlines()
        for number, silo in enumerate(("silo-1", "silo-2", "silo-3")):
            mine = [parts for parts in files if parts[0] == silo]
            assert told[number].startswith(f"{silo}: {len(mine)} images (")
        with Image.open(chart) as picture:
            assert min(picture.size) > 100

    @pytest.mark.parametrize(
        ("more", "code", "names"),
        [
            (["--silos", "0"], ConfigError.exit_code, "0 silos"),
            (["--silos", "19"], ConfigError.exit_code, "19 silos"),
            ([], ConfigError.exit_code, "--silos"),
            (["--split", "folders", "--silos", "2"], ConfigError.exit_code, "--silos"),
            (["--silos", "2", "--split", "half"], ConfigError.exit_code, "half"),
            (["--silos", "2", "--split", "dirichlet", "--beta", "-1"], ConfigError.exit_code, "beta"),
            (["--silos", "2", "--seed", "-1"], ConfigError.exit_code, "--seed"),
            (["--silos", "2", "--chart", "/no/such/folder/c.png"], ConfigError.exit_code, "--chart"),
            (["--silos", "2", "--data", "/no/such/images"], DataError.exit_code, "/no/such/images"),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self, more: list[str], code: int, names: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["partition", "--data", str(images), "--out", str(tmp_path / "out"), *more]) == code
        told = capsys.readouterr().err
        assert names in told
        assert told.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_holds_something_is_left_alone(
        self, images: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = ["partition", "--data", str(images), "--silos", "2", "--out", str(images)]
        assert cli.main(asked) == ConfigError.exit_code
        assert "not an empty folder" in capsys.readouterr().err
        assert len(list(images.rglob("*.png"))) == 18


def outcome(key: str, seed: int, loss: float | None, down: int) -> dict[str, Any]:
    totals = {"down": down, "up": 500_000, "encoded_down": 1, "encoded_up": 1, "raw": 8_000_000, "images": 384}
    return {
        "key": key,
        "parameters": 1000,
        "rounds": [{"round": 1}, {"round": 2}],
        "totals": totals | {"seconds": 1.0, "loss": 0.5},
        "quality": {"of": "global", "validation_loss": {"mean": loss, "by": {"global": loss}}},
        "wall_seconds": 3.0,
    }


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Two seeds of one setting, a failed cell, one that was not run."""
    (tmp_path / "cells").mkdir()
    settings = {"kind": "federated", "plan": "full", "seed": 0}
    listed = [
        {"key": "one", "label": "full int8", "settings": settings},
        {"key": "two", "label": "full int8", "settings": settings | {"seed": 1}},
        {"key": "bad", "label": "udec int8", "settings": settings | {"plan": "udec"}},
        {"key": "new", "label": "udec int4", "settings": settings | {"plan": "usplit"}},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "s", "cells": listed}))
    for place, (key, loss, down) in enumerate((("one", 0.1, 1_500_000), ("two", 0.2, 1_500_000))):
        (tmp_path / "cells" / f"{key}.json").write_text(json.dumps(outcome(key, place, loss, down)))
    (tmp_path / "cells" / "bad.failed").write_text("The images cannot be used: none\n")
    return tmp_path


class TestReport:
    def test_seeds_are_one_row_with_mean_and_spread(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["report", str(finished)]) == 0
        _, row, failed, waiting, *written = capsys.readouterr().out.splitlines()
        assert row.split() == [
            "full",
            "int8",
            "2",
            "2",
            "384",
            "1.50",
            "0.50",
            "4.0",
            "0.5000",
            "0.1500",
            "±0.0707",
            "global",
        ]
        assert failed == "failed: bad: The images cannot be used: none"
        assert waiting == "1 of 4 cells are not run yet"
        assert written[:3] == [str(finished / name) for name in ("results.csv", "results.json", "report.html")]

    def test_csv_has_a_row_for_each_cell_and_json_the_results(self, finished: Path, tmp_path: Path) -> None:
        assert cli.main(["report", str(finished), "--out", str(tmp_path / "there")]) == 0
        rows = list(csv.DictReader((tmp_path / "there" / "results.csv").open()))
        assert [(row["key"], row["seed"], row["down"], row["validation_loss"]) for row in rows] == [
            ("one", "0", "1500000", "0.1"),
            ("two", "1", "1500000", "0.2"),
        ]
        results = json.loads((tmp_path / "there" / "results.json").read_text())
        assert results == [entry.result for entry in table.read(finished) if entry.result]

    def test_quality_stands_with_what_it_was_measured_by(self, finished: Path) -> None:
        def measured(key: str, seed: int, fid: float | None, digest: str, samples: int = 1000) -> None:
            found = outcome(key, seed, 0.1, 1)
            numbers = {("fid", "test"): fid, ("fid", "training"): 2.5, ("precision", "test"): 0.75}
            basis = {"extractor": "convnet", "digest": digest, "samples": samples}
            found["quality"] |= {
                "sampler": "ddim",
                "steps": 50,
                "metrics": [{"metric": m, "against": a, "value": v, **basis} for (m, a), v in numbers.items()],
                "personalisation": {"api": 1.5, "mpi": 2.5, "pui": 50.0},
            }
            (finished / "cells" / f"{key}.json").write_text(json.dumps(found))

        measured("one", 0, 3.0, "ab" * 32)
        measured("two", 1, 5.0, "ab" * 32)
        head, row, *rest = table.text(table.read(finished)).splitlines()
        assert head.split()[-7:] == ["FID", "precision", "recall", "API", "MPI", "PUI", "of"]
        gains = ["1.5", "±0.0", "2.5", "±0.0", "50.0", "±0.0"]
        assert row.split()[-12:] == ["4.00", "±1.41", "0.750", "±0.000", "–", *gains, "global"]
        assert rest[0].split(": ")[1] == "extractor convnet, SHA-256 abababababab, 1000 samples (ddim, 50 steps)"
        csv_, _ = table.write(table.read(finished), finished)
        first, _ = csv.DictReader(csv_.open())
        assert (first["fid_test"], first["fid_training"], first["kid_test"], first["mpi"]) == ("3.0", "2.5", "", "2.5")
        assert (first["extractor"], first["extractor_digest"]) == ("convnet", "ab" * 32)
        assert (first["samples"], first["sampler"], first["sampling_steps"]) == ("1000", "ddim", "50")
        # What cannot be compared is not in one mean, and does not look alike.
        measured("two", 1, None, "cd" * 32, 500)
        _, row, other, told, marked, *_ = table.text(table.read(finished)).splitlines()
        assert row.split()[-7:] == ["3.00", "0.750", "–", "1.5", "2.5", "50.0", "global"]
        assert other.split()[-8:] == ["–", "0.750", "–", "1.5", "2.5", "50.0", "global", "*"]
        assert "abababababab, 1000 samples" in told
        assert marked == "*: extractor convnet, SHA-256 cdcdcdcdcdcd, 500 samples (ddim, 50 steps)"

    def test_no_number_is_told_as_none(self, finished: Path) -> None:
        for key in ("one", "two"):
            (finished / "cells" / f"{key}.json").write_text(json.dumps(outcome(key, 0, None, 1)))
        assert "–  global" in table.text(table.read(finished))

    def test_another_folder_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["report", str(tmp_path)]) == ConfigError.exit_code
        assert "not the folder of a run" in capsys.readouterr().err

    def test_a_damaged_result_is_refused(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (finished / "cells" / "one.json").write_text("{")
        assert cli.main(["report", str(finished)]) == StoreError.exit_code
        assert capsys.readouterr().err.count("\n") == 1
