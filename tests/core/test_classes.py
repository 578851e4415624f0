"""Classes in the shares of images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.classes import lacking, proportional

images = st.lists(st.integers(0, 1000), min_size=1, max_size=6)


@given(images, st.integers(0, 500))
def test_every_prefix_has_the_shares_of_the_images_to_within_one(counts: list[int], samples: int) -> None:
    dealt = proportional(counts, samples)
    assert len(dealt) == samples
    shares = counts if any(counts) else [1] * len(counts)
    for length in {1, samples // 3, samples}:
        for label, share in enumerate(shares):
            quota = length * share / sum(shares)
            # Sainte-Laguë keeps quota but in rare cases by one (Balinski & Young 1982): never by more here.
            assert abs(dealt[:length].count(label) - quota) < 2
    assert all(shares[label] for label in dealt)


def test_equal_shares_go_round() -> None:
    assert proportional([7, 7, 7], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert proportional([0, 0], 3) == [0, 1, 0]
    assert proportional([3, 1], 8) == [0, 0, 1, 0, 0, 0, 1, 0]


@given(images)
def test_what_is_lacking_makes_all_classes_equally_frequent(counts: list[int]) -> None:
    added = lacking(counts)
    assert {count + more for count, more in zip(counts, added, strict=True)} == {max(counts)}
    assert added[counts.index(max(counts))] == 0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 150))
def test_of_fewer_images_each_goes_to_the_class_that_is_the_rarest_then(counts: list[int], most: int) -> None:
    after = list(counts)
    for _ in range(most):
        rarest = min(after)
        if rarest < max(counts):
            after[after.index(rarest)] += 1
    assert lacking(counts, most) == [now - before for now, before in zip(after, counts, strict=True)]


def test_a_silo_of_one_class_lacks_all_of_the_others() -> None:
    assert lacking([12, 0, 7]) == [0, 12, 5]
    assert lacking([12, 0, 7], 8) == [0, 8, 0]
    assert lacking([12, 0, 7], 10) == [0, 9, 1]
    assert lacking([5, 5]) == [0, 0]
    assert lacking([]) == []
