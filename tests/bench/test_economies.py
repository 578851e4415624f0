"""bench/quality.py and bench/trial.py: the table's arithmetic; slowly, what codecs do to a training."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from feddiff.bench import quality, trial
from feddiff.bench.trial import Outcome
from feddiff.core.config import from_table


@pytest.mark.parametrize("name", quality.COMBINATIONS)
def test_every_combination_trains_on_the_same_number_of_images(name: str) -> None:
    config = from_table(tomllib.loads(quality.COMBINATIONS[name].toml(seed=3)), name)
    assert config.rounds.count * (config.training.epochs or 0) == quality.PASSES
    assert (config.seed, config.rounds.participants) == (3, quality.SILOS)


def test_the_table_says_bytes_and_loss_against_the_same_seeds_of_the_baseline() -> None:
    raw = 4 * 1000 * 2 * quality.SILOS * 60
    baseline = [Outcome(1.0, raw // 4, raw // 4, 60, 1000, 9.0), Outcome(2.0, raw // 4, raw // 4, 60, 1000, 9.0)]
    thrifty = [Outcome(1.01, raw // 200, raw // 200, 6, 1000, 3.0), Outcome(2.06, raw // 200, raw // 200, 6, 1000, 3.0)]
    first, second = quality.table({"fp32": baseline, "thrifty": thrifty}).splitlines()[1:]
    assert first.split()[-6:] == ["2.0", "1.0", "1.5000", "+0.0", "%", "(+-0.0)"]
    assert second.split()[-6:] == ["100.0", "50.0", "1.5350", "+2.0", "%", "(+-1.4)"]


def test_digits_are_dealt_once_and_none_of_the_held_out(tmp_path: Path) -> None:
    names = trial.deal(tmp_path, 4, seed=0)
    dealt = sorted(int(path.stem) for name in names for path in (tmp_path / name).rglob("*.png"))
    training, held_out = trial.split(1797)
    assert dealt == training.tolist()
    assert not np.intersect1d(training, held_out).size
    assert held_out.size == 1797 // trial.HELD_OUT


@pytest.mark.slow
def test_sparse_updates_are_worse_without_error_feedback(tmp_path: Path) -> None:
    """Four silos with unequal digits, 16 rounds: what is not sent now must come later, or its digits suffer."""

    def loss(feedback: bool) -> float:
        codec = f'[codec]\nup = "topk10"\ndown = "int8"\nfeedback = {str(feedback).lower()}'
        rules = quality.Combination(rules=codec).toml(seed=0).replace(f"count = {quality.PASSES}", "count = 16")
        folder = tmp_path / str(feedback)
        folder.mkdir()
        return trial.run(rules, quality.SILOS, 0, folder).loss

    assert loss(feedback=True) < 0.97 * loss(feedback=False)
