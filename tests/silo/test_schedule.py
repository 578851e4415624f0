"""silo/schedule.py against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.sections import TrainingConfig
from feddiff.silo.schedule import factor


def rules(**keys: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"epochs": 1, **keys})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"warmup": 2}, [1 / 3, 2 / 3, 1, 1]),
        ({"schedule": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear", "warmup": 1}, [1 / 2, 1, 2 / 3, 1 / 3]),
        ({"schedule": "cosine"}, [1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2]),
        ({"schedule": "cosine", "warmup": 1}, [1 / 2, 1, 3 / 4, 1 / 4]),
        ({"schedule": "cosine", "warmup": 3}, [1 / 4, 2 / 4, 3 / 4, 1]),
    ],
)
def test_four_rounds(keys: dict[str, Any], expected: list[float]) -> None:
    assert [factor(rules(**keys), round, 4) for round in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_is_the_rate_to_the_bit() -> None:
    assert 3e-4 * factor(rules(), 7, 9) == 3e-4


@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(1, 1000), st.data())
@settings(deadline=None)
def test_it_rises_to_one_and_falls_but_never_to_nothing(schedule: str, rounds: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, rounds - 1))
    factors = [factor(rules(schedule=schedule, warmup=warmup), each, rounds) for each in range(1, rounds + 1)]
    assert factors[warmup] == max(factors) == 1
    assert min(factors) > 0
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
