"""The four plans, whole federations long: what is exchanged, what is averaged, what stays at home."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from stage import SILO, TINY_UNET, Hospital, Stage, images

from feddiff.bench.savings import Parts, exchanged
from feddiff.core.config import Fixed

ROUNDS = 3
SAMPLES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}


def parts(stage: Stage) -> dict[str, int]:
    """Parameters of encoder, bottleneck and decoder."""
    found = {"encoder": 0, "bottleneck": 0, "decoder": 0}
    for segment in stage.layout.segments:
        found[segment.part] += segment.size
    return found


def formula(stage: Stage, plan: str, silos: int) -> int:
    """Parameters exchanged, both directions, the first download included (FedDiffuse, arXiv 2406.12575)."""
    part, whole = parts(stage), stage.layout.size
    if plan == "full":
        return 2 * silos * ROUNDS * whole
    if plan == "usplit" and silos % 2 == 0:
        return ROUNDS * (silos * whole + silos // 2 * whole)
    if plan == "usplit":  # the odd one sends the bottleneck and, by a coin, encoder or decoder
        total = ROUNDS * (silos * whole + silos // 2 * whole)
        for each in stage.opened().journal.rounds():
            alone = next(a.up for a in each.plan.assignments if "without a partner" in a.reason)
            assert {name.partition(".")[0] for name in alone} in ({"bottleneck", "decoder"}, {"bottleneck", "encoder"})
            total += sum(stage.layout[name].size for name in alone)
        return total
    shared = part["decoder"] + (part["bottleneck"] if plan == "ulatdec" else 0)
    return silos * (whole + (2 * ROUNDS - 1) * shared)


def check_rounds(stage: Stage, hospitals: list[Hospital]) -> None:
    """Each round: training starts from the published bits or the silo's own; what is published is the mean."""
    version = dict.fromkeys(stage.layout.names, 0)
    for each in stage.opened().journal.rounds():
        assert each.closed_at is not None
        assert each.silos == tuple(sorted(hospital.name for hospital in hospitals))
        plan = {assignment.silo: assignment for assignment in each.plan.assignments}
        for hospital in hospitals:
            start = hospital.start_of(each.round)
            assert start.keys() == set(stage.layout.names)
            for name, vector in start.items():
                if name in plan[hospital.name].down:
                    assert np.array_equal(vector, stage.published(name, version[name])), (each.round, name)
                else:
                    assert np.array_equal(vector, hospital.result_of(each.round - 1)[name]), (each.round, name)
        for name in stage.layout.names:
            reporting = [hospital for hospital in hospitals if name in plan[hospital.name].up]
            if not reporting:
                continue
            version[name] += 1
            total = sum(hospital.samples for hospital in reporting)
            mean = sum(h.samples * h.result_of(each.round)[name].astype(np.float64) for h in reporting) / total
            np.testing.assert_allclose(stage.published(name, version[name]), mean, rtol=1e-6, atol=1e-7)
    assert stage.opened().journal.current() == version


@pytest.mark.parametrize(
    ("plan", "silos"), [("full", 2), ("usplit", 2), ("usplit", 3), ("ulatdec", 2), ("udec", 3)], ids=str
)
def test_a_plan_exchanges_and_averages_what_it_says(stage: Stage, plan: Fixed, silos: int) -> None:
    server = stage.found(plan, ROUNDS, silos).serve()
    hospitals = [stage.hospital(name, SAMPLES[name]).start() for name in list(SAMPLES)[:silos]]
    assert server.wait() == 0
    for hospital in hospitals:
        stage.until(f"{hospital.name} hears that it is over", lambda silo=hospital: silo.finished)

    check_rounds(stage, hospitals)
    entries = stage.ledger()
    assert sum(entry["parameters"] for entry in entries) == formula(stage, plan, silos)
    if plan != "usplit" or silos % 2 == 0:
        closed = exchanged(plan, Parts.of(stage.layout), silos, ROUNDS)
        for direction, parameters in (("down", closed.down), ("up", closed.up)):
            assert sum(each["parameters"] for each in entries if each["direction"] == direction) == parameters
    assert all(entry["raw"] == 4 * entry["parameters"] for entry in entries)
    assert sum(entry["retransmitted"] for entry in entries) == 0
    up = {entry["segment"].partition(".")[0] for entry in entries if entry["direction"] == "up"} - {""}
    assert up == {"full": {*parts(stage)}, "usplit": {*parts(stage)}, "udec": {"decoder"}}.get(
        plan, {"bottleneck", "decoder"}
    )


@pytest.mark.parametrize(("plan", "own"), [("ulatdec", {"encoder"}), ("udec", {"encoder", "bottleneck"})])
def test_what_is_personal_outlives_the_silos_process(stage: Stage, plan: str, own: set[str]) -> None:
    server = stage.found(plan, ROUNDS).serve()
    stays, leaves = stage.hospital("hospital-a", 2), stage.hospital("hospital-b", 3)
    leaves.gate[2] = threading.Event()
    for hospital in (stays, leaves):
        hospital.start()
    stage.until("the second round trains", lambda: leaves.training(2))
    leaves.stop()
    again = stage.hospital("hospital-b", 3).start()
    assert server.wait() == 0

    personal = [segment.name for segment in stage.layout.segments if segment.part in own]
    for name in personal:
        initial = stage.published(name, 0)
        assert np.array_equal(leaves.start_of(1)[name], initial)
        assert np.array_equal(again.start_of(2)[name], leaves.result_of(1)[name])
        assert np.array_equal(again.start_of(3)[name], again.result_of(2)[name])
        assert not np.array_equal(again.start_of(3)[name], stays.start_of(3)[name])
        assert not (stage.home / "weights" / f"{name}@1.safetensors").exists()
    shared = set(stage.layout.names) - set(personal)
    assert all(np.array_equal(again.start_of(3)[name], stays.start_of(3)[name]) for name in shared)
    assert leaves.learner.results.keys().isdisjoint(again.learner.results), "a round was trained twice"


def test_real_silos_train_a_real_model(stage: Stage) -> None:
    """Every process is the command that people type, from the invitation to a grid of samples."""
    stage.found(rounds=2, unet=TINY_UNET)
    stage.rules.write_text(f'initial = "seed"\n{stage.rules.read_text()}')
    server = stage.serve()
    silos = []
    for seed, name in enumerate(("hospital-a", "hospital-b")):
        images(stage.folder / "data" / name, 12, seed)
        token = stage.operate("invite", name, "--token-only").strip()
        data = str(stage.folder / "data" / name)
        silos.append(
            stage.run(
                name,
                *("-m", SILO, "--data", data, "--federator", stage.address),
                *("--join", token, "--state", str(stage.folder / name)),
            )
        )
    assert [silo.wait() for silo in silos] == [0, 0]
    assert server.wait() == 0

    entries = stage.ledger()
    whole = stage.opened().layout.size
    # Both made the initial model from the seed, so only the second round brought anything down.
    assert sum(entry["parameters"] for entry in entries) == 2 * 2 * 2 * whole - 2 * whole
    assert not any(entry["parameters"] for entry in entries if (entry["round"], entry["direction"]) == (1, "down"))
    assert "finished" in silos[0].told()
    status = stage.status()
    assert (status["phase"], status["round"]) == ("finished", 2)
    assert all(silo["loss"] > 0 and silo["samples"] == 12 for silo in status["silos"])
    grid = stage.folder / "grid.png"
    stage.operate("sample", "--out", str(grid), "--count", "4", "--steps", "2")
    from PIL import Image

    with Image.open(grid) as drawn:
        assert drawn.size[0] >= 16
