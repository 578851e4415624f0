"""``feddiff-silo personalise``: real state folders, images and models; a process that is killed goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny import TINY

from feddiff.core import console, diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, DataError, StoreError
from feddiff.core.published import WEIGHTS, read_published
from feddiff.core.segments import F32
from feddiff.core.store import save
from feddiff.silo import cli
from feddiff.silo.local import Local
from feddiff.silo.personalise import Chosen
from feddiff.silo.personalise import personalise as make

MODEL = {**TINY, "num_class_embeds": 2}
PERSONAL = {"personal": ["decoder.1"]}


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(console, "log_lines", lambda *_: None)


def federation(seed: int = 0, **rules: Any) -> FederationConfig:
    training = {"batch_size": 8, "learning_rate": 2e-3, "steps": 7, "threads": 1, "schedule": "cosine", "proximal": 0.1}
    return from_table(
        {"model": MODEL, "data": {"classes": ["a", "b"]}, "training": training, "seed": seed, **rules}, "x"
    )


def weights(seed: int) -> Mapping[str, F32]:
    rules = federation(seed)
    return diffusion.layout(rules).gather(diffusion.initial_state(rules))


def silo(folder: Path, **rules: Any) -> Path:
    """A state folder after round 3: version 2 of what is shared (seed 2), its own last model (seed 3)."""
    config = federation(**rules)
    with closing(Local(folder)) as local:
        local.adopt(config.canonical())
        for name, vector in weights(2).items():
            kept = name in config.personal
            save(folder / "held" / f"{name}@{0 if kept else 2}.safetensors", {name: vector})
        local.trained.keep(3, weights(3), None, {"loss": 0.5})
    return folder


def images(folder: Path, count: int = 20) -> Path:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)):
        home = folder / "ab"[number % 2]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"{number}.png")
    return folder


def personalise(*arguments: object) -> int:
    return cli.main(["personalise", *map(str, arguments)])


def written(folder: Path) -> Mapping[str, F32]:
    rules = federation()
    return diffusion.layout(rules).gather(read_published(folder, rules))


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(each): each.read_bytes() if each.is_file() else None for each in sorted(folder.rglob("*"))}


def test_the_chosen_segments_go_on_from_what_the_silo_was_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, data, out = silo(tmp_path / "state"), images(tmp_path / "data"), tmp_path / "mine"
    before = tree(state)
    assert personalise("--state", state, "--data", data, "--out", out, "--segments", "decoder", "--epochs", 30) == 0
    told = capsys.readouterr().out
    assert "version 2" in told
    assert "on 18 images; 2 are held out" in told
    for name, vector in written(out).items():
        assert np.array_equal(vector, weights(2)[name]) != name.startswith("decoder."), name
    assert tree(state) == before
    assert not (tmp_path / "mine.part").exists()
    before_loss, after_loss = (
        float(line.split("images: ")[1].split()[0]) for line in told.splitlines() if "held-out" in line
    )
    assert after_loss < before_loss
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(out)
    assert pipeline.unet.config.sample_size == 8


def test_personal_segments_are_the_silos_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, data, out = silo(tmp_path / "state", **PERSONAL), images(tmp_path / "data"), tmp_path / "mine"
    assert personalise("--state", state, "--data", data, "--out", out, "--segments", "decoder.out", "--epochs", 1) == 0
    assert "personal segments as the silo trained them last" in capsys.readouterr().out
    for name, vector in written(out).items():
        expected = weights(3 if name == "decoder.1" else 2)[name]
        assert np.array_equal(vector, expected) == (name != "decoder.out"), name


def test_a_model_of_the_federators_and_the_first_segments_frozen(tmp_path: Path) -> None:
    state, data, out = silo(tmp_path / "state"), images(tmp_path / "data"), tmp_path / "mine"
    layout = diffusion.layout(federation())
    diffusion.export(federation(), layout.scatter(dict(weights(9))), tmp_path / "final")
    chosen = ("--from", tmp_path / "final", "--frozen", 3, "--epochs", 1, "--learning-rate", 1e-2)
    assert personalise("--state", state, "--data", data, "--out", out, *chosen) == 0
    found = written(out)
    same = [np.array_equal(found[name], weights(9)[name]) for name in layout.names]
    assert same == [True] * 3 + [False] * (len(layout.names) - 3)
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"


def test_what_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, data, out = silo(tmp_path / "state"), images(tmp_path / "data"), tmp_path / "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    one = images(tmp_path / "one", 1)
    good = {"--state": state, "--data": data, "--out": out}
    for code, says, change in (
        (StoreError.exit_code, "holds no silo", {"--state": tmp_path / "none"}),
        (DataError.exit_code, "does not exist", {"--data": tmp_path / "none"}),
        (DataError.exit_code, "one image cannot be", {"--data": one}),
        (ConfigError.exit_code, "is not an empty folder", {"--out": tmp_path / "full"}),
        (ConfigError.exit_code, "no segment is meant by 'decodr'", {"--segments": "decodr"}),
        (ConfigError.exit_code, "nothing to train", {"--frozen": 7}),
        (ConfigError.exit_code, "0 or more", {"--frozen": -1}),
        (ConfigError.exit_code, "training.epochs", {"--epochs": 0}),
        (ConfigError.exit_code, "training.learning_rate", {"--learning-rate": 0}),
        (ConfigError.exit_code, "holds no diffusion_pytorch_model", {"--from": data}),
    ):
        assert personalise(*(word for pair in {**good, **change}.items() for word in pair)) == code, says
        told = capsys.readouterr()
        assert says in told.err
        assert told.err.count("\n") == 1, told.err
    with closing(Local(state)):
        assert personalise(*(word for pair in good.items() for word in pair)) == StoreError.exit_code
        assert "in use" in capsys.readouterr().err
    (state / "held" / "bottleneck@2.safetensors").unlink()
    assert personalise(*(word for pair in good.items() for word in pair)) == StoreError.exit_code
    assert "bottleneck never came" in capsys.readouterr().err
    for name, vector in weights(2).items():
        (state / "held" / f"{name}@2.safetensors").unlink(missing_ok=True)
        save(state / "held" / f"{name}@0.safetensors", {name: vector})
    assert personalise(*(word for pair in good.items() for word in pair)) == StoreError.exit_code
    assert "sent the initial one alone" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob("mine*"))


@pytest.mark.slow
def test_a_second_one_for_the_same_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, data, out = silo(tmp_path / "state"), images(tmp_path / "data"), tmp_path / "mine"
    codes = []

    def told(line: str) -> None:
        if line.endswith("before"):
            codes.append(personalise("--state", state, "--data", data, "--out", out, "--epochs", 1))

    make(state, data, out, Chosen(["decoder.out"]), told)
    assert codes == [ConfigError.exit_code]
    assert "another feddiff-silo personalise is making" in capsys.readouterr().err
    same = [np.array_equal(vector, weights(2)[name]) for name, vector in written(out).items()]
    assert same.count(False) == 1, "decoder.out alone was trained"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "mine", "state"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_one_goes_on_and_ends_with_the_bits_of_one_left_alone(
    number: signal.Signals, tmp_path: Path
) -> None:
    state, data = silo(tmp_path / "state"), images(tmp_path / "data", 40)

    def start(out: Path) -> subprocess.Popen[str]:
        text = (
            "import signal, sys; from pathlib import Path\n"
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from feddiff.core import console\n"
            "from feddiff.silo.personalise import Chosen, personalise\n"
            "state, data, out = map(Path, sys.argv[1:])\n"
            "def run():\n"
            "    personalise(state, data, out, Chosen(frozen=2, epochs=40), print, checkpoint_every=0)\n"
            "    return 0\n"
            "sys.exit(console.run('test', run))\n"
        )
        command = [sys.executable, "-c", text, str(state), str(data), str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    checkpoint = tmp_path / "mine.part" / "checkpoint.safetensors"
    first = start(tmp_path / "mine")
    while not checkpoint.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(number)
    code = first.wait()
    assert code == (console.INTERRUPTED if number == signal.SIGINT else -number)
    assert not (tmp_path / "mine").exists(), "interrupted too late to test anything"
    kept = checkpoint.read_bytes()
    again = start(tmp_path / "mine")
    told = again.communicate()[0]
    assert again.returncode == 0, told
    assert kept
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    one, other = (load_file(tmp_path / name / "unet" / WEIGHTS) for name in ("mine", "whole"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "mine", "state", "whole"]
