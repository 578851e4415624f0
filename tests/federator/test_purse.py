"""A budget in a running federation: silos that lose, lack or repeat too much; rounds in which some do not report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.codec import CODECS
from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError, NotSelected, RoundClosed
from feddiff.core.segments import cut
from feddiff.core.spool import Spool, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.core.transfer import Standing
from feddiff.federator import operator
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Entry
from feddiff.federator.lookout import look
from feddiff.federator.publisher import Publisher
from feddiff.federator.purse import afford
from feddiff.federator.rounds import decide

LAYOUT = cut([("conv_in.weight", (3000,)), ("mid_block.a", (25_000,)), ("up_blocks.0.a", (15_000,))])
A, B, C = "clinic-a", "clinic-b", "clinic-c"


def begun(folder: Path, initial: str = "seed", **budget: Any) -> Federation:
    """Version 0 is published; A and B hold it, C holds nothing; all have joined."""
    table = {
        "plan": "budget",
        "initial": initial,
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
    turns = [each.reason for each in opened.plan.assignments if "waits for its turn" in each.reason]
    assert turns == ["waits for its turn: bytes_per_round serves 2 of 3 silos in a round"]


def served(federation: Federation, *silos: str) -> set[str]:
    """Those of three silos that a new round serves, which is over at once."""
    opened = federation.begin_round(silos or [A, B, C], "")
    federation.published({}, ())
    return {each.silo for each in opened.plan.assignments if "waits for its turn" not in each.reason}


def test_a_federations_budget_serves_its_silos_in_turn(tmp_path: Path) -> None:
    federation = begun(tmp_path, bytes_per_round=95_000)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    assert [served(federation) for _ in range(6)] == [{A, B}, {A, C}, {B, C}, {A, B}, {A, C}, {B, C}]


def test_who_comes_late_is_not_served_before_all_others_for_long(tmp_path: Path) -> None:
    federation = begun(tmp_path, bytes_per_round=95_000)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    for _ in range(6):
        served(federation, A, B)
    assert [served(federation) for _ in range(3)] == [{A, C}, {B, C}, {A, B}]


def test_what_a_silo_says_that_is_not_served_is_paid_from_the_same_bytes(tmp_path: Path) -> None:
    federation = begun(tmp_path, bytes_per_round=200_000)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    assert served(federation) == {A, B, C}
    federation.published({}, ())
    for silo in (A, B, C):
        federation.ledger.add(*(Entry(round, silo, OVERHEAD, "up", wire=40_000) for round in (2, 3)))
    opened = federation.begin_round([A, B, C], "")
    allowances = [each.spending.allowance for each in opened.plan.assignments if each.spending]
    assert [allowance.limit > 0 for allowance in allowances] == [True, True, False]
    assert sum(allowance.limit + allowance.reserve for allowance in allowances) == 200_000 - 60_000


def test_when_nobody_is_left_at_the_moment_of_planning(tmp_path: Path) -> None:
    federation = begun(tmp_path, bytes_per_round=300_000)
    federation.evict(A, "left")
    assert federation.begin_round([A], "").plan.assignments == ()
    assert decided(federation)[0] == "fold"


def test_what_the_protocol_cost_is_kept_back_the_next_time(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    assert federation.purse is not None
    before = federation.purse.allowance(A, 5, 150_000)
    federation.ledger.add(Entry(1, A, OVERHEAD, "up", wire=10**6))  # enrolment and joining
    assert federation.purse.allowance(A, 5, 150_000) == before
    federation.ledger.add(Entry(4, A, OVERHEAD, "down", wire=30_000), Entry(4, A, OVERHEAD, "up", wire=10_000))
    assert federation.purse.allowance(A, 5, 150_000).reserve == 60_000
    assert federation.purse.allowance(A, 5, 150_000).limit == 150_000 - 60_000
    assert federation.purse.allowance(A, 9, 150_000) == before


def test_a_weekend_of_waiting_does_not_eat_the_rounds_that_follow(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    for number in range(1, 9):
        opened = federation.begin_round([A, B, C], "")
        assert opened.plan.reporting == (A, B, C), opened.plan.reason
        reserves = [each.spending.allowance.reserve for each in opened.plan.assignments if each.spending]
        assert max(reserves) <= 150_000 // 2
        if number > 5:
            assert max(reserves) < 20_000  # one bad round of four says nothing
        for silo in (A, B, C):
            federation.ledger.add(Entry(number, silo, OVERHEAD, "up", wire=5000 if number != 4 else 10**7))
        federation.published({}, ())


@pytest.mark.parametrize("initial", ["seed", "send"])
def test_the_reserve_never_takes_what_the_rules_promise(tmp_path: Path, initial: str) -> None:
    federation = begun(tmp_path, initial, bytes_per_silo=1)
    assert federation.purse is not None
    with pytest.raises(ConfigError) as refused:
        federation.purse.check()
    enough = int(str(refused.value).split("bytes_per_silo = ")[1].split()[0])
    (tmp_path / "enough").mkdir()
    federation = begun(tmp_path / "enough", initial, bytes_per_silo=enough)
    for number in range(2, 9):
        federation.ledger.add(*(Entry(number, silo, OVERHEAD, "up", wire=10**6) for silo in (A, B, C)))
    late = []
    for _ in range(8):
        opened = federation.begin_round([A, B, C], "")
        assert {A, B} <= set(opened.plan.reporting)
        late.append(C in opened.plan.reporting)
        work = federation.work(C)
        if work is not None:
            federation.hear(C, federation.presence[C].held | work.start)
        federation.published({}, ())
    assert late[-1] == (initial == "send")


def test_fewer_than_the_quorum_do_not_report(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    federation.hear(B, {})
    opened = federation.begin_round([A, B, C], "")
    assert opened.plan.reporting == ()
    assert "1 of 3 silos could report, and the quorum is 2: nobody does" in opened.plan.reason
    assert federation.work(A) is None
    work = federation.work(B)
    assert work is not None
    federation.hear(B, work.start)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    assert decided(federation)[0] == "fold"
    federation.published({}, ())
    assert federation.begin_round([A, B, C], "").plan.reporting == (A, B, C)


def test_a_round_in_which_nobody_could_do_anything_waits_until_links_may_have_recovered(tmp_path: Path) -> None:
    federation = begun(tmp_path, deadline=20.0, link_mbit=0.1)
    for way in ("down", "up"):
        federation.ledger.add(*(Entry(1, silo, "bottleneck", way, wire=10**6, seconds=10**5) for silo in (A, B, C)))
    federation.begin_round([A, B], "")
    federation.published({}, ())
    action, reason = decided(federation)
    assert action == "wait"
    assert "round 2 would have nothing for anybody: budget: no silo can afford the largest segment" in reason
    federation.since -= 100 * federation.config.rounds.grace
    assert decided(federation)[0] == "open"
    assert federation.begin_round([A, B], "").plan.reporting == (A, B)


def average(federation: Federation, publisher: Publisher) -> None:
    """The open round to its end: all that are to report do, and the others fetch."""
    import numpy as np

    opened = federation.round
    assert opened is not None
    for each in opened.plan.assignments:
        work = federation.work(each.silo)
        if work is None:
            continue
        federation.check_transfers(each.silo, work.down)
        assert federation.purse is not None
        assert federation.purse.covers(each, work.down)
        held = dict(federation.presence[each.silo].held)
        for manifest in work.down:
            assert manifest.absolute or held[manifest.segment] == manifest.base_version
            federation.versions.open(manifest).close()
            held[manifest.segment] = manifest.version
        assert held.items() >= work.start.items()
        federation.hear(each.silo, held)
        for manifest in work.up:
            spool = Spool(manifest.path(federation.spool(opened.round)), manifest)
            with WeightsReader(federation.versions.weights(manifest.segment, manifest.base_version)) as reader:
                base = reader.read(manifest.segment)
            step = 0.01 * np.random.default_rng(opened.round).standard_normal(base.size, "f4")
            for index in range(manifest.chunks):
                start = index * manifest.chunk_elements
                piece = slice(start, start + manifest.count(index))
                payload = CODECS[manifest.codec].encode(base[piece] + step[piece], base[piece])
                spool.append(index, payload, checksum(payload))
            cost = Entry(opened.round, each.silo, manifest.segment, "up")
            spool.commit(spool.digest())
            federation.committed_segment(each.silo, opened.round, manifest.segment, b"digest", cost)
    assert decided(federation)[0] == "fold"
    reporting = opened.plan.reporting
    federation.published(publisher.publish(opened, reporting), reporting)
    federation.versions.prune(federation.current)


def test_who_was_away_for_long_comes_back_a_part_of_the_way_in_each_round(tmp_path: Path) -> None:
    """Whose budget would never bring the largest segment whole, nor all the differences of it at once."""
    federation = begun(tmp_path, bytes_per_silo=66_000)
    federation.hear(C, dict.fromkeys(LAYOUT.names, 0))
    publisher = Publisher(federation)
    for _ in range(8):
        federation.begin_round([A, B], "")
        average(federation, publisher)
    assert min(federation.current.values()) > federation.config.keep_versions
    alone = federation.begin_round([C], "").plan.assignments[0]
    assert alone.short
    average(federation, publisher)
    parts, rounds = 0, 0
    while True:
        rounds += 1
        opened = federation.begin_round([A, B, C], "")
        back = next(each for each in opened.plan.assignments if each.silo == C)
        parts += bool(back.short)
        average(federation, publisher)
        if back.up:
            break
        assert rounds < 12, back.reason
    publisher.close()
    assert parts


def test_a_difference_that_is_gone_is_not_fetched(tmp_path: Path) -> None:
    federation = begun(tmp_path)
    publisher = Publisher(federation)
    federation.begin_round([A, B], "")
    average(federation, publisher)
    publisher.close()
    federation.begin_round([A, B], "")
    work = federation.work(A)
    assert work is not None
    assert work.down
    federation.check_transfers(A, work.down)
    federation.versions.path(work.down[0]).unlink()
    with pytest.raises(NotSelected, match="is gone"):
        federation.check_transfers(A, work.down)


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
