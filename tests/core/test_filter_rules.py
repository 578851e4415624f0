"""core/filtering.py and rounds.sampling in the rules: what makes no sense is refused in a line that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError

QUALITY = {"extractor": "ab" * 32, "silos": True}


def rules(**more: Any) -> FederationConfig:
    rounds = {"count": 10, "participants": 5, "quorum": 3}
    return from_table({"preset": "digits-8", "rounds": rounds, "quality": QUALITY, **more}, "rules.toml")


def test_a_filter_has_phoenix_defaults() -> None:
    found = rules(filter={}).filter
    assert found is not None
    assert (found.rule, found.metric, found.since, found.out) == ("lowest", "precision", 5, "good")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"filter": {"rule": "threshold"}}, 'rule = "threshold" needs a threshold'),
        ({"filter": {"threshold": 0.5}}, 'rule = "threshold" needs a threshold'),
        ({"filter": {"margin": 0.1}}, 'margin goes with rule = "average"'),
        ({"filter": {"metric": "fid"}}, "filter.metric"),
        ({"filter": {"from": 3}}, "unknown key 'filter.from'; known here: margin, metric, out, rule, since, threshold"),
        ({"filter": {}, "quality": {"extractor": "ab" * 32}}, "give [quality] with silos = true"),
        ({"filter": {}, "rounds": {"count": 10, "participants": 5}}, "set rounds.quorum to the fewest"),
        ({"filter": {"since": 8}}, None),
        ({"filter": {"since": 9}}, "lower filter.since or quality.every"),
        ({"filter": {"since": 3}, "quality": {**QUALITY, "every": 3}}, None),
        ({"filter": {"since": 4}, "quality": {**QUALITY, "every": 4}}, None),
        ({"filter": {"since": 5}, "quality": {**QUALITY, "every": 4}}, "lower filter.since or quality.every"),
        ({"filter": {}, "quality": {"extractor": "ab" * 32}, "plan": "udec"}, None),
        ({"rounds": {"sampling": "size"}}, "say how many: sampled = N"),
        ({"rounds": {"participants": 5, "sampled": 2, "sampling": "size"}}, 'set weights.by = "uniform"'),
        ({"rounds": {"participants": 5, "sampled": 2, "sampling": "size"}, "weights": {"by": "uniform"}}, None),
        ({"rounds": {"participants": 5, "sampled": 2, "sampling": "availability"}}, None),
        ({"rounds": {"participants": 5, "sampled": 2, "sampling": "random"}}, "rounds.sampling"),
    ],
)
def test_what_makes_sense_and_what_does_not(more: dict[str, Any], said: str | None) -> None:
    if said is None:
        rules(**more)
        return
    with pytest.raises(ConfigError) as caught:
        rules(**more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_without_them_keep_their_text() -> None:
    text = rules().canonical().decode()
    assert "filter" not in text
    assert "sampling" not in text
    sampled = rules(rounds={"participants": 5, "sampled": 2, "sampling": "uniform"})
    assert sampled.digest == rules(rounds={"participants": 5, "sampled": 2}).digest
    assert '"filter":{' in rules(filter={}).canonical().decode()
