"""bench/sweep.py, cell.py, campaign.py: a file becomes cells, each is run once, and a killed sweep goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddiff.bench import cli, dataset, result, sweep, table
from feddiff.bench.cell import Cell, toml
from feddiff.core.errors import ConfigError, DataError

TINY = """\
name = "tiny"
baselines = []
[federation]
preset = "digits-8"
[federation.rounds]
count = 1
[federation.training]
steps = 2
batch_size = 8
[data]
images = 60
[samples]
count = 10
steps = 2
[grid]
silos = [2]
codec = ["int8"]
"""


def cells(folder: Path, text: str, smoke: bool = False) -> list[Cell]:
    (folder / "sweep.toml").write_text(text)
    return sweep.load(folder / "sweep.toml", smoke).cells("digest")


class TestFile:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("[grid]\nplan = [", "sweep.toml"),
            ("", "'federation' is missing"),
            ("[federation]\npreset = 'digits-9'", "digits-9"),
            ("[federation]\npreset = 'digits-8'\nplann = 'full'", "plann"),
            ("[federation]\npreset = 'digits-8'\ntraining = 5", "federation.training must be a table"),
            ("[federation]\npreset = 'digits-8'\nrounds = {participants = 'x'}", "participants"),
            ("[federation]\npreset = 'digits-8'\nmodel = {when = 2020-01-01}", "model"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nplans = ['full']", "'grid.plans'; known here: plan"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nplan = 'full'", "grid.plan: Input should be a list"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nplan = ['half']", "plan"),
            ("[federation]\npreset = 'digits-8'\n[grid]\ncodec = ['int9']", "int9"),
            ("[federation]\npreset = 'digits-8'\n[grid]\ncodec = ['fp32/int9']", "int9"),
            ("[federation]\npreset = 'digits-8'\n[grid]\neconomy = ['free']", "free"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nouter = ['sdg']", "outer.optimizer"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nsplit = ['odd']", "there is no split 'odd'"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nsplit = ['dirichlet']\nbeta = [0]", "beta"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nsilos = [0]", "grid.silos"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nseed = [true]", "grid.seed"),
            (
                "[federation]\npreset = 'digits-8'\n[grid]\nparticipants = [10]",
                "sampled 10 is more than participants 2",
            ),
            ("[federation]\npreset = 'digits-8'\n[grid]\nsplit = ['folders', 'iid']", "folders"),
            ("[federation]\npreset = 'digits-8'\n[grid]\nsplit = ['folders']\nsilos = [3]", "folders"),
            ("[federation]\npreset = 'digits-8'\n[data]\nheld_out = 1", "data.held_out"),
            ("[federation]\npreset = 'digits-8'\n[quality]\nsamples = 9", "'quality.extractor' is missing"),
            (
                "[federation]\npreset = 'digits-8'\n[quality]\nextractor = 'a'\nsample = 9",
                "known here: extractor, kind",
            ),
            ("[federation]\npreset = 'digits-8'\n[quality]\nextractor = 'none.pt'", "none.pt: No such file"),
            (
                "[federation]\npreset = 'digits-8'\n[quality]\nextractor = 'convnet'\nsilos = true",
                "say how often, every = 1",
            ),
            (
                "[federation]\npreset = 'digits-8'\n[federation.filter]\n[quality]\nextractor = 'convnet'",
                "give [quality] with silos = true",
            ),
            (
                "[federation]\npreset = 'digits-8'\n[quality]\nextractor = 'convnet'\nkind = 'inception'",
                "a convnet is none",
            ),
            ("[federation]\npreset = 'digits-8'\n[federation.quality]\nextractor = 'a'", "give [quality] instead"),
            ("[federation]\npreset = 'digits-8'\npool = {alpha = 1.0, beta = 0.1}", "say with data.pool how many"),
            ("[federation]\npreset = 'digits-8'\n[data]\npool = 1.5", "a share of them below 1"),
            ("passes = 4\n[federation]\npreset = 'digits-8'\n[federation.rounds]\ncount = 3", "passes"),
            ("passes = 4\n[federation]\npreset = 'digits-8'\n[federation.training]\nsteps = 3", "passes"),
            ("passes = 5\n[federation]\npreset = 'digits-8'\n[grid]\nepochs = [2]", "passes must be a multiple of 2"),
        ],
    )
    def test_a_mistake_is_one_line_that_names_it(
        self, text: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "sweep.toml").write_text(text)
        out = tmp_path / "run"
        assert cli.main(["run", str(tmp_path / "sweep.toml"), "--out", str(out)]) == ConfigError.exit_code
        told = capsys.readouterr().err
        assert names in told
        assert told.count("\n") == 1
        assert not out.exists()

    def test_images_that_are_not_there_leave_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "sweep.toml").write_text(TINY.replace("[data]", '[data]\npath = "nowhere"'))
        out = tmp_path / "run"
        assert cli.main(["run", str(tmp_path / "sweep.toml"), "--out", str(out)]) == DataError.exit_code
        assert not out.exists()

    def test_a_smoke_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="smoke"):
            cells(tmp_path, TINY, smoke=True)


class TestCells:
    def test_the_grid_is_multiplied_and_splits_take_their_own_parameter(self, tmp_path: Path) -> None:
        grid = 'plan = ["full", "udec"]\nsplit = ["iid", "dirichlet", "k-class"]\nbeta = [0.1, 0.5]\nclasses = [2]\n'
        found = cells(tmp_path, TINY + grid + "seed = [0, 1]")
        assert len(found) == 2 * (1 + 2 + 1) * 2
        assert len({cell.key for cell in found}) == len(found)
        assert {str(cell.split) for cell in found} == {"iid", "dirichlet 0.1", "dirichlet 0.5", "k-class 2"}
        assert [cell.config.seed for cell in found] == [0] * 8 + [1] * 8

    def test_codecs_are_for_both_directions_or_each(self, tmp_path: Path) -> None:
        text = TINY.replace('codec = ["int8"]', 'codec = ["fp32", "int8/fp16"]')
        assert [(c.config.codec.up, c.config.codec.down) for c in cells(tmp_path, text)] == [
            ("fp32", "fp32"),
            ("int8", "fp16"),
        ]

    def test_several_grids_are_added_and_a_cell_is_there_once(self, tmp_path: Path) -> None:
        more = TINY.replace("[grid]", "[[grid]]") + '[[grid]]\nsilos = [2]\ncodec = ["int8", "int4"]\n'
        assert [cell.config.codec.up for cell in cells(tmp_path, more)] == ["int8", "int4"]

    def test_an_economy_lies_over_the_preset(self, tmp_path: Path) -> None:
        text = TINY.replace("steps = 2\nbatch", "batch").replace("count = 1\n", "").replace('codec = ["int8"]', "")
        plain, thrifty = cells(tmp_path, "passes = 20\n" + text + 'economy = ["", "thrifty"]')
        assert (plain.config.training.epochs, plain.config.rounds.count) == (4, 5)
        assert (thrifty.config.training.epochs, thrifty.config.rounds.count) == (10, 2)
        assert (plain.config.codec.up, thrifty.config.codec.up) == ("fp32", "int2")

    def test_participants_are_those_that_a_round_takes(self, tmp_path: Path) -> None:
        text = TINY.replace("silos = [2]", "silos = [10]\nparticipants = [5, 10]")
        five, ten = cells(tmp_path, text)
        assert (five.config.rounds.sampled, five.config.rounds.participants, five.silos) == (5, 10, 10)
        assert [each.settings["sampled"] for each in (five, ten)] == [5, 10]
        assert five.key != ten.key
        assert "K=10 5 sampled" in str(five)
        assert "K10-5" in five.key
        assert cells(tmp_path, TINY)[0].settings["sampled"] is None

    def test_passes_are_over_all_images_also_where_a_round_takes_a_part(self, tmp_path: Path) -> None:
        text = TINY.replace("steps = 2\nbatch", "epochs = 2\nbatch").replace("count = 1\n", "")
        text = "passes = 12\n" + text.replace("silos = [2]", "silos = [6]\nparticipants = [2, 6]")
        assert [each.config.rounds.count for each in cells(tmp_path, text)] == [18, 6]
        for each in cells(tmp_path, text.replace("baselines = []\n", "")):
            if each.kind != "federated":
                assert each.config.training.epochs == 12

    def test_the_file_of_a_cell_is_its_federation(self, tmp_path: Path) -> None:
        from feddiff.core.config import from_table

        (cell,) = cells(tmp_path, TINY)
        assert from_table(tomllib.loads(cell.rules()), "here").digest == cell.config.digest
        measuring = from_table(tomllib.loads(cell.rules({"extractor": "a" * 64, "samples": 5})), "here")
        assert measuring.quality is not None
        assert measuring.quality.samples == 5
        assert cell.config.rounds.participants == cell.silos == 2

    @pytest.mark.parametrize(
        "change",
        [
            ("steps = 2\nbatch", "steps = 3\nbatch"),
            ("silos = [2]", "silos = [3]"),
            ("count = 10", "count = 20"),
            ("[grid]", '[grid]\nsplit = ["quantity"]'),
            ("images = 60", "images = 60\nleast = 2"),
            ("[grid]", '[quality]\nextractor = "convnet"\n[grid]'),
            ("[grid]", '[quality]\nextractor = "own.pt"\n[grid]'),
        ],
    )
    def test_what_decides_the_outcome_decides_the_key(self, change: tuple[str, str], tmp_path: Path) -> None:
        (tmp_path / "own.pt").write_bytes(b"network")
        (one,), (other,) = cells(tmp_path, TINY), cells(tmp_path, TINY.replace(*change))
        assert one.key != other.key

    @pytest.mark.parametrize("change", ["samples = 5", "every = 2", "copies = false", "steps = 7", "personal = true"])
    def test_how_quality_is_measured_decides_it_too(self, change: str, tmp_path: Path) -> None:
        text = TINY.replace("[grid]", '[quality]\nextractor = "convnet"\n[grid]')
        (one,), (other,) = cells(tmp_path, text), cells(tmp_path, text.replace("[grid]", f"{change}\n[grid]"))
        assert one.key != other.key
        assert one.config == other.config

    def test_how_it_is_run_does_not(self, tmp_path: Path) -> None:
        (one,), (other,) = cells(tmp_path, TINY), cells(tmp_path, "processes = 7\npatience = 9\n" + TINY)
        assert one.key == other.key

    def test_smoke_lies_over_every_grid(self, tmp_path: Path) -> None:
        text = TINY.replace("[grid]", "[[grid]]") + '[[grid]]\nsilos = [3]\n[smoke.grid]\nplan = ["udec"]\n'
        assert [cell.config.plan for cell in cells(tmp_path, text)] == ["full", "full"]
        assert [cell.config.plan for cell in cells(tmp_path, text, smoke=True)] == ["udec", "udec"]

    def test_smokes_images_bring_their_own_held_out_ones(self, tmp_path: Path) -> None:
        text = TINY.replace("images = 60", 'path = "there"\ntest = "held"')
        (tmp_path / "sweep.toml").write_text(text + '[smoke.data]\npath = "digits"\n')
        found = [sweep.load(tmp_path / "sweep.toml", smoke).rules.data for smoke in (False, True)]
        assert [(each.path, each.test) for each in found] == [("there", "held"), ("digits", None)]

    @pytest.mark.parametrize(("training", "rounds"), [("steps = 2", 3), ("epochs = 2", 3)])
    def test_baselines_see_as_many_images(self, training: str, rounds: int, tmp_path: Path) -> None:
        text = TINY.replace("baselines = []\n", "").replace("steps = 2\nb", f"{training}\nb")
        text = text.replace("count = 1\n", f"count = {rounds}\n") + 'plan = ["full", "udec"]\nseed = [0, 1]\n'
        found = cells(tmp_path, text)
        assert [cell.kind for cell in found] == ["federated"] * 4 + ["centralised"] * 2 + ["alone"] * 2
        of = {cell.kind: cell.config.training for cell in found}
        if training.startswith("epochs"):
            assert (of["centralised"].epochs, of["alone"].epochs) == (6, 6)
        else:  # two silos
            assert (of["centralised"].steps, of["alone"].steps) == (12, 6)

    def test_baselines_have_no_rounds_and_nobody_to_be_held_to(self, tmp_path: Path) -> None:
        keys = 'schedule = "cosine"\nwarmup = 12\nproximal = 0.1\nclip = 1.0\nb'
        text = TINY.replace("baselines = []\n", "").replace("count = 1\n", "count = 20\n").replace("2\nb", f"2\n{keys}")
        plain = TINY.replace("baselines = []\n", "").replace("count = 1\n", "count = 20\n")
        found, others = (cells(tmp_path, each)[1:] for each in (text, plain.replace("2\nb", "2\nclip = 1.0\nb")))
        assert [cell.kind for cell in found] == ["centralised", "alone"]
        assert [cell.config for cell in found] == [cell.config for cell in others]

    tables = st.recursive(
        st.one_of(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.booleans(), st.integers(-9, 9))
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.\"é '\\😀"), inner, max_size=3),
    )

    @given(st.dictionaries(st.text("xyz-\n", min_size=1), tables, max_size=4))
    def test_tables_become_toml_and_back(self, table: dict[str, Any]) -> None:
        assert tomllib.loads(toml(table)) == table


def command(text: str, folder: Path, out: Path) -> list[str]:
    (folder / "sweep.toml").write_text(text)
    return ["run", str(folder / "sweep.toml"), "--out", str(out)]


class TestRun:
    @pytest.mark.parametrize("kind", ["centralised", "alone"])
    def test_a_baseline_becomes_a_result(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "sweep.toml").write_text(TINY.replace("baselines = []", f'baselines = ["{kind}"]'))
        asked = sweep.load(tmp_path / "sweep.toml")
        images = dataset.stage("digits", None, 5, 60, False, tmp_path / "data")
        cell = asked.cells(images.digest)[-1]
        told: list[str] = []
        (tmp_path / "work").mkdir()
        found, drawn = result.run(cell, asked, images, tmp_path / "work", told.append, threading.Event())
        assert found["totals"]["images"] == 2 * 2 * 8  # silos x steps x batch
        assert found["totals"]["down"] == found["totals"]["up"] == 0
        by = found["quality"]["validation_loss"]["by"]
        assert list(by) == (["global"] if kind == "centralised" else ["silo-1", "silo-2"])
        assert all(0 < loss < 10 for loss in by.values())
        assert found["quality"]["validation_loss"]["images"] == 60
        assert found["quality"].keys() == {"of", "validation_loss"}  # without an extractor
        with Image.open(io.BytesIO(drawn["png"])) as picture:
            assert picture.size[0] > picture.size[1] > 8
        assert told
        json.dumps(found, allow_nan=False)

    @pytest.mark.timeout(600)
    def test_a_federation_that_shares_public_images_becomes_a_result(self, tmp_path: Path) -> None:
        text = TINY.replace("images = 60", "images = 60\npool = 0.25").replace(
            "[data]", "[strategies.shared]\npool = {alpha = 0.5, beta = 0.25, warmup = 1}\n[data]"
        )
        (tmp_path / "sweep.toml").write_text(f'{text}strategy = ["", "shared"]\n')
        asked = sweep.load(tmp_path / "sweep.toml")
        images = asked.images(tmp_path / "data")
        plain, shared = asked.cells(images.digest)
        assert (plain.config.pool, str(shared)) == (None, "full int8 shared K=2 iid S=2")
        (tmp_path / "work").mkdir()
        found, _ = result.run(shared, asked, images, tmp_path / "work", lambda line: None, threading.Event())
        assert sum(sum(counts.values()) for counts in found["data"]["silos"].values()) == 45
        # G is a quarter of 45 images, rounded down; half of it goes to each silo: 5 of 64 bytes, and 4 of a label.
        sent = found["segments"]["pool"]
        assert (sent["up"], sent["down_parameters"]) == (0, 0)
        assert 0 < sent["encoded_down"] < 2 * 5 * 68  # digits are dark at the borders
        assert sent["encoded_down"] < sent["down"] < sent["encoded_down"] + 2 * 200
        totals = found["totals"]
        assert totals["down"] == sum(each["down"] for each in found["segments"].values())

    def test_a_cell_that_fails_is_a_line_and_the_rest_goes_on(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = TINY.replace("baselines = []", 'baselines = ["centralised"]')
        text = text.replace("images = 60", "images = 60\nleast = 31")
        asked = command(text, tmp_path, tmp_path / "run")
        assert cli.main(asked) == cli.FAILED
        told = capsys.readouterr().out
        (why,) = [line for line in told.splitlines() if line.startswith("[1/2] failed: ")]
        assert "60 images cannot be dealt to 2 silos with at least 31 each" in why
        assert "[2/2] done: " in told
        assert "failed: full_int8-int8_K2_iid_seed0" in told
        assert cli.main(asked) == cli.FAILED
        assert "1 done before, 1 to run" in capsys.readouterr().out

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "thesis.tex").touch()
        assert cli.main(command(TINY, tmp_path, tmp_path)) == ConfigError.exit_code
        assert "not the folder of a run" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.toml", "thesis.tex"]


def lives_in(folder: Path) -> list[int]:
    """Processes of which the command line names this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (place / "cmdline").read_bytes() and int(place.name) != os.getpid():
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_and_ends_with_the_same_table(tmp_path: Path) -> None:
    """Two federations of real daemons; kill -9 while the second one runs."""
    text = TINY.replace("[grid]", '[quality]\nextractor = "convnet"\nsamples = 40\nsteps = 2\nevery = 1\n[grid]')
    text = text.replace("images = 60", "images = 150") + 'plan = ["full", "udec"]\n'
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "feddiff.bench.cli", *command(text, tmp_path, out)]
        return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)

    first = start(killed)
    assert first.stdout is not None
    while not (begun := list((killed / "work").glob("udec*/federator.log"))):
        assert first.poll() is None
        time.sleep(0.05)
    assert lives_in(begun[0].parent)
    first.send_signal(signal.SIGKILL)
    first.wait()
    until = time.monotonic() + 60
    while lives_in(killed) and time.monotonic() < until:
        time.sleep(0.2)
    assert not lives_in(killed)
    (kept,) = (killed / "cells").glob("*.json")
    before = kept.stat().st_mtime_ns, kept.read_bytes()
    again = start(killed)
    told, _ = again.communicate()
    assert again.returncode == 0
    assert "2 cells, 1 done before, 1 to run" in told
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before
    left = start(alone)
    left.communicate()
    assert left.returncode == 0

    def rows(out: Path) -> list[tuple[object, ...]]:
        found = []
        for entry in table.read(out):
            assert entry.result is not None
            totals, quality = entry.result["totals"], entry.result["quality"]
            assert totals["down"] > totals["encoded_down"] > 0
            assert totals["up"] > totals["encoded_up"] > 0
            exact = ("encoded_down", "encoded_up", "raw", "images", "loss")
            found.append((entry.key, *(totals[name] for name in exact), quality["validation_loss"]["mean"]))
        return found

    def measured(out: Path) -> dict[tuple[str, ...], float]:
        """Each number at the end and after each round."""
        numbers = {}
        for entry in table.read(out):
            assert entry.result is not None
            rounds = [row for each in entry.result["rounds"] for row in each["quality"]]
            for row in [*entry.result["quality"]["metrics"], *rounds]:
                numbers[entry.key, row.get("of", "end"), row["metric"], row["against"]] = row["value"]
        return numbers

    assert rows(killed) == rows(alone)
    # Each run has a convnet of its own, the same but for its file; sums of many threads come in no fixed order.
    assert len(measured(alone)) > 40
    assert measured(killed) == pytest.approx(measured(alone), rel=1e-3, abs=1e-6)
    for one, other in zip(table.read(killed), table.read(alone), strict=True):
        assert one.result is not None
        assert other.result is not None
        # Acknowledgements and heartbeats differ from run to run, by a few packets.
        for way in ("down", "up"):
            assert one.result["totals"][way] == pytest.approx(other.result["totals"][way], rel=0.05)
    assert not list((killed / "work").iterdir())


@pytest.mark.parametrize("table", ["seed = 3", "rounds = { participants = 3 }"])
def test_a_strategy_does_not_decide_what_the_grid_decides(tmp_path: Path, table: str) -> None:
    (tmp_path / "s.toml").write_text(f'[federation]\npreset = "digits-8"\n[strategies.x]\n{table}\n')
    with pytest.raises(ConfigError, match=r"strategies\.x: seeds and numbers of silos are the grid's"):
        sweep.load(tmp_path / "s.toml")
