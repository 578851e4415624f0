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


@pytest.mark.parametrize(
    ("rounds", "names"),
    [
        ({"participants": 5, "sampled": 6}, "sampled 6 is more than participants 5"),
        ({"participants": 5, "sampled": 3, "quorum": 4}, "quorum 4 is more than sampled 3"),
        ({"participants": 5, "sampled": 0}, "rounds.sampled"),
        ({"participants": 5, "sampled": True}, "rounds.sampled"),
    ],
)
def test_a_sample_is_of_the_participants_and_the_quorum_of_the_sample(rounds: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        digits(rounds=rounds)


def test_a_budget_takes_no_sample() -> None:
    with pytest.raises(ConfigError, match=r"rounds\.sampled"):
        digits(plan="budget", budget={"bytes_per_silo": 10**6}, rounds={"sampled": 1})


def test_federations_that_began_before_there_were_samples_keep_their_digest() -> None:
    old = digits(rounds={"count": 3, "participants": 5, "quorum": 4})
    assert old.digest == "55789d90a4c684ebaa066b37227ccb29efb075a767aab8d5ba0d17e35dab86bf"
    assert digits(rounds={"count": 3, "participants": 5, "quorum": 4, "sampled": 4}).digest != old.digest
    assert parse(old.canonical()) == old


@pytest.mark.parametrize(
    ("rounds", "needed"),
    [({}, 5), ({"quorum": 2}, 2), ({"sampled": 3}, 3), ({"sampled": 3, "quorum": 2}, 2)],
)
def test_what_a_round_cannot_do_without(rounds: dict[str, int], needed: int) -> None:
    assert digits(rounds={"participants": 5, **rounds}).rounds.needed == needed


OLD = "55789d90a4c684ebaa066b37227ccb29efb075a767aab8d5ba0d17e35dab86bf"
"""Of the rules of the test before, by a federator that knew none of these keys."""


@pytest.mark.parametrize(
    ("section", "key", "default", "other"),
    [
        ("training", "proximal", 0.0, 0.1),
        ("training", "accumulate", 1, 2),
        ("training", "schedule", "constant", "cosine"),
        ("training", "warmup", 0, 2),
        ("training", "clip", None, 1.0),
        ("weights", "by", "samples", "uniform"),
        ("outer", "ema", 0.0, 0.5),
    ],
)
def test_a_later_key_is_in_the_digest_only_if_it_changes_anything(
    section: str, key: str, default: object, other: object
) -> None:
    rounds = {"count": 3, "participants": 5, "quorum": 4}
    assert digits(rounds=rounds, **{section: {key: default}}).digest == OLD
    changed = digits(rounds=rounds, **{section: {key: other}})
    assert changed.digest != OLD
    assert parse(changed.canonical()) == changed


@pytest.mark.parametrize(
    ("tables", "names"),
    [
        ({"training": {"proximal": -1.0}}, r"training\.proximal"),
        ({"training": {"clip": 0.0}}, r"training\.clip"),
        ({"training": {"accumulate": 0}}, r"training\.accumulate"),
        ({"training": {"schedule": "step"}}, r"training\.schedule"),
        ({"training": {"warmup": 3}}, r"training\.warmup 3 is not less than rounds\.count 3"),
        ({"weights": {"by": "size"}}, r"weights\.by"),
        ({"weights": {"by": "loss"}}, 'weights: by = "loss" needs q'),
        ({"weights": {"q": 1.0}}, 'weights: by = "loss" needs q'),
        ({"weights": {"by": "loss", "q": 21.0}}, r"weights\.q"),
        ({"outer": {"ema": 1.0}}, r"outer\.ema"),
        ({"pool": {"alpha": 0.5}}, r"'pool\.beta' is missing"),
        ({"pool": {"alpha": 1.5, "beta": 0.1}}, r"pool\.alpha"),
        ({"pool": {"alpha": 0.5, "beta": 0.0}}, r"pool\.beta"),
        ({"pool": {"alpha": 0.0, "beta": 0.1}}, "leave nothing to do with the images; leave"),
        ({"pool": {"alpha": 0.5, "beta": 0.1, "gamma": 1}}, r"unknown key 'pool\.gamma'; known here: alpha, beta"),
        ({"initial": "seed", "pool": {"alpha": 0.5, "beta": 0.1, "warmup": 5}}, 'set "send"'),
        (
            {"plan": "budget", "budget": {"bytes_per_silo": 10**6}, "pool": {"alpha": 0.5, "beta": 0.1}},
            r"leave \[pool\] out",
        ),
        ({"plan": "ulatdec", "outer": {"ema": 0.5}}, r"outer\.ema is of the global model"),
    ],
)
def test_what_cannot_be_meant_is_refused(tables: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        digits(rounds={"count": 3}, **tables)


def test_a_pool_is_in_the_digest_and_may_go_with_a_model_from_the_seed_if_none_is_warmed_up() -> None:
    rounds = {"count": 3, "participants": 5, "quorum": 4}
    assert digits(rounds=rounds).pool is None
    shared = digits(rounds=rounds, initial="seed", pool={"alpha": 1, "beta": 0.25})
    assert shared.digest not in (OLD, digits(rounds=rounds, initial="seed").digest)
    assert parse(shared.canonical()) == shared
    assert shared.pool is not None
    assert (shared.pool.alpha, shared.pool.warmup) == (1.0, 0)
