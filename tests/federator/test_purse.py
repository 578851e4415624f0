"""A budget in a running federation: silos that lose, lack or repeat too much; rounds in which some do not report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.config import from_table
from feddiff.core.errors import NotSelected, RoundClosed
from feddiff.core.segments import cut
from feddiff.core.store import WeightsReader, save
from feddiff.core.transfer import Standing
from feddiff.federator import operator
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Entry
from feddiff.federator.lookout import look
from feddiff.federator.purse import afford
from feddiff.federator.rounds import decide

LAYOUT = cut([("conv_in.weight", (3000,)), ("mid_block.a", (25_000,)), ("up_blocks.0.a", (15_000,))])
A, B, C = "clinic-a", "clinic-b", "clinic-c"


def begun(folder: Path, **budget: Any) -> Federation:
    """Version 0 is published; A and B hold it, C holds nothing; all have joined."""
    table = {
        "plan": "budget",
        "initial": "seed",
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "codec": {"chunk_elements": 1024},
        "rounds": {"count": 9, "participants": 3, "quorum": 2, "grace": 5.0, "deadline": 100.0},
        "budget": budget or {"bytes_per_silo": 150_000},
    }
    federation = Federation(folder, from_table(table, "test"), LAYOUT, Database(folder / "federation.db"))
    import numpy as np

    values = {segment.name: np.random.default_rng(0).standard_normal(segment.size, "f4") for segment in LAYOUT.segments}
    with WeightsReader(save(folder / "initial.safetensors", values)) as reader:
        for name in LAYOUT.names:
            federation.versions.publish_initial(name, reader)
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    for serial, silo in enumerate((A, B, C)):
        federation.roster.invite(silo, b"pem", f"print-{serial}", time.time() + 60)
        federation.roster.enroll(silo, f"print-{serial}", f"key-{serial}", serial, time.time())
        held = {} if silo == C else dict.fromkeys(LAYOUT.names, 0)
        federation.join(silo, 10, {}, held, "cpu", "feddiff")
    return federation


def decided(federation: Federation, seconds: float = 0.0) -> tuple[str, str]:
    now = time.monotonic() + seconds
    found = decide(now, look(federation, now), federation.config.rounds)
    return found.action, found.reason


def commit(federation: Federation, silo: str) -> None:
    for manifest in federation.uploads(silo):
        cost = Entry(1, silo, manifest.segment, "up")
        federation.committed_segment(silo, 1, manifest.segment, b"digest", cost)


def test_a_newcomer_is_given_what_it_can_afford_and_holds_nobody_up(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    federation.begin_round([A, B, C], "")
    work = federation.work(C)
    assert work is not None
    assert not work.up
    assert [each.segment for each in work.down] == ["encoder.in", "bottleneck"]
    assert work.start == {"encoder.in": 0, "bottleneck": 0}
    with pytest.raises(NotSelected):
        federation.check_transfers(C, [federation.versions.manifest("decoder.0", -1, 0)])
    assert federation.round is not None
    assert federation.round.plan.reporting == (A, B)
    commit(federation, A)
    assert decided(federation)[0] == "wait"
    commit(federation, B)
    assert decided(federation) == ("fold", "all 2 updates are in")
    federation.hear(C, {"encoder.in": 0, "bottleneck": 0})
    assert federation.work(C) is None


def test_a_round_in_which_nobody_reports_lasts_until_all_have_theirs(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    for silo in (A, B):
        federation.hear(silo, {})
    opened = federation.begin_round([A, B], "")
    assert opened.plan.reporting == ()
    assert federation.complete_updates() == set()
    assert decided(federation)[0] == "wait"
    for silo in (A, B):
        federation.hear(silo, {"encoder.in": 0, "bottleneck": 0})
    assert decided(federation)[0] == "fold"
    federation.published({}, ())
    again = federation.begin_round([A, B], "")
    assert again.plan.reporting == (A, B)


def test_a_round_that_has_nothing_for_anybody_does_not_chase_the_next(tmp_path: Path) -> None:
    federation = begun(tmp_path, deadline=1.0, link_mbit=0.001)
    opened = federation.begin_round([A, B, C], "")
    assert "no silo can afford" in opened.plan.reason
    assert [federation.work(silo) for silo in (A, B, C)] == [None] * 3
    assert decided(federation)[0] == "wait"
    assert decided(federation, 6.0)[0] == "fold"


def test_a_silo_that_loses_what_it_held_gets_it_in_the_next_round(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    federation.begin_round([A, B], "")
    federation.hear(A, {"encoder.in": 0})
    assert federation.work(A) is None
    assert "overspend" in federation.journal.rejections(1)[A]
    assert federation.work(B) is not None
    federation.published({}, ())
    opened = federation.begin_round([A, B], "")
    assert "catches up" in opened.plan.assignments[0].reason
    assert federation.work(A) is not None


def test_who_has_reported_is_known_to_hold_what_it_trained_on_before_it_says_so(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    federation.hear(A, {"bottleneck": 0, "decoder.0": 0})
    opened = federation.begin_round([A, B], "")
    assert opened.plan.reporting == (A, B)
    assert opened.plan.assignments[0].spending is not None
    assert opened.plan.assignments[0].spending.down > 0
    commit(federation, A)
    federation.published({}, (A,))
    spending = federation.begin_round([A, B], "").plan.assignments[0].spending
    assert spending is not None
    assert spending.down == 0


def test_transfers_that_break_off_too_often_end_a_silos_round(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    opened = federation.begin_round([A, B], "")
    spending = opened.plan.assignments[0].spending
    assert spending is not None
    nothing = [Standing()] * len(federation.uploads(A))
    left = int(spending.allowance.limit) - spending.up
    federation.ledger.add(Entry(1, A, OVERHEAD, "up", wire=10**9))  # not a transfer's
    federation.ledger.add(Entry(1, A, "bottleneck", "up", wire=left))
    afford(federation, A, "up", federation.uploads(A), nothing)
    federation.ledger.add(Entry(1, A, "bottleneck", "up", wire=1))
    half = [Standing(chunks=each.chunks // 2) for each in federation.uploads(A)]
    afford(federation, A, "up", federation.uploads(A), half)
    with pytest.raises(RoundClosed, match="broke off"):
        afford(federation, A, "up", federation.uploads(A), nothing)
    assert federation.work(A) is None
    afford(federation, B, "up", federation.uploads(B), nothing)


def test_a_federations_budget_serves_as_many_silos_as_it_can(tmp_path: Path) -> None:
    federation = begun(tmp_path, bytes_per_round=95_000)
    opened = federation.begin_round([A, B, C], "")
    served = [each.silo for each in opened.plan.assignments if each.spending and each.spending.allowance.limit > 0]
    assert served == [A, B]
    assert sum(each.spending.down + each.spending.up for each in opened.plan.assignments if each.spending) <= 95_000
    assert "sits out" in next(each.reason for each in opened.plan.assignments if each.silo == C)


def test_what_the_protocol_cost_is_kept_back_the_next_time(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    assert federation.purse is not None
    before = federation.purse.allowance(A, 5, 3)
    federation.ledger.add(Entry(1, A, OVERHEAD, "up", wire=10**6))  # enrolment and joining
    assert federation.purse.allowance(A, 5, 3) == before
    federation.ledger.add(Entry(4, A, OVERHEAD, "down", wire=30_000), Entry(4, A, OVERHEAD, "up", wire=10_000))
    assert federation.purse.allowance(A, 5, 3).reserve == 60_000
    assert federation.purse.allowance(A, 5, 3).limit == 150_000 - 60_000
    assert federation.purse.allowance(A, 9, 3) == before


def test_status_tells_the_plan_and_the_links(tmp_path: Path) -> None:
    federation = begun(tmp_path, deadline=20.0, link_mbit=0.1)
    federation.ledger.add(Entry(0, B, "bottleneck", "up", wire=10**6, seconds=8.0))
    opened = federation.begin_round([A, B, C], "")
    reply = operator.status(federation, live=True)
    assert reply.plan == opened.plan.reason
    assert [silo.plan for silo in reply.silos] == [each.reason for each in opened.plan.assignments]
    assert [(silo.down_mbit, silo.up_mbit) for silo in reply.silos] == [(0, 0), (0, 1.0), (0, 0)]
    assert "0.1 Mbit/s down and 1 up" in reply.silos[1].plan
    assert reply.silos[1].plan.startswith("reports as ")
