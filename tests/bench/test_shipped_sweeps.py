"""bench/sweeps/: the literature's settings are what their files say, and each ends in minutes when it is made small."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from feddiff.bench import cli, sweep
from feddiff.bench.cell import Cell
from feddiff.bench.savings import Parts, exchanged
from feddiff.core.config import POLICIES
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.pool import part

CELLS = {
    # federations, centralised, alone: full and smoke
    "feddiffuse": ((108, 3, 27), (4, 1, 1)),
    "tun-beta": ((3, 1, 3), (2, 1, 2)),
    "tun-clients": ((3, 3, 3), (2, 2, 0)),
    "tun-epochs": ((3, 3, 3), (2, 2, 0)),
    "tun-ct": ((1, 1, 1), (1, 1, 1)),
    "jin": ((4, 1, 4), (2, 1, 0)),
    "hadjigeorgiou": ((36, 0, 32), (3, 0, 2)),
    "phoenix": ((10, 1, 2), (5, 1, 0)),
    "dcgan": ((2, 1, 0), (2, 1, 0)),
    "phoenix-sharing": ((7, 1, 1), (2, 1, 0)),
    "fedprox": ((12, 1, 0), (3, 1, 0)),
}
"""The literature's sweeps."""
FILES = sorted(CELLS)
SHIPPED = sorted(each.stem for each in sweep.SHIPPED.glob("*.toml"))


def cells(name: str, smoke: bool = False) -> list[Cell]:
    return sweep.load(Path(name), smoke).cells("digest")


def federations(name: str) -> list[Cell]:
    return [each for each in cells(name) if each.kind == "federated"]


@pytest.mark.parametrize("smoke", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_a_sweep(name: str, smoke: bool) -> None:
    found = cells(name, smoke)
    assert any(each.kind == "federated" for each in found)
    assert len({each.key for each in found}) == len(found)


@pytest.mark.parametrize("smoke", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize("name", FILES)
def test_multiplies_to_its_cells(name: str, smoke: bool) -> None:
    found = Counter(each.kind for each in cells(name, smoke))
    assert tuple(found[kind] for kind in ("federated", "centralised", "alone")) == CELLS[name][smoke]


@pytest.mark.parametrize("name", FILES)
def test_its_smoke_is_small_and_needs_no_images(name: str) -> None:
    asked = sweep.load(Path(name), smoke=True)
    assert (asked.rules.data.path, asked.rules.data.test) == ("digits", None)
    assert asked.rules.quality is not None
    assert asked.rules.quality.samples <= 200
    for cell in asked.cells("digest"):
        assert cell.config.model["sample_size"] == 8
        epochs = cell.config.training.epochs or 0
        assert epochs * (cell.config.rounds.count if cell.kind == "federated" else 1) <= 16


@pytest.mark.parametrize("name", FILES)
def test_its_first_lines_tell_the_truth(name: str) -> None:
    """The size of the network, the bytes of a federation by the closed form, and the command that runs it."""
    from feddiff.core import network

    text = (sweep.SHIPPED / f"{name}.toml").read_text()
    for word in ("# Source: ", "# It reproduces: ", "# Bytes: ", "# Time, a guess: "):
        assert word in text
    assert f"`feddiff-bench run {name} --data " in text
    found = federations(name)
    layout = network.of(found[0].config).layout(found[0].config)
    parts = Parts.of(layout) if found[0].config.kind == "unet" else Parts(layout.size, 0, 0)
    assert f"{parts.size:,} parameters" in text
    told = re.findall(r"(\d+(?:\.\d+)?) GB", " ".join(text.partition("# Bytes: ")[2].partition("# Time")[0].split()))
    for cell in found:
        if cell.config.frozen or cell.config.personal:
            continue  # which have other closed forms, told in shares
        rounds = cell.config.rounds
        size = 4 * float(exchanged("full", parts, cell.silos, rounds.count, rounds.sampled).total) / 1e9
        assert any(abs(float(each) - size) < 0.006 * size for each in told), (size, told)


def test_feddiffuse_is_the_papers_setting() -> None:
    found = federations("feddiffuse")
    assert {(each.config.plan, each.silos, str(each.split)) for each in found} == {
        (plan, silos, split)
        for plan in POLICIES
        for silos in (2, 5, 10)
        for split in ("iid", "dirichlet 0.5", "quantity 0.5")
    }
    for each in found:
        training, diffusion = each.config.training, each.config.diffusion
        assert (each.config.rounds.count, training.epochs, training.batch_size) == (15, 5, 128)
        assert (training.optimizer, training.learning_rate) == ("adam", 1e-4)
        assert (diffusion.timesteps, diffusion.schedule, diffusion.prediction) == (1000, "linear", "epsilon")
        assert (diffusion.loss, each.config.conditional, each.config.codec.up) == ("huber", False, "fp32")


@pytest.mark.parametrize("name", [each for each in FILES if each.startswith("tun-")])
def test_tun_is_the_papers_setting(name: str) -> None:
    for each in federations(name):
        training, diffusion = each.config.training, each.config.diffusion
        assert (each.config.rounds.count, each.config.conditional) == (300, True)
        assert (training.optimizer, training.learning_rate) == ("adam", 2e-4)
        assert training.batch_size == (128 if name == "tun-ct" else 512)
        assert (diffusion.timesteps, diffusion.prediction) == (300, "v")
        assert each.config.rounds.sampled in (None, 10)
    varied = {(each.silos, each.split.beta, each.config.training.epochs) for each in federations(name)}
    assert (
        varied
        == {
            "tun-beta": {(10, beta, 5) for beta in (0.1, 0.5, 5)},
            "tun-clients": {(silos, 0.5, 5) for silos in (10, 30, 50)},
            "tun-epochs": {(10, 0.5, epochs) for epochs in (1, 5, 10)},
            "tun-ct": {(10, 0.5, 5)},
        }[name]
    )


def test_of_fifty_silos_a_round_takes_ten_and_the_baseline_sees_as_many_images() -> None:
    found = {(each.kind, each.silos): each.config for each in cells("tun-clients")}
    assert [found["federated", silos].rounds.sampled for silos in (10, 30, 50)] == [10, 10, 10]
    assert [found["alone", silos].training.epochs for silos in (10, 30, 50)] == [1500, 500, 300]
    assert {each.config.training.epochs for each in cells("tun-clients") if each.kind == "centralised"} == {
        1500,
        500,
        300,
    }


def test_dcgan_is_the_papers_setting() -> None:
    found = federations("dcgan")
    assert {str(each.split) for each in found} == {"iid", "k-class 2"}
    for each in found:
        training = each.config.training
        assert (each.silos, each.config.rounds.count, training.epochs, training.batch_size) == (10, 10, 100, 128)
        assert (each.config.kind, training.optimizer, training.learning_rate) == ("dcgan", "adam", 2e-4)


def test_jin_is_his_setting() -> None:
    for each in federations("jin"):
        training = each.config.training
        assert (training.epochs, training.batch_size, training.learning_rate) == (1, 64, 2e-5)
        assert (each.silos in (3, 5), each.config.diffusion.timesteps, each.split.kind) == (True, 1000, "dirichlet")


def test_phoenix_is_the_papers_setting() -> None:
    found = federations("phoenix")
    assert {(str(each.split), each.strategy) for each in found} == {
        (split, strategy)
        for split in ("iid", "k-class 2")
        for strategy in ("", "personal", "lowest", "threshold", "average")
    }
    for each in found:
        training, diffusion = each.config.training, each.config.diffusion
        assert (each.silos, each.config.rounds.count, training.epochs) == (10, 10, 100)
        assert (training.optimizer, training.learning_rate) == ("adam", 1e-4)
        assert (diffusion.timesteps, diffusion.schedule) == (1000, "cosine")
        rule = each.config.filter
        assert each.config.personal == (("decoder.3",) if each.strategy == "personal" else ())
        assert (rule and rule.rule) == (each.strategy if each.strategy in ("lowest", "threshold", "average") else None)
        assert rule is None or (rule.metric, rule.since, rule.out, each.config.rounds.needed) == (
            "precision",
            5,
            "good",
            5,
        )


def test_phoenix_sharing_is_the_papers_setting() -> None:
    asked, found = sweep.load(Path("phoenix-sharing")), federations("phoenix-sharing")
    assert asked.rules.data.pool == 10_000
    shares = [None if each.config.pool is None else (each.config.pool.alpha, each.config.pool.beta) for each in found]
    assert shares == [None, *((alpha, beta) for beta in (0.025, 0.1, 0.25) for alpha in (0.5, 1.0))]
    for each in found:
        training, diffusion = each.config.training, each.config.diffusion
        assert (each.silos, each.config.rounds.count, str(each.split)) == (10, 10, "k-class 2")
        assert (training.epochs, training.optimizer, training.learning_rate) == (100, "adam", 1e-4)
        assert (diffusion.timesteps, diffusion.schedule) == (1000, "cosine")
        # The whole pool at most: a quarter of the 40,000 images that are left.
        assert each.config.pool is None or part(each.config.pool.beta, 40_000) <= 10_000


class TestImages:
    def test_may_be_named_on_the_command_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        asked = sweep.load(Path("feddiffuse"), data=Path("mine/train.zip"), test=Path("mine/test"))
        assert (asked.rules.data.path, asked.rules.data.test) == (
            str(tmp_path / "mine/train.zip"),
            str(tmp_path / "mine/test"),
        )
        assert sweep.load(Path("feddiffuse"), data=Path("mine")).rules.data.test is None
        assert sweep.load(Path("feddiffuse"), data=Path("digits")).rules.data.path == "digits"

    @pytest.mark.parametrize("name", FILES)
    def test_of_the_full_sweep_are_not_shipped(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="--data"):
            sweep.load(Path(name)).images(tmp_path)


def test_hadjigeorgiou_freezes_the_first_segments_of_a_model_that_a_federation_trained_before() -> None:
    found = cells("hadjigeorgiou")
    before = {each.silos: each for each in found if each.strategy == "before"}
    assert sorted(before) == [5, 10, 15, 20]
    after = [each for each in found if each.strategy != "before"]
    assert all(each.base == before[each.silos] for each in after)
    varied = {(each.config.frozen, each.config.training.learning_rate) for each in after}
    assert {n for n, _ in varied} == {0, 2, 5, 6, 8}
    assert len({rate for _, rate in varied}) == 2
    assert {str(each.split) for each in found} == {"k-class 2"}
    asked = sweep.load(Path("hadjigeorgiou")).rules.quality
    assert asked is not None
    assert asked.personal


def test_another_name_is_refused_and_the_shipped_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=", ".join(SHIPPED)):
        sweep.load(Path("phoenix-9"))


def test_a_file_of_that_name_in_the_working_directory_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jin").write_text('[federation]\npreset = "digits-8"\n')
    assert sweep.load(Path("jin")).rules.name == "sweep"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FILES)
def test_a_smoke_ends_with_a_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell a real federation of real daemons, or a baseline."""
    assert cli.main(["run", name, "--smoke", "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "failed" not in told.rpartition("validation loss")[2]
    listed = json.loads((tmp_path / "run" / "sweep.json").read_text())["cells"]
    assert len(listed) == sum(CELLS[name][1])
    for each in listed:
        result = json.loads((tmp_path / "run" / "cells" / f"{each['key']}.json").read_text())
        assert {row["metric"] for row in result["quality"]["metrics"]} >= {"fid", "precision", "recall"}
        assert (result["totals"]["up"] > 0) == (each["settings"]["kind"] == "federated")
        sampled = each["settings"]["sampled"]
        if result["rules"]["filter"] is not None:
            assert any(
                {"precision", "recall"} <= {row["metric"] for row in last["quality"]} for last in result["rounds"]
            )
            continue
        assert all(row["silos"] == (sampled or each["settings"]["silos"]) for row in result["rounds"])
