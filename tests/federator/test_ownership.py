"""federator/ownership.py: every chunk has one owner, in proportion to the links; who goes leaves the others alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.errors import NotSelected
from feddiff.core.ranges import Range
from feddiff.federator.ownership import deal, own, reassign, usable

SEGMENTS = st.dictionaries(st.sampled_from(["encoder.in", "encoder.0", "bottleneck", "decoder.0"]), st.integers(1, 60),
                           min_size=1)  # fmt: skip
SILOS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 100), min_size=1)


def chunks(owners: dict[Range, str]) -> list[tuple[str, int]]:
    return [(each.segment, chunk) for each in owners for chunk in range(each.first, each.end)]


def loads(owners: dict[Range, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for each, owner in owners.items():
        found[owner] += each.chunks
    return found


@given(segments=SEGMENTS, rates=SILOS)
def test_every_chunk_has_one_owner_in_proportion_to_the_links(
    segments: dict[str, int], rates: dict[str, float]
) -> None:
    owners = dict(own(segments, rates).owners)
    assert sorted(chunks(owners)) == sorted((name, chunk) for name, count in segments.items() for chunk in range(count))
    total = sum(segments.values())
    for silo, rate in rates.items():
        assert abs(loads(owners)[silo] - total * rate / sum(rates.values())) <= 1
    assert len(owners) <= len(segments) + len(rates) - 1


@given(segments=SEGMENTS, rates=SILOS, gone=st.sets(st.sampled_from("abcdefgh")))
def test_the_ranges_of_who_is_gone_go_to_others(
    segments: dict[str, int], rates: dict[str, float], gone: set[str]
) -> None:
    before = dict(own(segments, rates).owners)
    left = {silo: rate for silo, rate in rates.items() if silo not in gone}
    if not left:
        with pytest.raises(NotSelected):
            reassign(before, left)
        return
    after = dict(reassign(before, left).owners)
    assert sorted(chunks(after)) == sorted(chunks(before))
    assert set(after.values()) <= left.keys()
    assert {each: owner for each, owner in before.items() if owner in left}.items() <= after.items()


def test_owners_keep_their_ranges_while_that_is_fair() -> None:
    segments = {"decoder": 100}
    before = own(segments, {"a": 1.0, "b": 1.0}).owners
    assert own(segments, {"a": 1.2, "b": 1.0}, before).owners == before
    assert loads(dict(own(segments, {"a": 3.0, "b": 1.0}, before).owners)) == {"a": 75, "b": 25}
    assert loads(dict(own(segments, {"a": 1.0, "b": 1.0, "c": 2.0}, before).owners)) == {"a": 25, "b": 25, "c": 50}
    assert own({"decoder": 101}, {"a": 1.0, "b": 1.0}, before).owners != before


def test_nobody_cannot_own() -> None:
    with pytest.raises(NotSelected):
        own({"decoder": 1}, {})


def test_owners_are_reached_by_all() -> None:
    assert usable("abcd", [frozenset("ab")]) == {"c", "d"}
    assert usable("abc", [frozenset("ab"), frozenset("bc")]) == set()


def test_chunks_are_dealt_in_order() -> None:
    assert deal([Range("x", 0, 3), Range("y", 4, 6)], {"b": 1.0, "a": 1.5}) == {
        Range("x", 0, 3): "a",
        Range("y", 4, 6): "b",
    }
