"""federator/checking.py, tally.py: who checks whom, what it may fetch for that, and bytes that two ends tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from feddiff.core.manifests import publication
from feddiff.core.peers import Input, Sample, Tallied, sampled
from feddiff.core.ranges import Range
from feddiff.core.sections import CodecConfig
from feddiff.federator.checking import Checking
from feddiff.federator.database import Database
from feddiff.federator.tally import Tally, text

CODEC = CodecConfig(chunk_elements=1024, up="int8", down="int8")
SIZE = 9000


def samples(owner: str = "a", chunks: int = 4) -> list[Sample]:
    whole = publication(CODEC, "decoder", SIZE, 2, 3)
    result = Range("decoder", 2, 2 + chunks).of(whole, "mark")
    inputs = (Input("a", 1.0, b"a" * 16), Input("b", 2.0, b"b" * 16))
    return [Sample(owner, result, 2, chunk, inputs, b"", b"r" * 16, b"l" * 16) for chunk in range(2, 2 + chunks)]


def test_as_many_chunks_are_drawn_as_are_asked_for() -> None:
    checking = Checking()
    checking.begin("a", samples("a"), 3)
    checking.begin("b", samples("b"), 9)
    checking.begin("c", samples("c"), 0)
    assert [len(checking.checks[owner].samples) for owner in "abc"] == [3, 4, 0]
    assert len({sample.chunk for sample in checking.checks["a"].samples}) == 3
    assert checking.waiting() == ["a", "b"]


def test_all_chunks_are_drawn_some_time() -> None:
    seen = set()
    for _ in range(400):
        checking = Checking()
        checking.begin("a", samples(), 1)
        seen.add(checking.checks["a"].samples[0].chunk)
    assert seen == {2, 3, 4, 5}


def test_nobody_checks_itself_and_who_cannot_is_not_asked_again() -> None:
    checking = Checking()
    checking.begin("a", samples(), 1)
    assert not checking.assign({"a", "b", "c"})
    first = checking.checks["a"].checker
    assert first in "bc"
    assert checking.of(first)
    assert not checking.judged("a", "a", True), "it was not asked"
    assert checking.judged("a", first, False)
    assert not checking.assign({"a", "b", "c"})
    second = checking.checks["a"].checker
    assert {first, second} == {"b", "c"}
    assert checking.judged("a", second, False)
    assert checking.assign({"a", "b", "c"}) == ["a"], "it refuses all"
    assert checking.waiting() == ["a"]


def test_a_silo_alone_is_not_checked() -> None:
    checking = Checking()
    checking.begin("a", samples(), 2)
    assert not checking.assign({"a"})
    assert not checking.waiting()


def test_another_checks_when_the_checker_goes() -> None:
    checking = Checking()
    checking.begin("a", samples(), 1)
    checking.assign({"a", "b"})
    checking.assign({"a", "c"})
    assert checking.checks["a"].checker == "c"
    assert not checking.judged("a", "b", True)
    assert checking.judged("a", "c", True)
    assert not checking.waiting()


def test_a_checker_may_fetch_the_pieces_of_its_samples_and_no_others() -> None:
    checking = Checking()
    checking.begin("a", samples(chunks=1), 1)
    assert checking.grants("a", CODEC, {"decoder": SIZE}, 7) == {}
    checking.assign({"a", "b"})
    assert checking.grants("b", CODEC, {"decoder": SIZE}, 7) == {}
    granted = checking.grants("a", CODEC, {"decoder": SIZE}, 7)
    assert granted == {
        "b": [
            "up.7.a.decoder.2-3.2-3",
            "up.7.b.decoder.2-3.2-3",
            "down.decoder.2-3.2-3.mark.2-3",
            "lost.decoder.3.2-3",
        ]
    }
    checking.judged("a", "b", True)
    assert checking.grants("a", CODEC, {"decoder": SIZE}, 7) == {}


def test_the_pieces_of_a_sample_are_one_chunk_each() -> None:
    (sample,) = samples(chunks=1)
    pieces = sampled(sample, CODEC, SIZE, 7)
    assert [(manifest.start, manifest.elements, manifest.codec) for manifest, _ in pieces] == [
        (2048, 1024, "int8"),
        (2048, 1024, "int8"),
        (2048, 1024, "int8"),
        (2048, 1024, "fp32"),
    ]


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(Database(tmp_path / "federation.db"))


def test_both_ends_of_what_was_sent_are_compared(tally: Tally) -> None:
    mine = Tallied("a", "b", "decoder", "update", 100, 300, 0, 2.0)
    tally.add(1, "a", [mine, Tallied("b", "c", "decoder", "update", 5, 5)])  # of others it can tell nothing
    tally.add(1, "b", [Tallied("a", "b", "decoder", "update", 60, 200, 230)])
    (flow,) = tally.flows()
    assert (flow.parameters, flow.encoded, flow.wire, flow.seconds, flow.agreed) == (100, 300, 230, 2.0, False)
    tally.add(1, "b", [Tallied("a", "b", "decoder", "update", 40, 100, 120)])
    (flow,) = tally.flows()
    assert (flow.wire, flow.agreed) == (350, True)
    assert "differ" not in text([flow])


def test_rates_are_of_rounds_that_moved_something(tally: Tally) -> None:
    assert tally.rate("a", 3) is None
    for round, size in ((1, 1 << 20), (2, 4 << 20), (3, 2 << 20), (4, 100)):
        tally.add(round, "a", [Tallied("a", "b", "decoder", "update", 1, size, 0, 1.0)])
    assert tally.rate("a", 3) == 2 << 20
    assert tally.rate("b", 3) is None
