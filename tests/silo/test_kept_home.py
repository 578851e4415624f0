"""A silo's daemon hands out nothing that the rules keep at home, whatever a federator's task asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from feddiff.core.config import from_table
from feddiff.core.errors import ProtocolError
from feddiff.core.spool import Manifest
from feddiff.silo.client import Client, Welcome
from feddiff.silo.daemon import Silo
from feddiff.silo.display import Display
from feddiff.silo.learner import Learner
from feddiff.silo.local import Local
from feddiff.silo.session import Held, RoundWork, Task


class Federator:
    """Welcomes a silo with its rules, then asks for one segment, and says that none is personal."""

    def __init__(self, segment: str, **rules: Any) -> None:
        self.segment, self.rules = segment, from_table({"preset": "digits-8", **rules}, "test").canonical()

    def join(self, *_: object, **__: object) -> Welcome:
        return Welcome(self.rules, "", b"")

    def task(self, known: str, held: Mapping[str, Held]) -> Task:
        up = Manifest(f"up.1.hospital.{self.segment}", self.segment, 0, 1, "fp32", 10, 1024)
        return Task("round-1", "open", RoundWork(1, (), (up,), {}, (), 0))


@pytest.mark.parametrize(
    ("segment", "rules"),
    [
        ("decoder.1", {"personal": ["decoder.1"]}),
        ("decoder.0", {"personal": ["decoder"], "plan": "ulatdec"}),
        ("encoder.in", {"plan": "ulatdec"}),
        ("bottleneck", {"plan": "udec"}),
    ],
)
def test_a_task_that_asks_for_it_is_refused(tmp_path: Path, segment: str, rules: dict[str, Any]) -> None:
    learner = SimpleNamespace(gauge=None, samples=1, labels={}, device="", layout_digest="")
    client = cast(Client, Federator(segment, **rules))
    local = Local(tmp_path / "state")
    silo = Silo("hospital", local, client, lambda _: cast(Learner, learner), Display(bars=False))
    with pytest.raises(ProtocolError, match=f"asks for {segment}, which by the rules never leaves"):
        silo.run()
    local.close()
