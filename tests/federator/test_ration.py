"""Echoes are rationed: by bytes, by number, each silo for itself, and again after the period."""

from __future__ import annotations

import pytest

from feddiff.core.errors import TransferError
from feddiff.federator.probe import MAX_ECHO_BYTES, PERIOD_S, RATION_BYTES, RATION_CALLS, Ration


def test_bytes() -> None:
    clock = [0.0]
    ration = Ration(lambda: clock[0])
    for second in range(RATION_BYTES // MAX_ECHO_BYTES):
        clock[0] = float(second)
        ration.take("hospital-a", MAX_ECHO_BYTES)
    with pytest.raises(TransferError, match="hospital-a has measured its line enough for now; again in 10 min"):
        ration.take("hospital-a", 1)
    ration.take("hospital-b", MAX_ECHO_BYTES)
    clock[0] = PERIOD_S - 0.5
    with pytest.raises(TransferError):
        ration.take("hospital-a", 1)
    clock[0] = PERIOD_S
    ration.take("hospital-a", MAX_ECHO_BYTES)
    with pytest.raises(TransferError):
        ration.take("hospital-a", 1)


def test_number() -> None:
    ration = Ration(lambda: 0.0)
    for _ in range(RATION_CALLS):
        ration.take("hospital-a", 0)
    with pytest.raises(TransferError):
        ration.take("hospital-a", 0)
