"""federator/weighting.py by hand, and what it refuses to weigh. What is made of it: test_publisher.py."""

from __future__ import annotations

import math
from typing import Any

import pytest

from feddiff.core.fold import BadUpdate
from feddiff.core.sections import WeightsConfig
from feddiff.federator.weighting import weigh, words

IMAGES = {"a": 10, "b": 30}


def rules(**keys: Any) -> WeightsConfig:
    return WeightsConfig.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"a": 10, "b": 30}),
        ({"by": "uniform"}, {"a": 1, "b": 1}),
        ({"by": "loss", "q": 0.0}, {"a": 10, "b": 30}),
        ({"by": "loss", "q": 1.0}, {"a": 5, "b": 6}),
        ({"by": "loss", "q": 2.0}, {"a": 2.5, "b": 1.2}),
    ],
)
def test_two_silos_of_losses_a_half_and_a_fifth(keys: dict[str, Any], expected: dict[str, float]) -> None:
    found = weigh(rules(**keys), IMAGES, {"a": 0.5, "b": 0.2})
    assert {silo: each.value for silo, each in found.items()} == pytest.approx(expected, rel=1e-12)


def test_the_reason_is_said() -> None:
    found = weigh(rules(by="loss", q=1.0), IMAGES, {"a": 0.5, "b": 0.2})
    assert words(found) == (
        "a 45.5% (10 images, loss 0.5 to the power of 1); b 54.5% (30 images, loss 0.2 to the power of 1)"
    )


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e-7, 1.1e6, 1e300, math.inf, -math.inf, math.nan])
def test_a_loss_that_cannot_be_is_refused_with_its_silo(loss: float) -> None:
    with pytest.raises(BadUpdate, match="a: it told a first_loss of") as caught:
        weigh(rules(by="loss", q=2.0), IMAGES, {"a": loss, "b": 0.2})
    assert caught.value.silo == "a"


def test_no_loss_is_refused_where_it_is_needed() -> None:
    with pytest.raises(BadUpdate, match="b: it told no first_loss"):
        weigh(rules(by="loss", q=2.0), IMAGES, {"a": 0.5})
    assert weigh(rules(by="uniform"), IMAGES, {})["b"].value == 1


def test_the_largest_power_of_the_largest_loss_is_finite() -> None:
    for loss in (1e-6, 1e6):
        weight = weigh(rules(by="loss", q=20.0), {"a": 1 << 40}, {"a": loss})["a"].value
        assert 1e-200 < weight < 1e200
