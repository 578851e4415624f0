"""bench/host.py: several silos in one process, which ends with the first of them that fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from feddiff.bench import host, trial
from feddiff.bench.loopback import free_port
from feddiff.core.config import FederationConfig
from feddiff.core.errors import FedDiffError, IdentityError
from feddiff.core.identity import Invitation
from feddiff.silo.learner import Learner

RULES = """\
preset = "digits-8"
rounds = {count = 50, participants = 2}
training = {steps = 1000, threads = 1}
"""


def test_one_that_fails_stops_those_that_wait(tmp_path: Path) -> None:
    """Nobody answers at the address, where the others would ask for ever."""
    address = f"127.0.0.1:{free_port()}"
    tokens = {name: Invitation(name, address, bytes(32), bytes(32)).token() for name in ("a", "b", "c")}
    tokens["b"] = "fdi1_rubbish"

    def learner(name: str, config: FederationConfig) -> Learner:
        raise AssertionError

    before = set(threading.enumerate())
    failed = host.host(address, tmp_path, tokens, learner)
    assert list(failed) == ["b"]
    assert isinstance(failed["b"], IdentityError)
    assert set(threading.enumerate()) == before


def test_a_federation_ends_with_the_silo_that_has_no_images(tmp_path: Path) -> None:
    """Real daemons; the other silo of the process would train for long."""
    names = trial.deal(tmp_path / "data", 2, seed=0)
    for image in (tmp_path / "data" / names[1]).rglob("*.png"):
        image.write_bytes(b"nothing")
    with pytest.raises(FedDiffError, match=rf"silos-1 ended with 1: {names[1]}: The images cannot be used: ") as ended:
        trial.federate(RULES, names, tmp_path, processes=1)
    assert f"log is {tmp_path / 'silos-1.log'}" in str(ended.value)
