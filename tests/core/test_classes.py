"""Classes in the shares of images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.classes import proportional

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
