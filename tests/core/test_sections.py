"""core/sections.py: a value of the wrong type is refused, not made to fit."""

from __future__ import annotations

from typing import Any

import pytest

from feddiff.core.config import FederationConfig, from_table, parse
from feddiff.core.errors import ConfigError


def digits(**sections: Any) -> FederationConfig:
    return from_table({"preset": "digits-16", **sections}, "rules.toml")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("rounds", "count", True),
        ("rounds", "count", 2.0),
        ("rounds", "participants", "3"),
        ("rounds", "grace", "300"),
        ("rounds", "deadline", True),
        ("training", "horizontal_flip", 1),
        ("training", "learning_rate", "1e-4"),
        ("codec", "delta", "yes"),
        ("codec", "up", 32),
        ("outer", "learning_rate", True),
        ("data", "classes", [1, 2]),
    ],
)
def test_another_type_is_refused_and_named(section: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        digits(**{section: {key: value}})
    assert f"{section}.{key}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("seed", "0"), ("seed", 1.0), ("seed", True), ("name", 5)])
def test_so_at_the_top(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        digits(**{key: value})


def test_what_toml_and_json_write_in_another_way_is_right() -> None:
    """A whole number is a good number of seconds; an array is TOML's and JSON's way to write names."""
    config = digits(rounds={"grace": 5, "participants": 3}, data={"classes": [str(each) for each in range(10)]})
    assert (config.rounds.grace, len(config.data.classes)) == (5.0, 10)
    assert parse(config.canonical()) == config
