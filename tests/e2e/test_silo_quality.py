"""Silos that measure their own models and describe their own images, and those that lie about it: real daemons."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from stage import SILO, TINY_UNET, Process, Stage, images

from feddiff.core import wire
from feddiff.core.errors import FedDiffError, ProtocolError, TooLarge, TransferError
from feddiff.core.features import Extractor
from feddiff.core.images import read_images
from feddiff.core.moments import Moments, fid
from feddiff.core.quality import Measured
from feddiff.silo.gauge import Gauge, Told
from feddiff.silo.readings import Reading
from feddiff.v1 import federation_pb2 as pb

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

TELLS = 250
"""Features of the moments that are sent by hand: 255 kB."""
DIGEST = "ab" * 32
LAST_WORDS = """
import os, signal
from feddiff.silo import cli, daemon, gauge
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{where} = die
cli.main()
"""
"""A silo that is killed when it comes to a certain place."""


class Quarters(torch.nn.Module):
    """The mean of each quarter of an image, and whether its upper half is the brighter one."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return found, found[:, :2] - found[:, 2:]


def network(stage: Stage) -> Path:
    path = stage.folder / "quarters.pt"
    torch.jit.script(Quarters()).save(str(path))
    return path


def quality(extractor: Path | str, more: str = "") -> str:
    digest = extractor if isinstance(extractor, str) else hashlib.sha256(extractor.read_bytes()).hexdigest()
    return f'[quality]\nextractor = "{digest}"\nsamples = 16\nsteps = 2\n{more}\n'


def command(stage: Stage, name: str, extractor: Path | None) -> tuple[str, ...]:
    data, seed = stage.folder / "data" / name, len(name) + ord(name[-1])
    if not data.exists():
        images(data, 12, seed)
    more = () if extractor is None else ("--extractor", str(extractor))
    return ("--data", str(data), "--federator", stage.address, "--state", str(stage.enrol(name)), *more)


def silo(stage: Stage, name: str, extractor: Path | None) -> Process:
    return stage.run(name, "-m", SILO, *command(stage, name, extractor))


def readings(stage: Stage) -> dict[tuple[int, str], dict[str, Measured]]:
    found: dict[tuple[int, str], dict[str, Measured]] = {}
    for each in stage.opened().ledger.quality():
        found.setdefault((each.round, each.of), {})[each.measured.metric] = each.measured
    return found


@pytest.mark.slow
def test_silos_without_a_global_model_measure_their_own_and_one_does_not_consent(stage: Stage) -> None:
    extractor = network(stage)
    stage.found("udec", rounds=3, silos=3, unet=TINY_UNET, more=quality(extractor, "every = 2\ngrids = true"))
    server = stage.serve()
    silos = [silo(stage, name, extractor) for name in ("hospital-a", "hospital-b")]
    silos.append(silo(stage, "hospital-c", None))
    assert [each.wait() for each in (*silos, server)] == [0, 0, 0, 0]

    found = readings(stage)
    assert found.keys() == {(number, name) for number in (2, 3) for name in ("hospital-a", "hospital-b")}
    for measured in found.values():
        assert {"fid", "kid", "precision", "recall"} <= measured.keys()
        basis = (measured["fid"].samples, measured["fid"].reference, measured["fid"].against)
        assert basis == (16, 12, "own training images")
        assert measured["fid"].digest == hashlib.sha256(extractor.read_bytes()).hexdigest()
    pictures = sorted(path.relative_to(stage.home).as_posix() for path in (stage.home / "grids").rglob("*.png"))
    assert pictures == [f"grids/round-000{n}/hospital-{silo}.png" for n in (2, 3) for silo in "ab"]
    with Image.open(stage.home / pictures[0]) as grid:
        assert grid.size == (4 * 9 - 1, 4 * 9 - 1)
    assert "give --extractor FILE" in silos[2].told()
    assert "give --extractor FILE" not in silos[0].told()
    assert not (stage.home / "statistics").exists()
    # What left a silo lies there for its people to see.
    assert (stage.folder / "hospital-a" / "measured.png").read_bytes() == (stage.home / pictures[2]).read_bytes()


@pytest.mark.parametrize(
    "where", ["daemon.Silo._submit", pytest.param("gauge.Gauge._grid", marks=pytest.mark.slow)], ids=("told", "not yet")
)
def test_a_silo_is_killed_around_its_measurement(stage: Stage, where: str) -> None:
    extractor = network(stage)
    rules = quality(extractor, "silos = true\ngrids = true")
    stage.found("udec", rounds=1, silos=1, unet=TINY_UNET, more=rules)
    server = stage.serve()
    doomed = stage.run("hospital-a", "-c", LAST_WORDS.format(where=where), *command(stage, "hospital-a", extractor))
    assert doomed.wait() == -9
    before = readings(stage)
    assert bool(before) == ("_submit" in where)
    again = silo(stage, "hospital-a", extractor)
    assert [again.wait(), server.wait()] == [0, 0]
    # In both lives together.
    assert Counter(re.findall(r"round 1 (trained|measured)", again.told())) == {"trained": 1, "measured": 1}
    found = readings(stage)
    assert found.keys() == {(1, "hospital-a")}
    assert not before or before == found
    assert stage.opened().journal.rounds()[0].silos == ("hospital-a",)


class Slow:
    """A gauge that takes longer than the federator would wait for a silo that says nothing."""

    def due(self, round: int) -> bool:
        return True

    def measure(self, vectors: object, seed: int, folder: Path, told: Told) -> Reading:
        for step in range(80):
            assert told(step, 80, "sampling")
            time.sleep(0.05)
        return Reading((number(),))


def test_a_silo_that_measures_for_long_is_waited_for(stage: Stage) -> None:
    server = stage.found("udec", rounds=1, more=f"deadline = 2\n{quality(DIGEST)}").serve()
    stage.hospital("hospital-b").start()
    slow = stage.hospital("hospital-a")
    slow.learner.gauge = cast(Gauge, Slow())
    slow.start()
    stage.until("it measures", lambda: stage.silo_status("hospital-a").get("phase") == "measuring")
    assert server.wait() == 0
    assert stage.opened().journal.rounds()[0].silos == ("hospital-a", "hospital-b")
    assert readings(stage) == {(1, "hospital-a"): {"fid": number()}}


def test_another_extractor_ends_a_silo_before_it_trains(stage: Stage) -> None:
    extractor = network(stage)
    stage.found("udec", rounds=1, silos=1, unet=TINY_UNET, more=quality("00" * 32))
    stage.serve()
    done = stage.call(SILO, *command(stage, "hospital-a", extractor))
    assert done.code == 78
    assert "is not the federation's extractor" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not stage.silo_status("hospital-a")["reachable"]


@pytest.mark.slow
def test_the_moments_of_unequal_silos_are_those_of_all_images_together(stage: Stage) -> None:
    extractor, sizes = network(stage), {"hospital-a": 5, "hospital-b": 40, "hospital-c": 17}
    stage.found(rounds=1, silos=3, unet=TINY_UNET, more=quality(extractor, 'reference = "federated"'))
    server = stage.serve("--extractor", str(extractor))
    for seed, (name, count) in enumerate(sizes.items()):
        images(stage.folder / "data" / name, count, seed)
    tokens = [f"{name}={stage.invite(name)}" for name in sizes]
    host = ("-m", "feddiff.bench.host", stage.address, str(stage.folder), *tokens)
    more = ("--data", str(stage.folder / "data"), "--extractor", str(extractor))
    assert stage.run("silos", *host, *more).wait() == 0
    assert server.wait() == 0

    config, loaded = stage.opened().config, Extractor.load(extractor)
    parts = [Moments.from_bytes((stage.home / "statistics" / f"{name}.moments").read_bytes()) for name in sizes]
    assert [part.count for part in parts] == [*sizes.values()]
    pixels = np.concatenate([read_images(stage.folder / "data" / name, config).pixels for name in sizes])
    pooled, merged = loaded.features(pixels).moments(), reduce(add, parts)
    assert merged.count == len(pixels) == 62
    others = loaded.features(np.random.default_rng(9).integers(0, 200, (50, 1, 8, 8), np.uint8)).moments()
    assert fid(others, merged) == pytest.approx(fid(others, pooled), rel=1e-9)
    assert fid(others, merged) > 1e-3


def moments(count: int = 4, size: int = TELLS, digest: str = DIGEST, seed: int = 0) -> bytes:
    features = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return Moments.of(features, digest).to_bytes()


def contribution(data: bytes, size: int | None = None) -> Iterator[pb.ContributeRequest]:
    offer = pb.ContributeRequest.Offer(size=size or len(data), digest=hashlib.sha256(data).hexdigest())
    yield pb.ContributeRequest(offer=offer)
    for start in range(0, len(data), wire.PIECE_BYTES):
        yield pb.ContributeRequest(piece=data[start : start + wire.PIECE_BYTES])


def endless(size: int) -> Iterator[pb.ContributeRequest]:
    yield pb.ContributeRequest(offer=pb.ContributeRequest.Offer(size=size, digest="00" * 32))
    while True:
        yield pb.ContributeRequest(piece=bytes(wire.PIECE_BYTES))


def number(metric: str = "fid", value: float = 2.0, **other: object) -> Measured:
    basis = {"samples": 16, "reference": 4, "against": "own training images", "extractor": "t", "digest": DIGEST}
    return Measured(metric, value, None, **{**basis, **other})  # type: ignore[arg-type]


def told(*numbers: Measured, round: int = 1, grid: bytes = b"") -> pb.MeasureRequest:
    return pb.MeasureRequest(round=round, numbers=wire.measured_to(numbers), grid=grid)


def test_a_silo_that_lies_about_quality_is_refused_and_nothing_of_it_is_kept(stage: Stage) -> None:
    extractor = stage.folder / "any.pt"
    extractor.write_bytes(b"nobody loads it here")
    digest = hashlib.sha256(extractor.read_bytes()).hexdigest()
    more = quality(digest, 'silos = true\ngrids = true\nreference = "federated"\nevery = 2')
    server = stage.found(rounds=2, more=more).serve("--extractor", str(extractor))
    honest = stage.hospital("hospital-b").start()
    state = stage.enrol("hospital-a")
    stub = stage.stub(state)

    def join(samples: int = 4) -> pb.JoinReply:
        return stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=samples), timeout=10)

    def refused(kind: type[FedDiffError], call: object) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()  # type: ignore[operator]
        assert isinstance(wire.raised(caught.value), kind), caught.value

    refused(ProtocolError, lambda: stub.Measure(told(number(digest=digest)), timeout=10))  # before it has joined
    refused(ProtocolError, lambda: stub.Contribute(contribution(moments(digest=digest)), timeout=10))
    assert join().statistics == ""
    stage.until("round 1 is open", lambda: stage.status()["round"] == 1)

    for lie in (endless(1 << 62), endless(1), endless(1 << 20), contribution(moments(digest=digest), size=1 << 40)):
        refused(TransferError, lambda lie=lie: stub.Contribute(lie, timeout=20))
    for lie in (
        contribution(moments()),
        contribution(moments(count=5, digest=digest)),
        contribution(os.urandom(100_000)),
        iter([pb.ContributeRequest(piece=b"x")]),
        iter([]),
    ):
        refused(ProtocolError, lambda lie=lie: stub.Contribute(lie, timeout=20))
    assert not any((stage.home / "statistics").glob("*"))

    # Round 1 is not one that is measured; the next one is.
    refused(ProtocolError, lambda: stub.Measure(told(number(digest=digest)), timeout=10))
    silo = stage.noise("hospital-a", samples=4)
    stage.until("round 1 is over", lambda: stage.status()["round"] == 2 or server.code is not None)
    assert [silo.wait(), server.wait()] == [0, 0]
    assert honest.error is None
    assert readings(stage) == {}
    assert not (stage.home / "grids").exists()


def test_what_is_told_of_a_measured_round_is_checked_number_by_number_and_its_bytes_count(stage: Stage) -> None:
    extractor = stage.folder / "any.pt"
    extractor.write_bytes(b"nobody loads it here")
    digest = hashlib.sha256(extractor.read_bytes()).hexdigest()
    more = quality(digest, 'silos = true\ngrids = true\nreference = "federated"')
    server = stage.found(rounds=1, more=more).serve("--extractor", str(extractor))
    stage.hospital("hospital-b").start()
    state = stage.enrol("hospital-a")
    stub = stage.stub(state)
    join = pb.JoinRequest(protocol=wire.PROTOCOL, samples=4)
    assert stub.Join(join, timeout=10).statistics == ""
    stage.until("round 1 is open", lambda: stage.status()["round"] == 1)
    buffer = io.BytesIO()
    Image.new("L", (17, 17)).save(buffer, "PNG")

    fine = number(digest=digest)
    for lie, kind in (
        (told(fine, number(value=float("nan"), digest=digest)), ProtocolError),
        (told(fine, number("kid", float("-inf"), digest=digest)), ProtocolError),
        (told(fine, number()), ProtocolError),
        (told(fine, number(samples=10**9, digest=digest)), ProtocolError),
        (told(*[fine] * 33), TooLarge),
        (told(*[fine] * 40_000), TooLarge),
        (told(*[fine] * 60_000), TooLarge),  # over the size of any message
        (told(fine, grid=buffer.getvalue() + bytes(1 << 20)), TooLarge),
        (told(fine, grid=b"no picture"), ProtocolError),
        (told(fine, round=2), FedDiffError),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Measure(lie, timeout=20)
        assert isinstance(wire.raised(caught.value), kind), caught.value
    assert readings(stage) == {}
    assert not (stage.home / "grids").exists()

    stub.Measure(told(fine, number("kid", -0.01, digest=digest), grid=buffer.getvalue()), timeout=10)
    data = moments(digest=digest)
    stub.Contribute(contribution(data), timeout=10)
    assert stub.Join(join, timeout=10).statistics == hashlib.sha256(data).hexdigest()
    assert (stage.home / "statistics" / "hospital-a.moments").read_bytes() == data
    kept = stage.home / "grids" / "round-0001" / "hospital-a.png"
    assert kept.read_bytes() == buffer.getvalue()
    silo = stage.noise("hospital-a", samples=4)
    assert [silo.wait(), server.wait()] == [0, 0]
    assert {key: [*values] for key, values in readings(stage).items()} == {(1, "hospital-a"): ["fid", "kid"]}
    protocol = [e for e in stage.ledger() if (e["silo"], e["segment"], e["direction"]) == ("hospital-a", "", "up")]
    assert sum(entry["wire"] for entry in protocol) > len(data)


def test_without_quality_in_the_rules_nothing_is_taken(stage: Stage) -> None:
    server = stage.found(rounds=1).serve()
    stub = stage.stub(stage.enrol("hospital-a"))
    assert stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=4), timeout=10).statistics == ""
    for call in (
        lambda: stub.Measure(told(number()), timeout=10),
        lambda: stub.Contribute(contribution(moments()), timeout=10),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert isinstance(wire.raised(caught.value), ProtocolError)
    stage.hospital("hospital-b").start()
    silo = stage.noise("hospital-a", samples=4)
    assert [silo.wait(), server.wait()] == [0, 0]
    left = {path.name for path in stage.home.iterdir()}
    assert not left & {"statistics", "grids", "measuring"}
    assert not {"measured.json", "features"} & {path.name for path in (stage.folder / "hospital-a").iterdir()}
