from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.errors import ConfigError, StoreError, WrongShape
from feddiff.core.presets import PRESETS
from feddiff.core.segments import F32, Layout, cut

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SINGLE = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
MODELS: dict[str, dict[str, Any]] = {
    **{name: preset["model"] for name, preset in PRESETS.items() if "kind" not in preset["model"]},
    "attention": SMALL,
    "no attention in the middle": {**SMALL, "add_attention": False},
    "no middle": {**SMALL, "mid_block_type": None},
    "classes": {**SMALL, "num_class_embeds": 3},
    "classes by timestep embedding": {**SMALL, "class_embed_type": "timestep"},
    "fourier": {**SMALL, "time_embedding_type": "fourier"},
    "learned times": {**SMALL, "time_embedding_type": "learned", "num_train_timesteps": 10},
    "single level": {**SMALL, **SINGLE},
    "resnet samplers": {**SMALL, "downsample_type": "resnet", "upsample_type": "resnet"},
}
NAMES = ["encoder.in", "encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1", "decoder.out"]
TINY = cut(
    [
        ("conv_in.weight", (2, 1)),
        ("time_embedding.linear_1.bias", (3,)),
        ("down_blocks.0.a", (2, 2)),
        ("down_blocks.1.a", ()),
        ("up_blocks.0.a", (4,)),
        ("up_blocks.1.a", (1, 2)),
        ("mid_block.a", (5,)),
        ("mid_block.b", (0, 3)),
        ("conv_norm_out.bias", (2,)),
        ("conv_out.weight", (1, 2)),
    ]
)


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    unet: Any = UNet2DModel
    return dict(unet(**config).state_dict())


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in weights(config).items()}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_of_a_unet_is_in_exactly_one_segment(config: dict[str, Any]) -> None:
    state = shapes(config)
    layout = cut(state.items())
    found = [(p.name, p.shape) for segment in layout.segments for p in segment.parameters]
    assert sorted(found) == sorted(state.items())
    assert layout.size == sum(math.prod(shape) for shape in state.values())
    assert len(set(layout.names)) == len(layout.names)
    levels = len(config["block_out_channels"])
    middle = [] if "mid_block_type" in config else ["bottleneck"]
    assert list(layout.names) == [
        "encoder.in",
        *(f"encoder.{level}" for level in range(levels)),
        *middle,
        *(f"decoder.{level}" for level in range(levels)),
        "decoder.out",
    ]
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("config", [SMALL, MODELS["fourier"], MODELS["classes"]], ids=["small", "fourier", "classes"])
def test_a_unet_s_weights_survive_gather_and_scatter(config: dict[str, Any]) -> None:
    state = {name: tensor.numpy() for name, tensor in weights(config).items()}
    layout = cut((name, array.shape) for name, array in state.items())
    back: dict[str, F32] = {}
    for segment in layout.segments:
        back |= segment.scatter(segment.gather(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("preset", "least", "most"), [("cifar-32", 35_746_307, 35_746_307), ("gray-28", 2_700_000, 3_300_000)]
)
def test_presets_are_as_large_as_the_papers_say(preset: str, least: int, most: int) -> None:
    assert least <= cut(shapes(PRESETS[preset]["model"]).items()).size <= most


@pytest.mark.parametrize(
    ("parameter", "segment"),
    [
        ("conv_in.weight", "encoder.in"),
        ("time_proj.weight", "encoder.in"),
        ("time_embedding.linear_2.bias", "encoder.in"),
        ("class_embedding.weight", "encoder.in"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", "encoder.0"),
        ("down_blocks.12.resnets.0.conv1.weight", "encoder.12"),
        ("mid_block.attentions.0.to_q.weight", "bottleneck"),
        ("up_blocks.3.resnets.0.conv1.weight", "decoder.3"),
        ("conv_norm_out.weight", "decoder.out"),
        ("conv_out.bias", "decoder.out"),
    ],
)
def test_a_parameter_belongs_to_its_block(parameter: str, segment: str) -> None:
    layout = cut([(parameter, (2,))])
    assert layout.names == (segment,)
    assert layout[segment].part == segment.split(".")[0]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "add_embedding.weight",
        "down_blocks.weight",
        "down_blocks.x.a",
        "down_blocks.01.a",
        "up_blocks.1",
        "conv_in2.a",
    ],
)
def test_an_unknown_parameter_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=repr(name)):
        cut([("conv_in.weight", (1,)), (name, (1,))])


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"conv_in\.weight"):
        cut([("conv_in.weight", (1,)), ("conv_in.weight", (1,))])


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"conv_in\.weight"):
        cut([("conv_in.weight", (-1, -1))])


def test_levels_are_ordered_as_numbers() -> None:
    layout = cut((f"{side}_blocks.{level}.a", (1,)) for level in (10, 2, 0) for side in ("up", "down"))
    assert layout.names == ("encoder.0", "encoder.2", "encoder.10", "decoder.0", "decoder.2", "decoder.10")


def test_offsets_leave_no_gap_and_keep_the_given_order() -> None:
    assert [(p.name, p.offset, p.size) for p in TINY["encoder.in"].parameters] == [
        ("conv_in.weight", 0, 2),
        ("time_embedding.linear_1.bias", 2, 3),
    ]
    assert [(p.name, p.offset, p.size) for p in TINY["bottleneck"].parameters] == [
        ("mid_block.a", 0, 5),
        ("mid_block.b", 5, 0),
    ]
    assert TINY["encoder.1"].size == 1


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["all"], NAMES),
        (["decoder"], ["decoder.0", "decoder.1", "decoder.out"]),
        (["encoder"], ["encoder.in", "encoder.0", "encoder.1"]),
        (["bottleneck"], ["bottleneck"]),
        (["decoder.1"], ["decoder.1"]),
        (["decoder.out", "bottleneck", "decoder", "encoder.0"], [NAMES[1], *NAMES[3:]]),
        ([], []),
    ],
)
def test_select_answers_in_layout_order(patterns: list[str], names: list[str]) -> None:
    assert TINY.select(*patterns) == tuple(names)


@pytest.mark.parametrize("pattern", ["", "dec", "decoder.", "decoder.2", "decoder.1.a", "ALL", "bottleneck.0"])
def test_select_refuses_what_it_does_not_know_and_names_the_rest(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"known: all, encoder, bottleneck, decoder, encoder\.in, .*decoder\.out"):
        TINY.select("all", pattern)


def test_decoder_1_does_not_mean_decoder_10() -> None:
    layout = cut((f"up_blocks.{level}.a", (1,)) for level in range(11))
    assert layout.select("decoder.1") == ("decoder.1",)
    with pytest.raises(ConfigError, match=r"known: all, decoder, decoder\.0"):
        layout.select("bottleneck")


def test_an_unknown_segment_is_refused_and_the_known_named() -> None:
    with pytest.raises(ConfigError, match=r"'decoder'.*encoder\.in, encoder\.0"):
        TINY["decoder"]


def test_gather_names_the_segment_and_the_parameter_it_misses() -> None:
    with pytest.raises(WrongShape, match=r"decoder\.1.*up_blocks\.1\.a"):
        TINY["decoder.1"].gather({"up_blocks.0.a": np.zeros(4, np.float32)})


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2, 1), ()])
def test_gather_refuses_another_shape_even_of_the_same_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape, match=r"decoder\.1.*up_blocks\.1\.a"):
        TINY["decoder.1"].gather({"up_blocks.1.a": np.zeros(shape, np.float32)})


def test_gather_copies() -> None:
    state = {"up_blocks.1.a": np.ones((1, 2), np.float32)}
    vector = TINY["decoder.1"].gather(state)
    vector[:] = 7
    assert state["up_blocks.1.a"].tolist() == [[1, 1]]


def test_scatter_gives_views() -> None:
    vector = np.zeros(4, np.float32)
    TINY["encoder.0"].scatter(vector)["down_blocks.0.a"][1, 0] = 5
    assert vector.tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2), ()])
def test_scatter_refuses_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape, match=r"encoder\.0"):
        TINY["encoder.0"].scatter(np.zeros(shape, np.float32))


def test_the_digest_tells_layouts_apart() -> None:
    different: list[list[tuple[str, tuple[int, ...]]]] = [
        [("conv_in.a", (2, 3)), ("conv_in.b", (1,))],
        [("conv_in.b", (1,)), ("conv_in.a", (2, 3))],
        [("conv_in.a", (3, 2)), ("conv_in.b", (1,))],
        [("conv_in.a", (6,)), ("conv_in.b", (1,))],
        [("conv_in.a", (2, 3)), ("conv_in.c", (1,))],
        [("conv_in.a", (2, 3))],
    ]
    digests = {cut(parameters).digest for parameters in different}
    assert len(digests) == len(different)
    assert all(len(digest) == 64 for digest in digests)
    # Both ends must agree on it: a change of this value separates old software from new.
    assert cut(different[0]).to_json() == '[["encoder.in",[["conv_in.a",[2,3]],["conv_in.b",[1]]]]]'


def moved(text: str) -> str:
    rows = json.loads(text)
    rows[3][0] = "decoder.5"
    return json.dumps(rows, separators=(",", ":"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "1",
        "null",
        "[[]]",
        '{"a":1}',
        '[["encoder.in",[["conv_in.a",["1"]]]]]',
        '[["encoder.in",[["conv_in.a",[true]]]]]',
        '[["encoder.in",[[1,[1]]]]]',
        '[["encoder.in",[["other",[1]]]]]',
        "[" * 100_000,
        moved(TINY.to_json()),
    ],
    ids=lambda text: text[:20],
)
def test_from_json_refuses_what_to_json_did_not_write(text: str) -> None:
    with pytest.raises(StoreError):
        Layout.from_json(text)


PLACES = st.sampled_from(
    [
        "conv_in",
        "time_proj",
        "time_embedding.linear_1",
        "class_embedding",
        "down_blocks.0",
        "down_blocks.11",
        "mid_block",
        "up_blocks.0",
        "up_blocks.2",
        "conv_norm_out",
        "conv_out",
    ]
)
SHAPES: st.SearchStrategy[tuple[int, ...]] = st.lists(st.integers(0, 4), max_size=4).map(tuple)
PARAMETERS = st.dictionaries(
    st.builds("{}.{}".format, PLACES, st.text("abc.", min_size=1, max_size=3)), SHAPES, max_size=20
)


@settings(deadline=None)
@given(PARAMETERS, st.integers(0, 2**32 - 1))
def test_any_layout_round_trips(parameters: dict[str, tuple[int, ...]], seed: int) -> None:
    layout = cut(parameters.items())
    assert layout.size == sum(math.prod(shape) for shape in parameters.values())
    assert sorted(p.name for s in layout.segments for p in s.parameters) == sorted(parameters)
    assert Layout.from_json(layout.to_json()) == layout
    assert layout.select("all") == layout.names if parameters else layout.names == ()
    random = np.random.default_rng(seed)
    state = {name: random.standard_normal(shape, np.float32) for name, shape in parameters.items()}
    state = {name: np.asarray(array) for name, array in state.items()}
    for segment in layout.segments:
        vector = segment.gather(state)
        assert vector.dtype == np.float32
        assert vector.shape == (segment.size,)
        tensors = segment.scatter(vector)
        assert list(tensors) == [name for name in parameters if cut([(name, ())]).names == (segment.name,)]
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, state[name], strict=True)
            assert tensor.size == 0 or np.shares_memory(tensor, vector)
