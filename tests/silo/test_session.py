from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.spool import Manifest
from feddiff.silo.session import Held, Progress, RoundWork, Task, next_step

SEGMENTS = ("encoder.in", "bottleneck", "decoder.0")


def down(segment: str, base: int, version: int) -> Manifest:
    return Manifest(f"down.{segment}.{'x' if base < 0 else base}-{version}", segment, base, version, "fp32", 10, 10)


def up(segment: str) -> Manifest:
    return Manifest(f"up.4.clinic.{segment}", segment, 3, 4, "fp32", 10, 10)


DOWN = (down("encoder.in", -1, 0), down("decoder.0", 1, 2), down("decoder.0", 2, 3))
WORK = RoundWork(4, DOWN, (up("decoder.0"), up("bottleneck")), {"decoder.0": Held(3, "c3")}, ("encoder.in",), 7)
TASK = Task("round-4", "2 silos are here", WORK)
READY = {"encoder.in": Held(0), "bottleneck": Held(0), "decoder.0": Held(3, "c3")}


@pytest.mark.parametrize(
    ("progress", "action", "manifests"),
    [
        (Progress(), "fetch", DOWN),
        (Progress({"decoder.0": Held(1)}), "fetch", DOWN),
        (Progress({"encoder.in": Held(0), "decoder.0": Held(1)}), "fetch", DOWN[1:]),
        (Progress({"encoder.in": Held(0), "decoder.0": Held(2, "c2")}), "fetch", DOWN[2:]),
        (Progress(READY), "train", ()),
        (Progress(READY, 3), "train", ()),
        (Progress(READY, 5), "train", ()),
        (Progress(READY, 4), "submit", WORK.up),
        (Progress({"decoder.0": Held(3)}, 4), "fetch", DOWN[:1]),
    ],
)
def test_what_comes_next(progress: Progress, action: str, manifests: tuple[Manifest, ...]) -> None:
    step = next_step(TASK, progress)
    assert (step.action, step.manifests) == (action, manifests)
    assert "round 4" in step.reason


def test_without_work_the_silo_waits_and_says_the_federators_reason() -> None:
    step = next_step(Task("wait", "paused by the operator"), Progress(READY, 4))
    assert (step.action, step.reason) == ("wait", "paused by the operator")
    step = next_step(Task("finished", "all 5 rounds are done", finished=True), Progress())
    assert (step.action, step.reason) == ("finish", "all 5 rounds are done")


def test_a_silo_that_is_to_report_nothing_waits_once_it_holds_all() -> None:
    nothing = replace(TASK, work=replace(WORK, up=()))
    assert next_step(nothing, Progress(READY, 3)).action == "wait"


progresses = st.builds(
    Progress,
    st.dictionaries(st.sampled_from(SEGMENTS), st.builds(Held, st.integers(0, 4))),
    st.none() | st.integers(0, 5),
    st.none() | st.integers(0, 5),
)


def done(progress: Progress, action: str, manifests: tuple[Manifest, ...]) -> Progress:
    """What is on the disk after a step."""
    if action == "fetch":
        return replace(progress, held={**progress.held, **{each.segment: Held(each.version) for each in manifests}})
    if action == "measure":
        return replace(progress, measured=WORK.round)
    assert action == "train"
    return replace(progress, trained=WORK.round)


@given(progresses, st.sets(st.integers(0, 5)))
def test_from_any_disk_a_round_ends_with_its_submission_and_nothing_is_done_twice(
    progress: Progress, measured: set[int]
) -> None:
    taken: list[str] = []
    due = measured.__contains__
    wanted = WORK.round in measured and progress.measured != WORK.round
    while (step := next_step(TASK, progress, due)).action != "submit":
        assert step == next_step(TASK, progress, due)
        taken.append(step.action)
        assert len(taken) <= 3
        progress = done(progress, step.action, step.manifests)
    assert taken == [action for action in ("fetch", "train", "measure") if action in taken]
    assert ("measure" in taken) == wanted
    assert step.manifests == WORK.up


@pytest.mark.parametrize(
    ("progress", "action"),
    [
        (Progress(READY, 3, 3), "train"),
        (Progress(READY, 3, 4), "train"),  # whatever was measured, it was not this training
        (Progress(READY, 4), "measure"),
        (Progress(READY, 4, 3), "measure"),
        (Progress(READY, 4, 4), "submit"),
    ],
)
def test_a_round_that_is_due_is_measured_between_training_and_submission(progress: Progress, action: str) -> None:
    assert next_step(TASK, progress, lambda number: number == 4).action == action
    assert next_step(TASK, progress, lambda number: number != 4).action == ("train" if action == "train" else "submit")


def test_a_silo_that_trains_nothing_measures_nothing() -> None:
    nothing = replace(TASK, work=replace(WORK, up=()))
    assert next_step(nothing, Progress(READY, 3), lambda _: True).action == "wait"


@given(progresses, st.integers(0, 5))
def test_a_chain_is_fetched_from_where_the_silo_stands(progress: Progress, held: int) -> None:
    progress = replace(progress, held={**progress.held, "decoder.0": Held(held)})
    step = next_step(TASK, progress)
    wanted = (
        [each.base_version for each in step.manifests if each.segment == "decoder.0"] if step.action == "fetch" else []
    )
    assert wanted == [base for base in (1, 2) if base >= held or held == 0]


@pytest.mark.parametrize(
    ("held", "fetched"),
    [
        (Held(3, "c3"), False),
        (Held(3), False),  # an older file that knows no digest is believed
        (Held(3, "other"), True),  # the disk has rotted
        (Held(5, "other"), True),  # the federator went back to an older backup
        (Held(5), True),
        (Held(2, "c2"), True),
    ],
)
def test_a_snapshot_replaces_bits_that_are_not_the_published_ones(held: Held, fetched: bool) -> None:
    snapshot = down("decoder.0", -1, 3)
    task = replace(TASK, work=replace(WORK, down=(snapshot,)))
    step = next_step(task, Progress({**READY, "decoder.0": held}))
    assert (step.action, step.manifests) == (("fetch", (snapshot,)) if fetched else ("train", ()))
