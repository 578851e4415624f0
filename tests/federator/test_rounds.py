from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.sections import RoundsConfig
from feddiff.federator.rounds import Planned, View, decide

RULES = RoundsConfig(count=5, participants=3, quorum=2, grace=60, deadline=100)
STRICT = RoundsConfig(count=5, participants=3, grace=60, deadline=100)
SAMPLED = RoundsConfig(count=5, participants=4, sampled=3, quorum=2, grace=60, deadline=100)
NOW = 1000.0
AT_WORK, DONE, SILENT = Planned(False, NOW - 1), Planned(True, NOW - 50), Planned(False, NOW - 101)
BAD = Planned(True, NOW - 1, "weights hold NaN")
GONE = Planned(False, NOW - 1, "evicted")


def waiting(
    *reachable: str,
    round: int = 1,
    since: float = NOW - 10,
    expected: str = "",
    paused: bool = False,
    stopping: bool = False,
) -> View:
    return View(round, False, since, frozenset(reachable), frozenset(expected), paused=paused, stopping=stopping)


def collecting(
    quorum_since: float | None = None, paused: bool = False, stopping: bool = False, **silos: Planned
) -> View:
    return View(
        2, True, NOW - 500, frozenset(silos), planned=silos, quorum_since=quorum_since, paused=paused, stopping=stopping
    )


@pytest.mark.parametrize(
    ("view", "action", "silos", "said"),
    [
        (waiting(), "wait", "", "none is here"),
        (waiting("a", "b"), "wait", "", "starts with 3 silos; 2 here: a, b"),
        (waiting("c", "a", "b"), "open", "abc", "3 silos"),
        (waiting("c", "a", "b", "d"), "open", "abcd", "4 silos"),
        (waiting("a", round=2), "wait", "", "needs 2 silos; 1 here: a"),
        (waiting("a", "b", round=2), "open", "ab", "2 silos"),
        (replace(waiting("a", "b", round=2), barred=frozenset("c")), "open", "ab", "are here; filtered out: c"),
        (
            replace(waiting("a", round=2), barred=frozenset("cd")),
            "wait",
            "",
            "needs 2 silos; 1 here: a; filtered out: c, d",
        ),
        (waiting("a", "b", round=2, expected="abc"), "wait", "", "giving c 50 s"),
        (waiting("a", "b", round=2, expected="abc", since=NOW - 60), "open", "ab", "without c"),
        (waiting("a", "b", "c", round=2, expected="abc"), "open", "abc", "3 silos"),
        (waiting("a", "d", "b", round=2, expected="ab"), "open", "abd", "3 silos"),
        (waiting("a", round=2, expected="abc", since=NOW - 60), "wait", "", "needs 2"),
        (waiting("a", "b", "c", paused=True), "wait", "", "paused"),
        (waiting("a", "b", "c", round=4, paused=True), "wait", "", "paused"),
        (waiting("a", "b", "c", round=4, stopping=True), "finish", "", "stopped"),
        (waiting("a", "b", "c", round=4, stopping=True, paused=True), "finish", "", "stopped"),
        (waiting("a", "b", "c", round=6), "finish", "", "all 5 rounds"),
        (waiting("a", "b", "c", round=6, paused=True), "finish", "", "all 5 rounds"),
    ],
)
def test_when_a_round_opens(view: View, action: str, silos: str, said: str) -> None:
    decision = decide(NOW, view, RULES)
    assert (decision.action, "".join(decision.silos)) == (action, silos)
    assert said in decision.reason


@pytest.mark.parametrize(
    ("view", "action", "silos", "said"),
    [
        (collecting(a=AT_WORK, b=AT_WORK, c=AT_WORK), "wait", "", "0 of 3 updates are in; a, b, c at work"),
        (collecting(a=DONE, b=AT_WORK, c=SILENT), "wait", "", "1 of 3 updates are in; b at work"),
        (collecting(c=DONE, b=DONE, a=DONE), "fold", "abc", "all 3 updates"),
        # stragglers: the grace runs from the quorum on
        (collecting(a=DONE, b=DONE, c=AT_WORK), "wait", "", "giving c 60 s more"),
        (collecting(NOW - 59, a=DONE, b=DONE, c=AT_WORK), "wait", "", "giving c 1 s more"),
        (collecting(NOW - 60, a=DONE, b=DONE, c=AT_WORK), "fold", "ab", "c late"),
        # silent silos
        (collecting(NOW, a=DONE, b=DONE, c=SILENT), "fold", "ab", "c silent"),
        (collecting(NOW, a=DONE, b=DONE, c=SILENT, d=AT_WORK), "wait", "", "giving d 60 s"),
        (collecting(a=DONE, b=SILENT, c=SILENT), "wait", "", "1 of 2 needed updates are in and b, c silent"),
        (collecting(a=SILENT, b=SILENT, c=SILENT), "wait", "", "0 of 2 needed"),
        # rejected ones
        (collecting(NOW, a=DONE, b=DONE, c=BAD), "fold", "ab", "all 2 updates"),
        (collecting(NOW - 300, a=BAD, b=DONE, c=AT_WORK), "wait", "", "c at work"),
        (collecting(a=BAD, b=BAD, c=DONE), "fold", "", "1 of 2 needed updates can be used"),
        (collecting(a=BAD, b=BAD, c=AT_WORK), "wait", "", "c at work"),
        (collecting(a=BAD, b=GONE, c=SILENT), "wait", "", "0 of 2 needed updates are in and c silent"),
        (collecting(a=BAD, b=BAD, c=BAD), "fold", "", "ends without a change"),
        (collecting(a=GONE), "fold", "", "ends without a change"),
        # the operator's wishes are for the next round
        (collecting(paused=True, stopping=True, a=AT_WORK, b=DONE), "wait", "", "a at work"),
        (collecting(paused=True, a=DONE, b=DONE), "fold", "ab", "all 2"),
        # fewer were planned than are needed: one model is no average
        (collecting(a=DONE), "fold", "", "1 of 2 needed silos are planned: the round ends without a change"),
        (collecting(a=AT_WORK), "fold", "", "ends without a change"),
    ],
)
def test_when_a_round_closes(view: View, action: str, silos: str, said: str) -> None:
    decision = decide(NOW, view, RULES)
    assert (decision.action, "".join(decision.silos)) == (action, silos)
    assert said in decision.reason


@pytest.mark.parametrize(
    ("view", "action", "silos", "said"),
    [
        # the first round waits for all participants, not just for as many as it takes
        (waiting("a", "b", "c"), "wait", "", "starts with 4 silos"),
        (waiting("a", "b", "c", "d"), "open", "abcd", "4 silos"),
        # enough others are here: nobody is waited for
        (waiting("a", "b", "d", round=2, expected="abc"), "open", "abd", "3 silos"),
        (waiting("d", "e", "f", round=2, expected="abc"), "open", "def", "3 silos"),
        # all that are here would be taken, and it too
        (waiting("a", "b", round=2, expected="abc"), "wait", "", "giving c 50 s"),
        (waiting("a", "b", round=2, expected="abc", since=NOW - 60), "open", "ab", "without c"),
        (waiting("a", round=2, expected="abc", since=NOW - 60), "wait", "", "needs 2"),
        # a round is over when those that it took are done
        (collecting(a=DONE, b=DONE, c=DONE), "fold", "abc", "all 3 updates"),
    ],
)
def test_where_rounds_take_a_sample(view: View, action: str, silos: str, said: str) -> None:
    decision = decide(NOW, view, SAMPLED)
    assert (decision.action, "".join(decision.silos)) == (action, silos)
    assert said in decision.reason


def test_of_a_sample_every_update_is_needed_unless_the_quorum_says_less() -> None:
    rules = RoundsConfig(participants=4, sampled=3, grace=60, deadline=100)
    assert rules.needed == 3
    assert decide(NOW, collecting(NOW - 900, a=DONE, b=DONE, c=SILENT), rules).action == "wait"
    assert decide(NOW, collecting(a=DONE, b=DONE, c=DONE), rules).action == "fold"


def test_without_a_quorum_every_participant_is_needed() -> None:
    assert decide(NOW, collecting(NOW - 900, a=DONE, b=DONE, c=SILENT), STRICT).action == "wait"
    assert decide(NOW, waiting("a", "b", round=2), STRICT).action == "wait"
    assert decide(NOW, collecting(a=DONE, b=DONE, c=GONE), STRICT).action == "fold"


def test_a_round_with_nothing_for_anybody_is_not_opened() -> None:
    view = replace(waiting("a", "b", round=2), idle="no silo can afford anything")
    assert decide(NOW, view, RULES).action == "wait"
    assert "round 2 would have nothing for anybody: no silo can" in decide(NOW, view, RULES).reason
    assert decide(NOW, replace(view, round=6), RULES).action == "finish"


def test_after_a_restart_nobody_is_late_at_once() -> None:
    """The clock began anew: progress counts from the start of the process."""
    restarted = Planned(False, 0.0)
    view = View(2, True, 0.0, frozenset(), planned={"a": Planned(True, 0.0), "b": Planned(True, 0.0), "c": restarted})
    assert decide(1.0, view, RULES).action == "wait"
    assert decide(101.0, view, RULES).action == "fold"


def test_many_names_are_not_listed_all() -> None:
    view = collecting(**{f"silo-{number}": AT_WORK for number in range(9)})
    assert decide(NOW, view, RULES).reason.endswith("silo-0, silo-1, silo-2, silo-3, silo-4 and 4 more at work")


names = st.sampled_from("abcdef")
times = st.floats(0, 2000)
plans = st.dictionaries(
    names, st.builds(Planned, st.booleans(), times, st.none() | st.just("holds NaN")), min_size=1, max_size=6
)


@st.composite
def rules(draw: st.DrawFn) -> RoundsConfig:
    participants = draw(st.integers(1, 5))
    sampled = draw(st.none() | st.integers(1, participants))
    quorum = draw(st.none() | st.integers(1, sampled or participants))
    return RoundsConfig(count=5, participants=participants, sampled=sampled, quorum=quorum, grace=60, deadline=100)


@st.composite
def views(draw: st.DrawFn) -> View:
    is_collecting = draw(st.booleans())
    return View(
        draw(st.integers(1, 7)),
        is_collecting,
        draw(times),
        draw(st.frozensets(names)),
        draw(st.frozensets(names)),
        draw(plans) if is_collecting else {},
        draw(st.none() | times),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def usable(view: View) -> list[str]:
    return sorted(name for name, silo in view.planned.items() if silo.committed and not silo.rejected)


@given(times, views(), rules())
def test_every_decision_has_a_reason_and_fits_the_state(now: float, view: View, rules: RoundsConfig) -> None:
    decision = decide(now, view, rules)
    assert decision.reason
    assert decision.action in (("wait", "fold") if view.collecting else ("wait", "open", "finish"))
    assert list(decision.silos) == sorted(set(decision.silos))
    if decision.action in ("wait", "finish"):
        assert decision.silos == ()
    assert decide(now, view, rules) == decision


@given(times, views(), rules())
def test_a_round_opens_only_with_enough_silos_that_are_here(now: float, view: View, rules: RoundsConfig) -> None:
    decision = decide(now, view, rules)
    if decision.action == "open":
        assert set(decision.silos) == view.reachable
        assert len(decision.silos) >= (rules.participants if view.round == 1 else rules.needed)
        assert not view.paused
        assert not view.stopping
        assert view.round <= rules.count


@given(times, views(), rules())
def test_never_averaged_with_fewer_than_needed(now: float, view: View, rules: RoundsConfig) -> None:
    decision = decide(now, view, rules)
    if decision.action == "fold":
        # Either enough updates, or none at all: rejections have made the quorum impossible.
        assert list(decision.silos) in ([], usable(view))
        assert bool(decision.silos) == (len(usable(view)) >= rules.needed)


@given(times, views(), rules())
def test_with_the_quorum_in_a_round_does_not_wait_for_ever(now: float, view: View, rules: RoundsConfig) -> None:
    if view.collecting and len(usable(view)) >= rules.needed:
        later = max(now, *(silo.progress_at for silo in view.planned.values())) + max(rules.grace, rules.deadline) + 1
        assert decide(later, view, rules).action == "fold"


@given(times, views(), rules())
def test_with_enough_silos_here_the_next_round_does_not_wait_for_ever(
    now: float, view: View, rules: RoundsConfig
) -> None:
    enough = rules.participants if view.round == 1 else rules.needed
    if not view.collecting and not view.paused and len(view.reachable) >= enough:
        assert decide(max(now, view.since) + rules.grace + 1, view, rules).action in ("open", "finish")
