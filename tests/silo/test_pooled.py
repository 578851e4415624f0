"""silo/pooled.py: public images are taken with consent only, kept whole or not at all, and trained on like others."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ProtocolError, TransferError
from feddiff.core.images import Images
from feddiff.core.pool import Portion, encode, from_bytes, portion, to_bytes
from feddiff.silo.pooled import Pooled, admitted, agreed
from feddiff.silo.session import Held, Progress, RoundWork, Task, next_step

MODEL = {**TINY, "num_class_embeds": 2}


def rules(**pool: float) -> FederationConfig:
    table = {"model": MODEL, "data": {"classes": ["a", "b"]}, "training": {"epochs": 2, "batch_size": 4, "threads": 1}}
    return from_table({**table, **({"pool": pool} if pool else {})}, "rules.toml")


def offer(inbox: Path, count: int = 3, seed: int = 0) -> tuple[Portion, bytes]:
    """Images that have arrived."""
    random = np.random.default_rng(seed)
    images = Images(random.integers(0, 256, (count, 1, 8, 8), np.uint8), random.integers(0, 2, count), {}, ())
    data = to_bytes(images)
    offered = portion("clinic", data)
    encode(offered, data, inbox)
    return offered, data


def test_what_was_taken_is_there_until_another_takes_its_place(tmp_path: Path) -> None:
    config, kept, inbox = rules(alpha=1.0, beta=1.0), Pooled(tmp_path), tmp_path / "inbox"
    assert kept.digest == ""
    one, data = offer(inbox)
    kept.take(one, inbox, config)
    assert kept.digest == one.digest
    assert to_bytes(kept.images(one, config)) == data
    other, _ = offer(inbox, seed=1)
    kept.take(other, inbox, config)
    assert [path.name for path in (tmp_path / "pool").iterdir()] == [f"{other.digest}.images"]
    assert not list(inbox.iterdir())
    kept.forget()
    assert kept.digest == ""


def test_what_the_disk_has_changed_comes_again(tmp_path: Path) -> None:
    config, kept, inbox = rules(alpha=1.0, beta=1.0), Pooled(tmp_path), tmp_path / "inbox"
    one, _ = offer(inbox)
    kept.take(one, inbox, config)
    (path,) = (tmp_path / "pool").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(TransferError, match="come again"):
        kept.images(one, config)
    assert kept.digest == ""


def test_consent_is_said_and_its_lack_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert agreed(rules(alpha=0.5, beta=0.1), accept=True)
    assert not caplog.records
    assert not agreed(rules(alpha=0.5, beta=0.1), accept=False)
    assert "without --accept-pool" in caplog.records.pop().message
    for config in (rules(), rules(alpha=0.0, beta=0.1, warmup=1)):
        caplog.clear()
        assert not agreed(config, accept=False)
        assert not caplog.records
        assert not agreed(config, accept=True)
        assert "--accept-pool is not used" in caplog.records[0].message


def test_an_offer_is_looked_at_only_by_who_accepts(tmp_path: Path) -> None:
    offered, _ = offer(tmp_path)
    work = RoundWork(1, (), (offered.manifest,), {"decoder.0": Held(0)}, (), 7, offered)
    task, held = Task("round-1", "", work), {"decoder.0": Held(0)}
    known = rules(alpha=0.5, beta=0.1)
    assert admitted(task, known, accepts=True) == task
    assert next_step(task, Progress(held)).action == "accept"
    assert next_step(task, Progress(held)).manifests == (offered.manifest,)
    assert next_step(task, Progress(held, pool="0" * 64)).action == "accept"
    assert next_step(task, Progress(held, pool=offered.digest)).action == "train"
    assert next_step(task, Progress(held, trained=1)).action == "submit"
    for config in (known, rules()):
        without = admitted(task, config, accepts=False)
        assert without.work is not None
        assert without.work.pool is None
        assert next_step(without, Progress(held)).action == "train"
    with pytest.raises(ProtocolError, match="the rules know nothing of"):
        admitted(task, rules(), accepts=True)


def test_a_silo_trains_on_both_and_tells_of_its_own(tmp_path: Path) -> None:
    from PIL import Image

    from feddiff.silo.learner import ImageLearner, Lesson

    config = rules(alpha=1.0, beta=1.0)
    for number in range(5):
        place = tmp_path / "data" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(place / f"{number}.png")
    _, data = offer(tmp_path / "inbox")
    learner = ImageLearner(config, tmp_path / "data")
    assert (learner.samples, learner.labels) == (5, {"a": 3, "b": 2})
    start = learner.initial()

    def images(public: Images | None) -> float:
        lesson = Lesson(1, start, None, 7, tmp_path / "checkpoint", (), public)
        learned = learner.learn(lesson, lambda *_: True)
        assert learned is not None
        return learned.metrics["images"]

    assert images(None) == 2 * 5
    assert images(from_bytes(data, config)) == 2 * (5 + 3)
