"""Several processes train one model: to rounding as one does, and none outlives the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_trainer import EVERYTHING, blobs, federation, on, run, same

from feddiff.core.config import from_table
from feddiff.core.diffusion import initial_state
from feddiff.core.errors import ConfigError, FedDiffError, NotFinite
from feddiff.silo import cli, ranks
from feddiff.silo.group import Group
from feddiff.silo.learner import ImageLearner
from feddiff.silo.trainer import Progress, Trained


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ranks_of(folder: Path) -> dict[int, int]:
    """Rank to process id, of those that train for a state folder."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "feddiff.silo.rank" in words and any(each.startswith(str(folder)) for each in words):
            found[int(words[-2])] = int(place.name)
    return found


def close(one: Trained, other: Trained, start: dict[str, Any]) -> bool:
    """Whether two trainings went the same way: their distance is a thousandth of it, at most."""
    apart = sum(float(np.square(one.state[name] - other.state[name]).sum()) for name in start)
    along = sum(float(np.square(one.state[name] - start[name]).sum()) for name in start)
    return along > 0 and apart < 1e-6 * along


@given(st.integers(0, 100), st.integers(1, 9))
def test_every_image_of_a_step_is_one_ranks(count: int, size: int) -> None:
    shares = [Group(rank, size).share(count) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """21 images in steps of 8, so that the ranks share 5 in an epoch's last; all that acts on labels and gradients."""
    rules = {**EVERYTHING["training"], "accumulate": 2, "batch_size": 4, "clip": 0.5, "proximal": 0.1}
    tables = {**EVERYTHING, "model": {"num_class_embeds": 3}, "training": {**rules, "label_dropout": 0.3}}
    config, images = federation(**tables), blobs(21)
    start = initial_state(config)
    options: dict[str, Any] = {"round": 2, "shared": [*start][:9], "ema": start}
    one = run(config, images, **options)
    seen = list[Progress]()
    two = ranks.train(
        2,
        config,
        start,
        images,
        1,
        **options,
        checkpoint=tmp_path / "c",
        progress=lambda report: seen.append(report) is None,
    )
    assert two is not None
    assert close(one, two, start)
    assert not same(one.state, two.state), "one process did it all"
    assert one.ema is not None
    assert two.ema is not None
    assert all(np.allclose(one.ema[name], two.ema[name], atol=1e-5) for name in start)
    for name in ("loss", "first_loss"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], abs=1e-5)
    assert two.metrics["images"] == one.metrics["images"]
    assert (seen[-1].step, seen[-1].steps) == (9, 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_rank_ends_the_training_which_goes_on_from_its_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, images, checkpoint = federation(training={"epochs": 40}), blobs(20), tmp_path / "c"
    start = initial_state(config)
    options: dict[str, Any] = {"round": 1, "shared": (), "ema": None, "checkpoint": checkpoint, "checkpoint_every": 0}
    began = 0
    for victim in (1, 0):
        seen = list[int]()

        def kill(report: Progress, victim: int = victim, seen: list[int] = seen) -> bool:
            if checkpoint.exists() and (alive := ranks_of(tmp_path)).keys() == {0, 1}:
                os.kill(alive[victim], signal.SIGKILL)
            seen.append(report.step)
            return True

        with pytest.raises(FedDiffError, match=f"rank {victim} of 2 was killed by signal 9") as caught:
            ranks.train(2, config, start, images, 1, **options, progress=kill)
        assert "\n" not in str(caught.value)
        assert not ranks_of(tmp_path)
        assert began < seen[0], "it began from the beginning"
        began = 3  # what the first checkpoint has
        assert not [*tmp_path.glob("ranks-*")]
    assert capfd.readouterr().err == ""
    (tmp_path / "ranks-left-by-a-kill").mkdir()
    done = ranks.train(2, config, start, images, 1, **options, progress=on)
    assert done is not None
    assert close(run(config, images), done, start)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_ranks_end_with_a_training_that_is_not_wanted_or_that_fails(tmp_path: Path) -> None:
    images, options = blobs(20), {"checkpoint": tmp_path / "c"}
    config = federation(training={"epochs": 100_000})
    start = initial_state(config)
    assert ranks.train(2, config, start, images, 1, **options, progress=lambda _: False) is None
    assert not ranks_of(tmp_path)
    broken = initial_state(config)
    broken["conv_out.bias"][:] = np.nan
    with pytest.raises(NotFinite, match="loss nan at step 1"):
        ranks.train(2, config, broken, images, 1, **options, progress=on)
    assert not ranks_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_are_one_for_each_gpu_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8), 9).save(tmp_path / "1.png")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert ImageLearner(federation(), tmp_path, processes=None).device == "2 processes on a GPU"
    assert ImageLearner(federation(), tmp_path).device == "a GPU"
    with pytest.raises(ConfigError, match="--processes 3: each takes a GPU, and this machine has 2"):
        ImageLearner(federation(), tmp_path, processes=3)
    gan = {"kind": "dcgan", "sample_size": 8, "in_channels": 1, "out_channels": 1, "channels": [8, 4]}
    config = from_table({"model": gan, "training": {"epochs": 1}}, "test")
    assert ranks.processes(config, None) == 1
    with pytest.raises(ConfigError, match="normalised each by itself"):
        ranks.processes(config, 2)


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_silo_has_one_process_at_least(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--data", "images", "--federator", "host:1", "--processes", count])
    assert caught.value.code == 2
    assert "--processes" in capsys.readouterr().err
