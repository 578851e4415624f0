"""Memory, demands and the hours of a round: closed forms."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.machine import Machine
from feddiff.core.segments import cut
from feddiff.core.volume import Volume
from feddiff.silo import workload
from feddiff.silo.probe import Line
from feddiff.silo.rehearsal import Gpu, Rehearsal, Run

LAYOUT = cut((name, [1_000_000]) for name in ("conv_in.w", "mid_block.w", "conv_out.w"))
HERE = Machine(16_000_000_000, 8_000_000_000, 4, True)
TRIED = Rehearsal(4, (), False, LAYOUT, (Run(1, 2.0, 10**9), Run(8, 10.0, 2 * 10**9)))
LINE = Line(down=1e6, up=0.5e6, round_trip_s=0.02, moved=3)
MOVES = Volume(down=20_000_000, up=10_000_000, first=30_000_000)


def rules(**more: Any) -> FederationConfig:
    model = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    training = {"epochs": 2, "batch_size": 8}
    return from_table({"model": model, "rounds": {"count": 10}, "training": training} | more, "the test")


def hours(config: FederationConfig, **more: Any) -> Any:
    given = {"line": LINE, "found": TRIED, "images": 100, "last": {}, "unmeasured": ""} | more
    return workload.time_of_round(config, MOVES, **given)


def test_a_round_is_its_transfers_and_its_training() -> None:
    found = hours(rules())
    transfer, training = 20 + 20, 2 * 100 / 10.0
    assert found.numbers == {
        "round_bytes": 30_000_000,
        "transfer_s": transfer,
        "training_s": training,
        "round_s": transfer + training,
    }
    assert found.level == "ok"
    assert found.sentence.startswith("about 1 min 00 s a round, 10 min 00 s for all 10 rounds: ")
    assert "200 images in 26 steps at 10 images/s, tried with 8 images a step on noise" in found.sentence
    steps = hours(rules(training={"steps": 50, "batch_size": 8}))
    assert steps.numbers["training_s"] == 50 * 8 / 10.0


def test_what_it_rests_on_is_said() -> None:
    assert "as in its last round" in hours(rules(), last={"seconds": 500.0}).sentence
    assert hours(rules(), last={"seconds": 500.0}).numbers["training_s"] == 500.0
    single = hours(rules(), found=replace(TRIED, runs=TRIED.runs[:1]))
    assert single.numbers["training_s"] == 200 / 2.0
    assert "tried with single images, so at most" in single.sentence
    nothing = hours(rules(), found=replace(TRIED, runs=()), unmeasured="the daemon is at work")
    assert "the training was not measured: the daemon is at work" in nothing.sentence
    assert "round_s" not in nothing.numbers
    assert "how long that takes was not measured" in hours(rules(), line=None).sentence


def test_a_round_that_takes_days_is_worth_a_word() -> None:
    slow = hours(rules(), line=replace(LINE, up=100.0))
    assert slow.level == "warning"
    assert "economy" in slow.advice


def by_subject(config: FederationConfig, found: Rehearsal, here: Machine = HERE) -> dict[str, Any]:
    return {each.subject: each for each in workload.device(config, here, found, 1000)}


def test_memory_and_gpu() -> None:
    on_cpu = by_subject(rules(), TRIED)
    assert on_cpu["memory"].numbers["needed_bytes"] == 3 * 12_000_000 + 1000 * 64 + 2 * 10**9
    assert "4 CPU threads" in on_cpu["GPU"].sentence
    small = by_subject(rules(), TRIED, Machine(10**9, 10**9, 1, True))["memory"]
    assert (small.level, small.kind) == ("problem", StoreError)
    card = Gpu("Card", 1_500_000_000, 1_000_000_000)
    on_gpu = by_subject(rules(), replace(TRIED, gpus=(card,)))
    assert "Card with 1.00 GB of 1.50 GB free" in on_gpu["GPU"].sentence
    assert on_gpu["GPU memory"].level == "problem"
    assert on_gpu["memory"].numbers["needed_bytes"] == 3 * 12_000_000 + 1000 * 64
    blind = by_subject(rules(), replace(TRIED, blind=True))["GPU"]
    assert blind.level == "warning"
    assert "torch cannot use it" in blind.sentence


def test_what_only_the_administrator_can_give(tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    file.write_bytes(b"network")
    right = {"extractor": hashlib.sha256(b"network").hexdigest(), "silos": True, "grids": True}

    def demands(config: FederationConfig, *given: Any) -> list[tuple[str, str]]:
        return [(each.subject, each.level) for each in workload.demands(config, *given)]

    plain, measured = rules(), rules(quality=right)
    pooled = rules(pool={"beta": 0.5, "alpha": 0.5}, data={"classes": ["a"]})
    assert demands(plain, None, False, None, 0) == []
    assert demands(plain, file, True, None, 0) == [("extractor", "warning"), ("public images", "warning")]
    assert demands(measured, None, False, None, 0) == [("extractor", "warning")]
    assert demands(measured, file, False, None, 0) == [("extractor", "ok")]
    assert demands(pooled, None, False, None, 0) == [("public images", "warning")]
    assert demands(pooled, None, True, None, 0) == []
    assert demands(plain, None, False, 4, 2) == [("processes", "problem")]
    assert demands(plain, None, False, 4, 4) == []
    file.write_bytes(b"another")
    [wrong] = workload.demands(measured, file, False, None, 0)
    assert (wrong.level, wrong.kind) == ("problem", ConfigError)
    [asked] = workload.demands(measured, None, False, None, 0)
    assert "numbers of its own model, a grid of samples" in asked.sentence
    assert right["extractor"] in asked.advice


def test_the_model_is_cut_alike_at_both_ends() -> None:
    same, other = workload.layout(TRIED, LAYOUT.digest), workload.layout(TRIED, "0" * 64)
    assert same is not None
    assert same.level == "ok"
    assert "3 million parameters in 3 segments" in same.sentence
    assert other is not None
    assert (other.level, other.kind) == ("problem", ConfigError)
    assert workload.layout(Rehearsal(), "") is None
    broken = workload.layout(Rehearsal(failure="no such block"), "")
    assert broken is not None
    assert (broken.level, "no such block" in broken.sentence) == ("problem", True)
    late = workload.layout(Rehearsal(failure="it was not done in 60 s", late=True), "")
    assert late is not None
    assert late.level == "warning"


@pytest.mark.parametrize("rules_text", [b""])
def test_without_rules_only_devices_are_looked_at(rules_text: bytes) -> None:
    from feddiff.silo.rehearsal import rehearse

    found = rehearse(rules_text, steps=False, limit_s=150)
    assert found.failure == ""
    assert found.threads >= 1
    assert found.layout is None
    assert found.runs == ()
    assert rehearse(rules_text, steps=False, limit_s=0.01).late
