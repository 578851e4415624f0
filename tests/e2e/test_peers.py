"""Silos that average for each other: the bits of the star, on the same seeds; bytes; nothing at the federator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stage import FEDERATOR, Hospital, Stage

from feddiff.core.errors import ConfigError
from feddiff.silo.peers import errands

ROUNDS = 3
SAMPLES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}


def trained(
    folder: Path, plan: str, codec: str, silos: int = 3, more: str = "", killed: str = ""
) -> tuple[Stage, list[Hospital]]:
    """A federation at its end; ``more``: lines before [model]; ``killed``: when the federator says this."""
    stage = Stage(folder)
    stage.found(plan, ROUNDS, silos, scale=3)
    text = stage.rules.read_text().replace("[codec]\n", f'[codec]\nup = "{codec}"\ndown = "{codec}"\n')
    stage.rules.write_text(f"{more}\n{text}")
    stage.peers = bool(more)
    try:
        server = stage.serve()
        hospitals = [stage.hospital(name, SAMPLES[name]).start() for name in list(SAMPLES)[:silos]]
        if killed:
            stage.until(killed, lambda: killed in server.told())
            server.kill()
            server = stage.serve()
        stage.until("the federation ends", lambda: server.code is not None)
        assert server.code == 0, server.told()
        for hospital in hospitals:
            stage.until(f"{hospital.name} hears that it is over", lambda silo=hospital: silo.finished)
    finally:
        print(stage.close())
    return stage, hospitals


@pytest.mark.parametrize(
    ("plan", "codec"), [("full", "fp32"), ("full", "int4"), ("usplit", "int8"), ("ulatdec", "int4"), ("udec", "int8")]
)
def test_peers_publish_the_bits_of_the_star(tmp_path: Path, plan: str, codec: str) -> None:
    same(tmp_path, plan, codec)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "codec"),
    [
        ("full", "int8"),
        ("usplit", "fp32"),
        ("usplit", "int4"),
        ("ulatdec", "fp32"),
        ("ulatdec", "int8"),
        ("udec", "fp32"),
        ("udec", "int4"),
    ],
)
def test_peers_publish_the_bits_of_the_star_in_all_other_pairs(tmp_path: Path, plan: str, codec: str) -> None:
    same(tmp_path, plan, codec)


@pytest.mark.parametrize("phase", ["round 2, revision 2", "fetch what the round made"])
def test_a_federator_that_is_killed_goes_on_with_the_round(tmp_path: Path, phase: str) -> None:
    same(tmp_path, "full", "int8", phase)


def same(folder: Path, plan: str, codec: str, killed: str = "") -> None:
    """Star and peers come to the same bits, and train from them."""
    star, mine = trained(folder / "star", plan, codec)
    peer, theirs = trained(folder / "peer", plan, codec, more='topology = "peer"\npeer.checkpoint = 1', killed=killed)
    current = star.opened().journal.current()
    assert peer.opened().journal.current() == current
    for segment, version in current.items():
        for each in range(version + 1):
            assert np.array_equal(star.published(segment, each), peer.published(segment, each)), (segment, each)
    for one, other in zip(mine, theirs, strict=True):
        for number in range(1, ROUNDS + 1):
            start, again = one.start_of(number), other.start_of(number)
            assert all(np.array_equal(start[name], again[name]) for name in start), (one.name, number)


def test_bytes_are_those_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "BEAT_S", 0.0)  # every chunk asks whether the range is still wanted
    stage, hospitals = trained(tmp_path, "full", "fp32", more='topology = "peer"')
    flows = json.loads(stage.operate("ledger", "--peers", "--json"))
    whole, names = stage.layout.size, [hospital.name for hospital in hospitals]
    plans = stage.opened().journal.fact("owners")
    assert plans is not None
    owners: dict[str, int] = dict.fromkeys(names, 0)
    for segment, first, end, owner in json.loads(plans)["owners"]:
        owners[owner] += min(end * 1024, stage.layout[segment].size) - first * 1024
    for kind in ("update", "result"):
        moved = [flow for flow in flows if flow["kind"] == kind]
        assert all(flow["agreed"] for flow in moved)
        # Each of K silos sends its update to the owners of what is not its own, and fetches that from them.
        assert sum(flow["parameters"] for flow in moved) == ROUNDS * (len(names) - 1) * whole
    last = [flow for flow in flows if flow["round"] == ROUNDS and flow["kind"] != "other"]
    for name in names:
        sent = sum(flow["parameters"] for flow in last if flow["source"] == name)
        got = sum(flow["parameters"] for flow in last if flow["target"] == name)
        # (|θ| - own) + (K - 1) own, either way: 2 (K - 1) / K |θ| where all own as much.
        assert sent == got == whole + (len(names) - 2) * owners[name]
    assert not any(flow["source"] == flow["target"] for flow in flows)
    # The federator: the first model to each silo, and then no weights at all.
    crossed = [row for row in stage.ledger() if row["parameters"]]
    assert {(row["round"], row["direction"]) for row in crossed} == {(1, "down")}
    assert sum(row["parameters"] for row in crossed) == len(names) * whole
    assert not list((stage.home / "spool").glob("**/*.transfer"))
    assert {path.name.partition("@")[2] for path in (stage.home / "weights").iterdir()} == {"0.safetensors"}
    assert "total" in stage.operate("ledger", "--peers")
    done = stage.call(FEDERATOR, "export", str(tmp_path / "out"), "--config", str(stage.rules))
    assert done.code == ConfigError.exit_code
    assert "peer.checkpoint" in done.err


def test_who_does_not_listen_takes_part_where_the_rules_allow_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.found(rounds=2, silos=3, scale=2)
    stage.rules.write_text(f'topology = "mixed"\npeer.checkpoint = 1\n{stage.rules.read_text()}')
    stage.peers = True
    try:
        server = stage.serve()
        hospitals = [stage.hospital(name, SAMPLES[name]) for name in SAMPLES]
        hospitals[2].listen = ""
        for hospital in hospitals:
            hospital.start()
        stage.until("the federation ends", lambda: server.code is not None)
        assert server.code == 0
    finally:
        print(stage.close())
    assert [each.silos for each in stage.opened().journal.rounds()] == [tuple(SAMPLES)] * 2
    flows = list(stage.opened().tally.flows())
    assert {flow.source for flow in flows if flow.kind == "result"} == {"hospital-a", "hospital-b"}
    assert {flow.source for flow in flows if flow.kind == "update"} == set(SAMPLES)
    for name in stage.layout.names:
        total = sum(h.samples * h.result_of(2)[name].astype(np.float64) for h in hospitals)
        mean = (total / sum(SAMPLES.values())).astype(np.float32)
        np.testing.assert_allclose(stage.published(name, 2), mean, rtol=1e-6, atol=1e-7)


def test_a_silo_that_must_listen_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.found(rounds=1, silos=2)
    stage.rules.write_text(f'topology = "peer"\n{stage.rules.read_text()}')
    try:
        stage.serve()
        hospital = stage.hospital("hospital-a").start()
        with pytest.raises(AssertionError, match="start with --listen HOST:PORT"):
            stage.until("it is refused", lambda: False, 60)
        assert isinstance(hospital.error, ConfigError)
    finally:
        print(stage.close())
