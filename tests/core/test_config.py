"""core/config.py and core/presets.py: the rules of a federation, read, checked, sent and identified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.config import MAX_CONFIG_BYTES, FederationConfig, from_table, load, parse
from feddiff.core.errors import ConfigError
from feddiff.core.presets import ECONOMIES, PRESETS
from feddiff.core.sections import CodecConfig

PARAMETERS = {
    "digits-8": 160_337,
    "digits-16": 635_553,
    "gray-28": 3_077_593,
    "cifar-32": 35_746_307,
    "tun-32": 23_241_891,
    "tun-64": 23_237_537,
    "jin-32": 18_202_497,
    "ct-64": 26_621_569,
    "ct-64-small": 1_086_065,
    "cifar-32-small": 1_115_235,
}


def complaint(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_table(table, "rules.toml")
    return str(caught.value)


def digits(**sections: Any) -> FederationConfig:
    return from_table({"preset": "digits-16", **sections}, "rules.toml")


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_is_a_whole_federation(self, preset: str) -> None:
        config = from_table({"preset": preset}, "rules.toml")
        assert config.model == PRESETS[preset]["model"]
        assert config.conditional == bool(config.data.classes)

    @pytest.mark.parametrize("preset", [name for name in PRESETS if "kind" not in PRESETS[name]["model"]])
    def test_model_gives_noise_of_its_images_shape(self, preset: str) -> None:
        import torch
        from diffusers import UNet2DModel

        model, classes = PRESETS[preset]["model"], PRESETS[preset].get("data", {}).get("classes")
        with torch.device("meta"):
            unet = UNet2DModel(**model)
            images = torch.empty(2, model["in_channels"], model["sample_size"], model["sample_size"])
            labels = torch.zeros(2, dtype=torch.long) if classes else None
            noise = unet(images, torch.zeros(2, dtype=torch.long), class_labels=labels).sample
        assert noise.shape == images.shape
        assert sum(parameter.numel() for parameter in unet.parameters()) == PARAMETERS[preset]

    def test_lies_under_the_files_own_keys(self) -> None:
        config = digits(training={"batch_size": 8}, model={"layers_per_block": 2}, plan="udec")
        assert (config.plan, config.training.batch_size, config.training.epochs) == ("udec", 8, 2)
        assert config.model == {**PRESETS["digits-16"]["model"], "layers_per_block": 2}

    def test_is_not_changed_by_what_lies_on_it(self) -> None:
        before = json.dumps(PRESETS)
        digits(training={"steps": 5}, model={"sample_size": 8})
        assert json.dumps(PRESETS) == before

    def test_steps_replace_its_epochs(self) -> None:
        training = digits(training={"steps": 7}).training
        assert (training.epochs, training.steps) == (None, 7)

    @pytest.mark.parametrize("preset", ["digits", "", 5, ["digits-16", 5], ["digits"], {"digits-16": 1}, "x" * 10_000])
    def test_that_does_not_exist_names_those_that_do(self, preset: object) -> None:
        text = complaint({"preset": preset})
        assert "there is no preset" in text
        assert ", ".join(PRESETS) in text
        assert len(text) < 300

    @pytest.mark.parametrize("economy", ECONOMIES)
    def test_an_economy_goes_on_top_of_a_model_and_below_the_file(self, economy: str) -> None:
        config = from_table({"preset": ["ct-64", economy], "outer": {"momentum": 0.5}}, "rules.toml")
        assert config.model == PRESETS["ct-64"]["model"]
        assert (config.initial, config.codec.up, config.outer.optimizer, config.outer.momentum) == (
            "seed",
            "int2",
            "nesterov",
            0.5,
        )
        assert config.training.epochs == ECONOMIES[economy]["training"]["epochs"]
        assert config.training.batch_size == PRESETS["ct-64"]["training"]["batch_size"]
        alone = complaint({"preset": economy})
        assert f'preset {economy!r} has no model; name one with it, e.g. preset = ["ct-64", "{economy}"]' in alone
        own = from_table({"preset": economy, "model": PRESETS["gray-28"]["model"]}, "rules.toml")
        assert own.training.epochs == config.training.epochs

    def test_economies_lie_on_the_model_wherever_they_are_named(self) -> None:
        either = [from_table({"preset": order}, "rules.toml") for order in (["ct-64", "thrifty"], ["thrifty", "ct-64"])]
        assert either[0] == either[1]
        assert either[0].training.epochs == ECONOMIES["thrifty"]["training"]["epochs"]

    def test_two_models_are_refused(self) -> None:
        assert "'ct-64' and 'digits-8' are two models" in complaint({"preset": ["ct-64", "thrifty", "digits-8"]})

    def test_a_budget_chooses_the_codecs_and_the_economy_the_rest(self) -> None:
        table = {"preset": ["digits-8", "thrifty"], "plan": "budget", "budget": {"bytes_per_silo": 1000}}
        config = from_table(table, "rules.toml")
        assert (config.codec.up, config.codec.down, config.outer.optimizer) == ("fp32", "fp32", "nesterov")
        assert "leave those" in complaint({**table, "codec": {"up": "int2"}})


class TestRefusals:
    @pytest.mark.parametrize(
        ("sections", "facts"),
        [
            (
                {"training": {"local_epoch": 5}},
                ["unknown key 'training.local_epoch'", "epochs", "batch_size"],
            ),
            ({"round": {}}, ["unknown key 'round'", "rounds", "preset"]),
            ({"training": {"epochs": 1, "steps": 1}}, ["training: set exactly one of epochs and steps"]),
            ({"training": {"batch_size": 0}}, ["training.batch_size", "greater than or equal to 1", "got 0"]),
            ({"training": 5}, ["training: must be a table (got 5)"]),
            ({"budget": 5}, ["budget: must be a table (got 5)"]),
            ({"budget": {"bytes_per_silo": 2e7}}, ["budget.bytes_per_silo: must be a whole number (got 20000000.0)"]),
            ({"budget": {"codecs": "int8"}}, ["budget.codecs: must be a list (got 'int8')"]),
            ({"budget": {"codecs": []}}, ["budget.codecs: must not be empty"]),
            ({"budget": {"codecs": [8]}}, ["budget.codecs.0: must be text (got 8)"]),
            ({"training": {"learning_rate": float("nan")}}, ["training.learning_rate"]),
            ({"frozen": "encoder"}, ["frozen: must be a number of segments, or a list of their names (got 'encoder')"]),
            ({"frozen": -1}, ["frozen: must be a number of segments", "got -1"]),
            ({"plan": "half"}, ["plan", "'full'", "'udec'", "got 'half'"]),
            ({"name": "no spaces"}, ["name", "got 'no spaces'"]),
            ({"name": "newline\n"}, ["name", "got 'newline\\n'"]),
            ({"codec": {"up": "zip"}}, ["codec: there is no codec 'zip'", "fp32"]),
            ({"rounds": {"participants": 2, "quorum": 3}}, ["rounds: quorum 3 is more than participants 2"]),
            ({"data": {"classes": ["a", "a"]}}, ["data: classes names one label twice"]),
            ({"data": {"classes": ["a"]}}, ["model.num_class_embeds is 10", "names 1 labels"]),
            (
                {"diffusion": {"beta_start": 0.5, "beta_end": 0.1}},
                ["beta_start 0.5 is more than beta_end 0.1"],
            ),
            ({"model": {"out_channels": 3}}, ["in_channels and model.out_channels must be equal"]),
            ({"model": {"in_channels": 2, "out_channels": 2}}, ["1 (grey) or 3 (colour)"]),
            ({"model": {"sample_size": [16, 16]}}, ["model.sample_size must be one number"]),
            ({"model": {"sample_size": True}}, ["model.sample_size must be one number"]),
            ({"model": {"sample_size": 1 << 40}}, ["model.sample_size must be one number"]),
            ({"model": {"norm_eps": float("inf")}}, ["model may hold only"]),
            ({"model": {"act_fn": b"silu"}}, ["model may hold only"]),
        ],
    )
    def test_say_in_one_line_where_and_what(self, sections: dict[str, Any], facts: list[str]) -> None:
        text = complaint({"preset": "digits-16", **sections})
        assert text.startswith("rules.toml: ")
        assert "\n" not in text
        for fact in facts:
            assert fact in text

    def test_a_model_or_a_preset_must_be_given(self) -> None:
        assert "give [model] or preset" in complaint({})

    @pytest.mark.parametrize("key", ["sample_size", "in_channels", "out_channels"])
    def test_the_models_images_must_be_known(self, key: str) -> None:
        model = {k: v for k, v in PRESETS["gray-28"]["model"].items() if k != key}
        assert f"model.{key} must be given" in complaint({"model": model})

    def test_neither_epochs_nor_steps(self) -> None:
        model = PRESETS["gray-28"]["model"]
        assert "exactly one of epochs and steps" in complaint({"model": model, "training": {"batch_size": 8}})

    def test_rules_cannot_be_changed_once_read(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            digits().rounds.count = 5  # type: ignore[misc]


class TestQuorum:
    def test_is_everybody_unless_given(self) -> None:
        assert digits(rounds={"participants": 5}).rounds.needed == 5
        assert digits(rounds={"participants": 5, "quorum": 3}).rounds.needed == 3


class TestColumns:
    def test_are_the_classes_or_make_a_square(self) -> None:
        assert [digits().columns(count) for count in (1, 40, 400)] == [10, 10, 20]
        plain = from_table({"preset": "gray-28"}, "rules.toml")
        assert [plain.columns(count) for count in (0, 1, 16, 24)] == [1, 1, 4, 5]


class TestFile:
    def test_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "federation.toml"
        path.write_text('name = "spleen"\npreset = "digits-16"\n[rounds]\ncount = 3\n', encoding="utf-8")
        assert load(path) == digits(name="spleen", rounds={"count": 3})

    @pytest.mark.parametrize(
        "content", [b"name = ", b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"1" * 5000, b"a = 1\na = 2"]
    )
    def test_that_is_no_toml_is_refused_by_its_name(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "federation.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_that_is_missing_says_how_to_name_it(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--config"):
            load(tmp_path / "none.toml")

    def test_that_is_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="directory"):
            load(tmp_path)


class TestCanonical:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_text_gives_the_same_rules_back(self, preset: str) -> None:
        config = from_table({"preset": preset, "rounds": {"quorum": 1}}, "rules.toml")
        assert parse(config.canonical()) == config
        assert parse(config.canonical()).digest == config.digest

    @given(
        count=st.integers(1, 10**9),
        rate=st.floats(1e-9, 10, allow_subnormal=False),
        plan=st.sampled_from(["full", "usplit", "ulatdec", "udec"]),
        epochs=st.none() | st.integers(1, 1000),
        label=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
    )
    def test_round_trips_whatever_is_allowed(
        self, count: int, rate: float, plan: str, epochs: int | None, label: str
    ) -> None:
        training = {"learning_rate": rate, **({"steps": 9} if epochs is None else {"epochs": epochs})}
        config = from_table(
            {
                "preset": "gray-28",
                "plan": plan,
                "rounds": {"count": count},
                "training": training,
                "data": {"classes": [label]},
            },
            "rules.toml",
        )
        assert parse(config.canonical()) == config

    def test_digest_is_of_the_text(self) -> None:
        config = digits()
        assert config.digest == hashlib.sha256(config.canonical()).hexdigest()

    def test_digest_knows_neither_order_nor_spelling(self) -> None:
        model = PRESETS["gray-28"]["model"]
        one = from_table({"seed": 1, "model": model, "training": {"epochs": 1, "learning_rate": 1}}, "a")
        two = from_table(
            {
                "training": {"learning_rate": 1.0, "epochs": 1},
                "model": dict(reversed(model.items())),
                "seed": 1,
            },
            "b",
        )
        assert one.digest == two.digest
        assert one.digest != from_table({"seed": 2, "model": model}, "c").digest

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"[]",
            b"5",
            b"\xff",
            b"[" * 200_000,
            b"1" * 5000,
            b'{"model": 5}',
            b'{"model": {}}',
            b'{"model": {"sample_size": NaN}}',
        ],
    )
    def test_other_text_is_refused_in_one_line(self, text: bytes) -> None:
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert "\n" not in str(caught.value)

    def test_more_than_a_federation_needs_is_not_read(self) -> None:
        with pytest.raises(ConfigError, match="at most"):
            parse(b" " * (MAX_CONFIG_BYTES + 1))


def test_a_segments_codec_is_that_of_the_longest_name_that_fits() -> None:
    codec = CodecConfig.model_validate(
        {
            "up": "bf16",
            "segments": {"decoder": {"up": "fp16"}, "decoder.1": {"down": "fp16"}, "decoder.out": {"up": "fp32"}},
        }
    )
    found = {name: (codec.of(name, "up"), codec.of(name, "down")) for name in ("encoder.1", "decoder.1", "decoder.out")}
    assert found == {"encoder.1": ("bf16", "fp32"), "decoder.1": ("fp16", "fp16"), "decoder.out": ("fp32", "fp32")}
    assert codec.of("decoder.11", "down") == "fp32"
    with pytest.raises(ValueError, match="no codec"):
        CodecConfig.model_validate({"segments": {"decoder": {"up": "zip"}}})
