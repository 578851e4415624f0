"""federator/initial.py, core/published.py: a published model is taken as it is, or refused by what is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY

from feddiff.core import diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError
from feddiff.core.published import WEIGHTS, read_published
from feddiff.core.store import WeightsReader
from feddiff.federator.daemon import open_federation
from feddiff.federator.initial import prepare


def federation(seed: int = 0, initial: str = "file", **model: Any) -> FederationConfig:
    return from_table({"model": {**TINY, **model}, "seed": seed, "initial": initial}, "test")


RULES = federation()
STATE = diffusion.initial_state(federation(seed=7))
"""Of another seed than the rules': a model that training has moved."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    diffusion.export(RULES, STATE, tmp_path / "published")
    return tmp_path / "published"


def same(found: dict[str, Any]) -> bool:
    return found.keys() == STATE.keys() and all(np.array_equal(found[name], STATE[name]) for name in STATE)


def test_a_pipelines_folder_a_models_folder_and_a_file_are_the_same_model(published: Path) -> None:
    for place in (published, published / "unet", published / "unet" / WEIGHTS):
        assert same(read_published(place, RULES)), place


def test_half_precision_becomes_float32(published: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    save_file({name: each.bfloat16() for name, each in load_file(published / "unet" / WEIGHTS).items()}, file)
    found = read_published(file, RULES)
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, STATE[name], rtol=2**-8, atol=0)


def test_the_initial_weights_are_the_published_ones_by_segment(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    layout = prepare(folder, RULES, published)
    with WeightsReader(folder / "initial.safetensors") as reader:
        assert same(layout.scatter({name: reader.read(name) for name in layout.names}))
    assert prepare(folder, RULES) == layout, "it is asked for again"


def test_a_published_model_goes_with_rules_that_want_one(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='initial = "file", and these say "send"'):
        prepare(tmp_path, federation(initial="send"), published)
    with pytest.raises(ConfigError, match="name its folder or file with --initial"):
        prepare(tmp_path, RULES)
    assert not (tmp_path / "layout.json").exists()


def test_a_refused_model_leaves_nothing_that_would_be_taken_later(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"the initial model cannot be made: .*empty holds no {re.escape(WEIGHTS)}"):
        prepare(tmp_path, RULES, tmp_path / "empty")
    assert not (tmp_path / "layout.json").exists()


def test_what_a_start_that_failed_has_made_is_not_taken_for_other_rules(published: Path, tmp_path: Path) -> None:
    folder, wrong = tmp_path / "state", {"codec": {"segments": {"decodr": {"up": "int8"}}}}
    folder.mkdir()
    with pytest.raises(ConfigError, match="no segment is meant by 'decodr'"):
        open_federation(folder, from_table({"model": TINY, "seed": 3, **wrong}, "test"))
    begun = open_federation(folder, RULES, published)
    assert all(begun.current[name] == 0 for name in begun.layout.names)
    vectors = {}
    for name in begun.layout.names:
        with WeightsReader(folder / "weights" / f"{name}@0.safetensors") as reader:
            vectors[name] = reader.read(name)
    assert same(begun.layout.scatter(vectors)), "the model of the rules that failed"
    with pytest.raises(ConfigError, match="rules have changed since it began"):
        open_federation(folder, federation(seed=1, initial="send"))


@pytest.mark.parametrize("change", ["missing", "foreign", "shape", "nan", "cut", "no file", "pickle"])
def test_what_is_not_the_rules_model_is_refused_by_name(published: Path, change: str) -> None:
    file, says = published / "unet" / WEIGHTS, ""
    tensors = load_file(file)
    match change:
        case "missing":
            del tensors["conv_out.bias"]
            says = r"conv_out\.bias is missing"
        case "foreign":
            tensors["conv_out.scale"] = torch.ones(3)
            says = r"conv_out\.scale is not of the rules' model"
        case "shape":
            tensors["conv_out.bias"] = torch.ones(2)
            says = r"conv_out\.bias has shape \(2,\), not \(1,\)"
        case "nan":
            tensors["conv_out.bias"][0] = torch.nan
            says = r"conv_out\.bias holds NaN"
    save_file(tensors, file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
        says = "cannot be read"
    elif change == "no file":
        file.unlink()
        says = f"holds no {WEIGHTS}"
    elif change == "pickle":
        torch.save(tensors, file)
        says = "cannot be read"
    with pytest.raises(ConfigError, match=says):
        read_published(published, RULES)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"norm_num_groups": 8}, "norm_num_groups = 4, and the rules' model has 8"),
        ({"block_out_channels": [8, 8]}, r"block_out_channels = \[8, 16\], and"),
        ({"act_fn": "mish"}, "act_fn = 'silu', and"),
    ],
)
def test_a_model_of_the_same_shapes_that_computes_something_else_is_refused(
    published: Path, rules: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_published(published, federation(**rules))


def test_a_model_that_predicts_something_else_is_refused(published: Path) -> None:
    velocity = from_table({"model": TINY, "initial": "file", "diffusion": {"prediction": "v"}}, "test")
    with pytest.raises(ConfigError, match="prediction_type = 'epsilon', and the rules' model has 'v_prediction'"):
        read_published(published, velocity)
    assert same(read_published(published / "unet" / WEIGHTS, federation(dropout=0.5)))
    (published / "scheduler" / "scheduler_config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match=r"scheduler_config\.json cannot be read"):
        read_published(published, RULES)
