"""Sweeps over personal and frozen segments, and from a published model."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from feddiff.bench import baseline, sweep
from feddiff.bench.cell import Cell
from feddiff.bench.dataset import stage
from feddiff.bench.savings import Parts, table
from feddiff.bench.setting import settings
from feddiff.bench.table import Entry
from feddiff.core import diffusion
from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.silo.trained import Trained

TINY = """\
name = "tiny"
baselines = [{baselines}]
{top}
[federation]
preset = "digits-8"
[federation.training]
steps = 2
batch_size = 8
[data]
images = 60
[grid]
silos = [2]
{grid}
[strategies.own]
personal = ["decoder.1"]
[strategies.base]
frozen = 2
[strategies.base-too]
frozen = ["encoder.in", "encoder.0"]
[strategies.both]
personal = ["decoder.1"]
frozen = 2
[strategies.base3]
frozen = 3
[strategies.nothing]
personal = []
frozen = 0
"""


def cells(folder: Path, grid: str = "", top: str = "", baselines: str = "") -> list[Cell]:
    (folder / "sweep.toml").write_text(TINY.format(grid=grid, top=top, baselines=baselines))
    return sweep.load(folder / "sweep.toml").cells("digest")


def test_each_strategy_is_a_cell(tmp_path: Path) -> None:
    found = cells(tmp_path, 'strategy = ["", "own", "base", "base-too", "both"]')
    assert [(each.config.personal, each.config.frozen) for each in found] == [
        ((), ()), (("decoder.1",), ()), ((), 2), ((), ("encoder.in", "encoder.0")), (("decoder.1",), 2),
    ]  # fmt: skip
    assert len({each.key for each in found}) == 5
    assert [each.settings["strategy"] for each in found] == [None, "own", "base", "base-too", "both"]
    assert " both " in str(found[4])
    for each in found:
        again = from_table(__import__("tomllib").loads(each.rules()), "again")
        assert again.digest == each.config.digest


def test_a_cell_that_keeps_nothing_is_the_one_of_before(tmp_path: Path) -> None:
    (plain,) = cells(tmp_path)
    (same,) = cells(tmp_path, 'strategy = ["nothing"]')
    assert plain.key == same.key


def test_a_strategy_that_is_none_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \[strategies.bose\]; known: own, base"):
        cells(tmp_path, 'strategy = ["bose"]')


def test_baselines_freeze_what_the_federations_freeze_and_know_nothing_of_personal(tmp_path: Path) -> None:
    found = cells(tmp_path, 'strategy = ["", "own", "base", "both"]', baselines='"alone"')
    alone = [each for each in found if each.kind == "alone"]
    assert [(each.config.personal, each.config.frozen) for each in alone] == [((), ()), ((), 2)]
    assert [each.settings["strategy"] for each in alone] == [None, "base"]


def published(folder: Path, seed: int) -> Path:
    rules = from_table({"preset": "digits-8", "seed": seed}, "test")
    folder.mkdir()
    save_file(diffusion.initial_state(rules), folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_a_published_model_is_beside_the_sweep_and_decides_its_cells(tmp_path: Path) -> None:
    published(tmp_path / "one", 1)
    published(tmp_path / "two", 2)
    (first,), (again,) = (cells(tmp_path, top='initial = "one"') for _ in range(2))
    (second,), (plain,) = cells(tmp_path, top='initial = "two"'), cells(tmp_path)
    assert first.key == again.key
    assert len({first.key, second.key, plain.key}) == 3
    assert [each.config.initial for each in (first, second, plain)] == ["file", "file", "send"]
    assert sweep.load(tmp_path / "sweep.toml").initial is None
    with pytest.raises(ConfigError, match="none"):
        cells(tmp_path, top='initial = "none"')
    (tmp_path / "sweep.toml").write_text('[federation]\npreset = "digits-8"\ninitial = "file"\n')
    with pytest.raises(ConfigError, match="name the published model: initial = PATH"):
        sweep.load(tmp_path / "sweep.toml").cells("digest")


BEFORE = """\
[before.rounds]
count = 3
"""


class TestBefore:
    def test_each_scene_has_one_and_all_others_begin_with_it(self, tmp_path: Path) -> None:
        grid = 'strategy = ["", "base"]\nseed = [0, 1]\nplan = ["full", "usplit"]\n' + BEFORE
        found = cells(tmp_path, grid, baselines='"alone"')
        before = [each for each in found if each.strategy == "before"]
        assert [(each.config.seed, each.config.rounds.count, each.config.plan) for each in before] == [
            (0, 3, "full"), (1, 3, "full"),
        ]  # fmt: skip
        assert [each.config.initial for each in before] == ["send", "send"]
        for each in found:
            if each.strategy != "before":
                assert each.base is not None
                assert (each.base.config.seed, each.config.initial) == (each.config.seed, "file")
                assert found.index(each.base) < found.index(each)
        assert [each.kind for each in found].count("alone") == 4  # none for those before

    def test_what_decides_it_decides_what_begins_with_it(self, tmp_path: Path) -> None:
        one, two = (cells(tmp_path, BEFORE.replace("3", rounds)) for rounds in ("3", "4"))
        assert [each.config.rounds.count for each in (*one, *two)] == [3, 10, 4, 10]
        assert len({each.key for each in (*one, *two)}) == 4
        assert one[1].config.digest == two[1].config.digest
        assert cells(tmp_path, BEFORE)[1].key == one[1].key

    def test_without_it_keys_are_what_they_were(self, tmp_path: Path) -> None:
        assert [each.key for each in cells(tmp_path)] == ["full_fp32-fp32_K2_iid_seed0_0ef82db5"]

    @pytest.mark.parametrize(
        ("grid", "top", "baselines", "says"),
        [
            (BEFORE, 'initial = "x"', "", "initial and .before. are two"),
            (BEFORE, "", '"centralised"', 'baselines = ."alone".'),
            ("[strategies.before]\nfrozen = 2", "", "", "give yours another name"),
            ('[before]\npersonal = ["decoder"]', "", "", "needs a global model"),
            ('[before]\nplan = "udec"', "", "", "needs a global model"),
            ("[before]\nround = 3", "", "", "unknown key 'round'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, grid: str, top: str, baselines: str, says: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=says):
            cells(tmp_path, grid, top, baselines)

    def test_a_rate_of_its_own_is_also_that_of_the_silo_alone(self, tmp_path: Path) -> None:
        grid = 'strategy = ["", "fast", "held"]\n[strategies.fast]\ntraining = {learning_rate = 0.01}\n'
        grid += "[strategies.held]\ntraining = {proximal = 0.01}"
        found = [each for each in cells(tmp_path, grid, baselines='"alone"') if each.kind == "alone"]
        assert [(each.strategy, each.config.training.learning_rate) for each in found] == [("", 0.004), ("fast", 0.01)]


def test_training_alone_from_a_published_model_leaves_its_first_segments(tmp_path: Path) -> None:
    """Hadjigeorgiou's isolation: frozen base layers, and nobody to average with."""
    model = published(tmp_path / "model", 1)
    cell = cells(tmp_path, 'strategy = ["base3"]', top='initial = "model"', baselines='"alone"')[-1]
    images = stage("digits", None, 5, 60, False, tmp_path / "images")
    names = list(images.train.deal(cell.split, 2, 0, 1, tmp_path / "run" / "data"))
    baseline.train(cell.config, names, tmp_path / "run", lambda _: None, threading.Event(), model)
    layout = diffusion.layout(cell.config)
    begun = layout.gather(diffusion.initial_state(from_table({"preset": "digits-8", "seed": 1}, "test")))
    for name in names:
        weights = Trained(tmp_path / "run" / "silos" / name).weights()
        assert [np.array_equal(weights[each], begun[each]) for each in layout.names] == [True] * 3 + [False] * 4


def test_settings_are_told_apart_by_what_they_keep_and_have_no_closed_form_of_the_plan(tmp_path: Path) -> None:
    def entry(cell: Cell) -> Entry:
        totals = {"down": 1, "up": 1, "down_parameters": 5, "up_parameters": 5, "loss": 0.1}
        result: dict[str, Any] = {
            "totals": totals,
            "quality": {},
            "rounds": [],
            "rules": cell.config.model_dump(mode="json"),
        }
        return Entry(cell.key, str(cell), cell.settings, json.loads(json.dumps(result)), "")

    kept = settings([entry(each) for each in cells(tmp_path, 'strategy = ["own", "both", "", "base"]')])
    assert [each.name for each in kept] == ["full fp32 own", "full fp32 both", "full fp32", "full fp32 base"]
    whole = Parts(10, 20, 30)
    assert "Of the model used" in table(kept, whole)
    assert "Of the model used" not in table([each for each in kept if each.name != "full fp32"], whole)
