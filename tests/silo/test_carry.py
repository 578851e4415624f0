"""What a silo's lossy encoding lost, when the next round's codec is another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feddiff.core.codec import CODECS
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Transfer
from feddiff.core.store import save
from feddiff.silo.local import Local
from feddiff.silo.session import Held, RoundWork, Task, next_step

SIZE, CHUNK, SEGMENT = 3000, 1024, "decoder.0"


def report(local: Local, round: int, codec: str, change: F32) -> F32:
    """Train a segment from zeros by this change and encode it; what the federator will decode."""
    manifest = Manifest(f"up.{round}.clinic.{SEGMENT}", SEGMENT, 0, round, codec, SIZE, CHUNK)
    work = RoundWork(round, (), (manifest,), {SEGMENT: Held(0)}, (), 7)
    local.trained.keep(round, {SEGMENT: change}, None, {})
    local.encode(work, manifest, feedback=True)
    decoded = []
    transfer = Transfer(manifest.path(local.folder / "outbox"))
    for index, payload, _ in transfer.chunks():
        count = manifest.count(index)
        decoded.append(CODECS[codec].decode(payload, count, np.zeros(count, np.float32)))
    transfer.close()
    return np.concatenate(decoded)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    local = Local(tmp_path / "state")
    save(local.folder / "held" / f"{SEGMENT}@0.safetensors", {SEGMENT: np.zeros(SIZE, np.float32)})
    return local


def change(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def test_a_lossless_round_brings_what_was_lost_and_leaves_nothing(local: Local) -> None:
    sent = report(local, 1, "int2", change(1))
    lost = change(1) - sent
    assert np.abs(lost).max() > 0.1
    assert np.array_equal(report(local, 2, "fp32", change(2)), change(2) + lost)
    # Brought once: neither the next lossless round nor the next lossy one has any of it left.
    assert np.array_equal(report(local, 3, "fp32", change(3)), change(3))
    alone = CODECS["int8"]
    expected = [
        alone.settle(change(4)[at : at + CHUNK], np.zeros(min(CHUNK, SIZE - at), np.float32))[1]
        for at in range(0, SIZE, CHUNK)
    ]
    assert np.array_equal(report(local, 4, "int8", change(4)), np.concatenate(expected))


def test_over_any_codecs_what_was_meant_arrives(local: Local) -> None:
    meant = sent = np.zeros(SIZE, np.float64)
    for round, codec in enumerate(("int2", "int8", "int4", "fp32", "int4", "topk10", "int2", "fp32"), start=1):
        meant = meant + change(round)
        sent = sent + report(local, round, codec, change(round))
    np.testing.assert_allclose(sent, meant, atol=1e-5)


def test_where_nothing_was_lost_nothing_is_kept(local: Local) -> None:
    report(local, 1, "fp32", change(1))
    assert not list((local.folder / "lost").iterdir())


def test_a_repeated_lossless_encoding_carries_the_same(local: Local) -> None:
    report(local, 1, "int2", change(1))
    first = report(local, 2, "fp32", change(2))
    next((local.folder / "outbox").glob("up.2.*")).unlink()
    assert np.array_equal(report(local, 2, "fp32", change(2)), first)


def test_a_silo_that_is_only_brought_up_to_date_does_not_train(local: Local) -> None:
    down = Manifest(f"down.{SEGMENT}.0-1", SEGMENT, 0, 1, "int4", SIZE, CHUNK)
    work = RoundWork(3, (down,), (), {SEGMENT: Held(1)}, (), 7)
    assert next_step(Task("round-3", "", work), local.progress()).action == "fetch"
    save(local.folder / "held" / f"{SEGMENT}@1.safetensors", {SEGMENT: np.zeros(SIZE, np.float32)})
    assert next_step(Task("round-3", "", work), local.progress()).action == "wait"
