"""core/topology.py: what goes with silos that average, and that rules without it are the rules of before."""

from __future__ import annotations

from typing import Any

import pytest

from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.core.topology import PeerConfig

MODEL = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
QUALITY = {"extractor": "ab" * 32}


def test_the_star_needs_no_word() -> None:
    plain = from_table({"model": MODEL}, "test")
    assert not plain.peers
    assert plain.digest == from_table({"model": MODEL, "topology": "star", "peer": {"checked": 2}}, "test").digest
    assert b"topology" not in plain.canonical()
    peers = from_table({"model": MODEL, "topology": "peer"}, "test")
    assert peers.peers
    assert b'"topology":"peer"' in peers.canonical()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"topology": "ring"}, "topology"),
        ({"topology": "star", "peer": {"checkpoint": 1}}, "leave it out"),
        ({"plan": "budget", "budget": {"bytes_per_silo": 1 << 20}}, "budget"),
        ({"pool": {"beta": 0.1, "alpha": 0.5}}, r"\[pool\]"),
        ({"quality": QUALITY}, r"\[quality\]"),
        ({"outer": {"optimizer": "adam"}}, "moments"),
        ({"outer": {"ema": 0.9}}, "outer.ema"),
        ({"rounds": {"participants": 3, "sampled": 2}}, "rounds.sampled"),
        ({"peer": {"checked": -1}}, "peer.checked"),
    ],
)
def test_what_needs_the_weights_at_the_federator_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        from_table({"model": MODEL, "topology": "peer", **table}, "test")
    assert "\n" not in str(error.value)


def test_checkpoints_are_every_so_many_rounds_and_at_the_end() -> None:
    assert [round for round in range(1, 8) if PeerConfig(checkpoint=3).due(round, 7)] == [3, 6, 7]
    assert not any(PeerConfig().due(round, 7) for round in range(1, 8))
