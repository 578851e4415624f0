"""The plan "budget", as a pure function over layouts, allowances and histories."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError
from feddiff.core.segments import Layout, cut
from feddiff.federator.budget import Member, Sizes, ladder, least, plan_budget
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.planner import Allowance, Plan

CODECS = ("fp32", "int8", "int4", "int2")
CHUNK = 4096


def layout_of(sizes: list[int]) -> Layout:
    return cut((f"down_blocks.{number}.weight", (size,)) for number, size in enumerate(sizes))


layouts = st.lists(st.integers(1, 60_000), min_size=1, max_size=9).map(layout_of)
refreshes = st.integers(1, 6)


@st.composite
def allowances(draw: st.DrawFn, needed: int) -> Allowance:
    """Of a silo that can afford ``needed`` bytes each way, or up to forty times as much; in bytes or in seconds."""
    room = draw(st.floats(1.0, 40.0))
    if draw(st.booleans()):
        return Allowance(2 * needed * room, reserve=1000.0)
    down, up = draw(st.floats(1e-8, 1e-3)), draw(st.floats(1e-8, 1e-3))
    return Allowance(needed * (down + up) * room * 1.000001, unit="seconds", down=down, up=up)


@dataclass
class Federated:
    """Silos under plans: what they lack, and what became of it. Segments travel at their largest."""

    rungs: dict[str, Sizes]
    refresh: int
    given: dict[str, Allowance]
    lacks: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    past: list[tuple[str, ...]] = field(default_factory=list)
    rounds: int = 0
    quorum: int = 1

    def members(self) -> list[Member]:
        return [Member(silo, each, dict(self.lacks.get(silo, {}))) for silo, each in self.given.items()]

    def step(self) -> Plan:
        """One round, to its end."""
        self.rounds += 1
        plan = plan_budget(self.rounds, self.members(), self.rungs, self.refresh, self.past, self.quorum)
        check(plan, self.members(), self.rungs)
        assert not plan.reporting or len(plan.reporting) >= self.quorum
        for each in plan.assignments:
            for name in each.down:
                rest = self.lacks.get(each.silo, {}).pop(name, ())
                if each.short.get(name):
                    self.lacks[each.silo][name] = rest[-each.short[name] :]
        if plan.reporting:
            self.past.append(plan.open)
            for silo in self.given:
                lacks = self.lacks.setdefault(silo, {})
                for name in plan.open:
                    whole = next(iter(self.rungs.values()))[name]
                    chain = (*lacks.get(name, ()), self.rungs[plan.codec][name])
                    lacks[name] = chain if sum(chain) < whole else (whole,)
        return plan


def check(plan: Plan, members: list[Member], rungs: dict[str, Sizes]) -> None:
    """Nobody overspends, whoever reports holds everything and reports all that is open, and all is said in words."""
    names = tuple(next(iter(rungs.values())))
    lacks = {each.silo: each.lacks for each in members}
    assert [each.silo for each in plan.assignments] == sorted(lacks)
    assert plan.reason
    for each in plan.assignments:
        assert each.spending is not None
        assert each.reason
        comes = {name: lacks[each.silo].get(name, ()) for name in each.down}
        fetched = sum(sum(chain[: len(chain) - each.short.get(name, 0)]) for name, chain in comes.items())
        assert all(0 < left < len(comes[name]) for name, left in each.short.items())
        sent = sum(rungs[each.codec][name] for name in each.up)
        assert (each.spending.down, each.spending.up) == (fetched, sent)
        assert each.spending.allowance.cost(fetched, sent) <= each.spending.allowance.limit
        assert not each.personal
        if each.up:
            assert each.down == names
            assert not each.short
            assert each.up == tuple(name for name in names if name in plan.open)
    assert Plan.from_json(plan.to_json()) == plan


@st.composite
def federations(draw: st.DrawFn) -> Federated:
    layout, refresh = draw(layouts), draw(refreshes)
    codecs = draw(st.sampled_from([CODECS, ("fp32",), ("int8", "int2"), ("fp16", "int4")]))
    rungs = ladder(layout, codecs, CHUNK)
    needed = least(rungs[codecs[-1]], refresh)
    given_ = {f"clinic-{number}": draw(allowances(needed)) for number in range(draw(st.integers(1, 4)))}
    return Federated(rungs, refresh, given_)


@settings(deadline=None, max_examples=150)
@given(federations())
def test_all_report_and_every_segment_is_refreshed_in_time(federated: Federated) -> None:
    last = dict.fromkeys(next(iter(federated.rungs.values())), 0)
    for number in range(1, 3 * federated.refresh + 6):
        plan = federated.step()
        assert set(plan.reporting) == federated.given.keys()
        for name in plan.open:
            last[name] = number
        assert all(number - turn < federated.refresh for turn in last.values())


@settings(deadline=None, max_examples=100)
@given(federations(), st.data())
def test_a_newcomer_catches_up_and_then_reports(federated: Federated, data: st.DataObject) -> None:
    """Whose allowance is twice the whole model's largest segment, and twice what the refresh takes."""
    whole = next(iter(federated.rungs.values()))
    for _ in range(data.draw(st.integers(0, 5))):
        federated.step()
    needed = max(least(next(reversed(federated.rungs.values())), federated.refresh), max(whole.values()))
    federated.given["newcomer"] = Allowance(4.0 * needed)
    federated.lacks["newcomer"] = {name: (size,) for name, size in whole.items()}
    for _ in range(8 * len(whole)):
        plan = federated.step()
        if "newcomer" in plan.reporting:
            break
        assert "catches up" in next(each.reason for each in plan.assignments if each.silo == "newcomer")
    assert "newcomer" in plan.reporting
    for _ in range(federated.refresh + 1):
        assert set(federated.step().reporting) == federated.given.keys()


@settings(deadline=None, max_examples=100)
@given(federations(), st.floats(0.0, 0.999), st.integers(0, 4))
def test_who_is_too_thin_sits_out_and_the_others_keep_their_promise(
    federated: Federated, share: float, before: int
) -> None:
    for _ in range(before):
        federated.step()
    needed = least(next(reversed(federated.rungs.values())), federated.refresh)
    without = plan_budget(99, federated.members(), federated.rungs, federated.refresh, federated.past)
    members = [*federated.members(), Member("thin", Allowance(2 * needed * share))]
    plan = plan_budget(99, members, federated.rungs, federated.refresh, federated.past)
    check(plan, members, federated.rungs)
    assert (plan.open, plan.codec) == (without.open, without.codec)
    assert [each for each in plan.assignments if each.silo != "thin"] == list(without.assignments)
    thin = next(each for each in plan.assignments if each.silo == "thin")
    assert thin.up == ()
    assert "sits out" in thin.reason
    assert "each way" in thin.reason


@settings(deadline=None, max_examples=100)
@given(federations(), st.integers(0, 4), st.randoms(use_true_random=False))
def test_the_order_of_the_silos_does_not_matter(federated: Federated, before: int, random: Random) -> None:
    for _ in range(before):
        federated.step()
    members = federated.members()
    plan = plan_budget(99, members, federated.rungs, federated.refresh, federated.past)
    random.shuffle(members)
    assert plan_budget(99, members, federated.rungs, federated.refresh, federated.past) == plan


@settings(deadline=None)
@given(layouts, refreshes)
def test_the_least_is_enough_and_one_byte_less_is_not(layout: Layout, refresh: int) -> None:
    sizes, names = ladder(layout, ("int2",), CHUNK)["int2"], layout.names

    def longest(capacity: int) -> int:
        """Rounds that once around the segments takes, from wherever it takes most."""
        return max(
            cycle([sizes[name] for name in names[start:] + names[:start]], capacity) for start in range(len(names))
        )

    needed = least(sizes, refresh)
    assert longest(needed) <= refresh
    assert needed == max(sizes.values()) or longest(needed - 1) > refresh


def cycle(sizes: list[int], capacity: int) -> int:
    rounds, used = 0, capacity + 1
    for size in sizes:
        if used + size > capacity:
            rounds, used = rounds + 1, 0
        used += size
    return rounds


def test_more_money_buys_finer_codecs_and_a_silo_its_own() -> None:
    rungs = ladder(layout_of([20_000] * 6), CODECS, CHUNK)
    chosen = []
    for room in (1.0, 1.5, 3.0, 6.0, 12.0):
        needed = least(rungs["int2"], 3)
        rich = Member("rich", Allowance(100.0 * needed))
        plan = plan_budget(1, [Member("poor", Allowance(2 * needed * room)), rich], rungs, 3, [])
        chosen.append(plan.codec)
        by = {each.silo: each.codec for each in plan.assignments}
        assert by["rich"] == "fp32"
        assert CODECS.index(by["poor"]) <= CODECS.index(plan.codec)
    assert chosen == sorted(chosen, key=CODECS.index, reverse=True)
    assert {"int2", "fp32"} <= set(chosen)


def test_if_nobody_can_refresh_in_time_it_takes_longer_and_says_so() -> None:
    rungs = ladder(layout_of([20_000] * 6), CODECS, CHUNK)
    one = max(rungs["int2"].values())
    plan = plan_budget(1, [Member("clinic", Allowance(2.0 * one))], rungs, 3, [])
    check(plan, [Member("clinic", Allowance(2.0 * one))], rungs)
    assert len(plan.open) == 1
    assert "once around takes 6 rounds" in plan.reason
    assert "comes 3 rounds late" in plan.reason


def test_if_nobody_can_afford_anything_nobody_does_and_it_says_so() -> None:
    rungs = ladder(layout_of([20_000] * 2), CODECS, CHUNK)
    members = [Member("clinic", Allowance(100.0), {name: (size,) for name, size in rungs["fp32"].items()})]
    plan = plan_budget(1, members, rungs, 3, [])
    check(plan, members, rungs)
    assert not plan.open
    assert "no silo can afford" in plan.reason
    assert "cannot catch up: encoder.0 alone takes" in plan.assignments[0].reason
    assert plan.idle


def test_differences_in_a_row_come_one_after_the_other_where_all_at_once_cost_too_much() -> None:
    rungs = ladder(layout_of([20_000] * 2), CODECS, CHUNK)
    lacks: dict[str, tuple[int, ...]] = {"encoder.0": (6000,) * 5, "encoder.1": (100, 100)}
    federated = Federated(rungs, 2, {"clinic": Allowance(15_000.0)}, {"clinic": lacks})
    first = federated.step().assignments[0]
    assert (first.down, first.short, first.targets({"encoder.0": 7, "encoder.1": 3})) == (
        ("encoder.0", "encoder.1"),
        {"encoder.0": 3},
        {"encoder.0": 4, "encoder.1": 3},
    )
    assert "catches up, 1 of 2 segments that it lacks in this round and 1 a part of the way" in first.reason
    assert federated.step().assignments[0].short == {"encoder.0": 1}
    assert federated.step().reporting == ("clinic",)


@settings(deadline=None, max_examples=100)
@given(federations(), st.integers(1, 5))
def test_never_fewer_than_the_quorum_report(federated: Federated, quorum: int) -> None:
    federated.quorum = quorum
    for _ in range(5):
        plan = federated.step()
        assert set(plan.reporting) == (federated.given.keys() if len(federated.given) >= quorum else set())
        if not plan.reporting:
            assert f"and the quorum is {quorum}: nobody does" in plan.reason
            assert plan.open == ()
            assert all("does not report: " in each.reason for each in plan.assignments)


def test_a_quorum_that_cannot_refresh_in_time_takes_longer_instead_of_leaving_one_alone() -> None:
    rungs = ladder(layout_of([20_000] * 6), CODECS, CHUNK)
    one = max(rungs["int2"].values())
    members = [Member("rich", Allowance(100.0 * one)), Member("thin", Allowance(2.0 * one))]
    assert plan_budget(1, members, rungs, 3, [], quorum=1).reporting == ("rich",)
    plan = plan_budget(1, members, rungs, 3, [], quorum=2)
    assert plan.reporting == ("rich", "thin")
    assert "comes 3 rounds late" in plan.reason


# -- the rules


def rules(initial: str = "seed", **budget: Any) -> dict[str, Any]:
    return {
        "plan": "budget",
        "initial": initial,
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "codec": {"chunk_elements": CHUNK},
        "rounds": {"participants": 3},
        "budget": budget,
    }


@pytest.mark.parametrize("initial", ["seed", "send"])
@pytest.mark.parametrize(
    ("key", "fixed"), [("bytes_per_silo", {}), ("bytes_per_round", {}), ("deadline", {"link_mbit": 0.2})]
)
def test_a_budget_that_cannot_work_is_refused_with_the_least_that_would(
    tmp_path: Path, initial: str, key: str, fixed: dict[str, float]
) -> None:
    layout = layout_of([50_000, 200_000, 120_000])

    def check_with(value: int) -> None:
        config = from_table(rules(initial, **{key: value, **fixed}), "test")
        federation = Federation(tmp_path, config, layout, Database(tmp_path / "federation.db"))
        assert federation.purse is not None
        federation.purse.check()

    with pytest.raises(ConfigError, match=f"at least {key} = ") as refused:
        check_with(1)
    enough = int(re.findall(rf"{key} = (\d+)", str(refused.value))[0])
    check_with(enough)
    with pytest.raises(ConfigError, match=f"{key} = {enough}"):
        check_with(enough - 1)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"plan": "full", "budget": {"bytes_per_silo": 1000}}, "no other plan has one"),
        ({"budget": None}, "needs a table"),
        ({"budget": {}}, "exactly one of"),
        ({"budget": {"bytes_per_silo": 1, "bytes_per_round": 1}}, "exactly one of"),
        ({"budget": {"deadline": 60.0}}, "go together"),
        ({"budget": {"bytes_per_silo": 1, "link_mbit": 1.0}}, "go together"),
        ({"budget": {"bytes_per_silo": 1, "codecs": ["int3"]}}, "no codec 'int3'"),
        ({"budget": {"bytes_per_silo": 1, "codecs": ["fp32", "topk10"]}}, "codec 'topk10' is for uplinks only"),
        ({"budget": {"bytes_per_silo": 1, "codecs": ["int4", "int8"]}}, "finest to the coarsest"),
        ({"budget": {"bytes_per_silo": 1, "codecs": []}}, "codecs"),
        ({"budget": {"bytes_per_silo": 1, "refesh": 2}}, "known here: bytes_per_round, bytes_per_silo, codecs"),
        ({"codec": {"segments": {"decoder": {"upp": "int8"}}}}, "known here: down, up"),
        ({"codec": {"delta": False}}, "delta = true"),
        ({"codec": {"up": "int8"}}, "leave those"),
        ({"codec": {"segments": {"decoder": {"down": "int8"}}}}, "leave those"),
    ],
)
def test_rules_that_contradict_themselves(table: dict[str, Any], says: str) -> None:
    table = {**rules(bytes_per_silo=1000), **table}
    with pytest.raises(ConfigError, match=says):
        from_table({key: value for key, value in table.items() if value is not None}, "test")


def test_other_federations_keep_their_digest() -> None:
    table = {**rules(bytes_per_silo=1000), "plan": "full"}
    del table["budget"]
    assert b"budget" not in from_table(table, "test").canonical()
    config = from_table(rules(bytes_per_silo=1000), "test")
    assert b'"budget":{' in config.canonical()
