"""A silo draws the classes that it lacks: how many, from which model, and marked for what they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import TINY

from feddiff.core import diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, DataError, FedDiffError, StoreError
from feddiff.core.grid import grid
from feddiff.core.images import read_images
from feddiff.core.segments import F32
from feddiff.core.store import save
from feddiff.silo import cli, synthetic
from feddiff.silo.local import held_file
from feddiff.silo.synthetic import Drawing
from feddiff.silo.trained import Trained

FEW = Drawing(steps=2, seed=3)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rules(classes: tuple[str, ...] = ("normal", "pneumonia"), **tables: Any) -> FederationConfig:
    model = TINY | ({"num_class_embeds": len(classes)} if classes else {})
    return from_table({"model": model, "data": {"classes": list(classes)}, **tables}, "test")


def silo(folder: Path, config: FederationConfig, version: int = 3) -> tuple[dict[str, F32], dict[str, F32]]:
    """A state folder after a training; returns the published model, and the silo's own."""
    (folder / "held").mkdir(parents=True)
    (folder / "trained").mkdir()
    (folder / "rules.json").write_bytes(config.canonical())
    layout = diffusion.layout(config)
    shared, own = (diffusion.initial_state(config.model_copy(update={"seed": seed})) for seed in (1, 2))
    for name, vector in layout.gather(shared).items():
        save(held_file(folder, name, version), {name: vector})
        save(held_file(folder, name, version - 1), {name: vector * 0})
    Trained(folder).keep(version, layout.gather(own), None, {})
    return shared, own


def scans(folder: Path, **counts: int) -> Path:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 9 * number).save(folder / label / f"{number}.png")
    return folder


def drawn(folder: Path) -> dict[str, np.ndarray]:
    return {str(each.relative_to(folder)): np.asarray(Image.open(each)) for each in sorted(folder.rglob("*.png"))}


def test_it_draws_what_it_lacks_from_the_newest_published_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = rules()
    shared, _ = silo(tmp_path / "state", config)
    data, out = scans(tmp_path / "data", normal=5, pneumonia=2), tmp_path / "out"
    command = ["sample", "--state", tmp_path / "state", "--out", out, "--balance", data, "--steps", "2", "--seed", "3"]
    assert cli.main([str(each) for each in command]) == 0
    assert "3 pneumonia: synthetic images of the published model, version 3" in capsys.readouterr().out
    expected = diffusion.sample(config, shared, 3, steps=2, seed=3, labels=[1, 1, 1])[..., 0]
    found = drawn(out)
    assert list(found) == [f"pneumonia/synthetic-3-{number:06}.png" for number in range(3)]
    assert np.array_equal(list(found.values()), expected)
    told = (out / synthetic.NOTICE).read_text()
    assert told.startswith("synthetic image, drawn by a model: of no patient")
    assert f"rules {config.digest[:12]}; the published model, version 3; seed 3, 2 steps, guidance 1" in told
    assert "images: 3 pneumonia" in told
    with Image.open(next(out.rglob("*.png"))) as picture:
        assert picture.info["Comment"].startswith(synthetic.WARNING)
    shutil.copytree(out, data, dirs_exist_ok=True)
    assert read_images(data, config).counts == {"normal": 5, "pneumonia": 5}
    assert "none were drawn" in synthetic.draw(tmp_path / "state", tmp_path / "more", None, FEW, data=data)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("tables", [{"plan": "udec"}, {"personal": ["decoder.1"]}])
def test_where_there_is_no_global_model_it_draws_from_its_own(tmp_path: Path, tables: dict[str, Any]) -> None:
    config = rules(**tables)
    _, own = silo(tmp_path / "state", config)
    told = synthetic.draw(tmp_path / "state", tmp_path / "out", 3, FEW)
    assert told.startswith("2 normal, 1 pneumonia: synthetic images of the silo's own model")
    expected = diffusion.sample(config, own, 3, steps=2, seed=3, labels=[0, 1, 0])[..., 0]
    found = drawn(tmp_path / "out")
    for label, number in (("normal", 0), ("pneumonia", 1), ("normal", 2)):
        assert np.array_equal(found[f"{label}/synthetic-3-{number:06}.png"], expected[number])


def test_it_draws_the_labels_that_it_is_asked_for_and_of_the_rarest_first(tmp_path: Path) -> None:
    config = rules(("a", "b", "c"))
    silo(tmp_path / "state", config)
    data = scans(tmp_path / "data", a=4, b=1, c=2)
    draw = lambda name, *more, **options: synthetic.draw(  # noqa: E731
        tmp_path / "state", tmp_path / name, *more, FEW, **options
    )
    assert draw("one", 3, labels=["c", "a"]).startswith("1 a, 2 c: ")
    assert draw("two", 3, data=data).startswith("2 b, 1 c: ")
    assert draw("three", None, data=data).startswith("3 b, 2 c: ")


def test_a_picture_is_of_its_own_model_as_ever(tmp_path: Path) -> None:
    config = rules()
    _, own = silo(tmp_path / "state", config)
    command = ["sample", "--state", tmp_path / "state", "--out", tmp_path / "g.png", "--count", "2", "--steps", "2"]
    for more, labels in (((), [0, 1]), (("--labels", "pneumonia"), [1, 1])):
        assert cli.main([str(each) for each in (*command, *more)]) == 0
        expected = grid(diffusion.sample(config, own, 2, steps=2, labels=labels), 2)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "g.png")), np.asarray(expected))


def test_a_model_without_classes_draws_without_labels(tmp_path: Path) -> None:
    silo(tmp_path / "state", rules(()))
    assert synthetic.draw(tmp_path / "state", tmp_path / "out", 2, FEW).startswith("2: synthetic images")
    assert list(drawn(tmp_path / "out")) == ["synthetic-3-000000.png", "synthetic-3-000001.png"]
    for options in ({"labels": ["a"]}, {"data": scans(tmp_path / "data", x=1)}):
        with pytest.raises(ConfigError, match="not told classes"):
            synthetic.draw(tmp_path / "state", tmp_path / "no", 2, FEW, **options)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    silo(state, rules())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    refusals: list[tuple[type[FedDiffError], str, Path, dict[str, Any]]] = [
        (ConfigError, "no class 'flu'; known: normal, pneumonia", out, {"labels": ["normal", "flu"]}),
        (ConfigError, "empty or a new folder", tmp_path / "full", {}),
        (ConfigError, "empty or a new folder", tmp_path / "full" / "file", {}),
        (ConfigError, "--count must be at least 1", out, {"count": 0}),
        (ConfigError, "label_dropout", out, {"how": Drawing(2, 0, 2.0)}),
        (DataError, "does not exist", out, {"data": tmp_path / "nowhere"}),
    ]
    for kind, says, place, options in refusals:
        with pytest.raises(kind, match=says) as caught:
            synthetic.draw(state, place, **{"count": 1, "how": FEW, **options})
        assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("label", ["..", "a/b", "/etc", ".hidden", "a\0b"])
def test_a_class_of_the_federator_leads_to_no_other_folder(tmp_path: Path, label: str) -> None:
    silo(tmp_path / "state", rules(("fine", label)))
    with pytest.raises(ConfigError, match="cannot be a folder's name"):
        synthetic.draw(tmp_path / "state", tmp_path / "out", 2, FEW)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_initial_weights_of_a_seed_are_no_model_to_draw_from(tmp_path: Path) -> None:
    config = rules()
    silo(tmp_path / "state", config, version=1)
    for path in (tmp_path / "state" / "held").glob("*@1.safetensors"):
        path.unlink()
    with pytest.raises(StoreError, match="after the first round"):
        synthetic.draw(tmp_path / "state", tmp_path / "out", 2, FEW)
    with pytest.raises(StoreError, match="has joined a federation"):
        synthetic.draw(tmp_path / "nobody", tmp_path / "out", 2, FEW)
    published = rules(initial="file")
    (tmp_path / "state" / "rules.json").write_bytes(published.canonical())
    assert "version 0" in synthetic.draw(tmp_path / "state", tmp_path / "out", 2, FEW)
