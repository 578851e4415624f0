"""Clusters of silos: the cosines and the averages are those of a hand's reckoning."""

from __future__ import annotations

import numpy as np

from feddiff.bench.clusters import average, clusters, cosines


def test_cosines_are_of_the_named_segments_alone() -> None:
    updates = [
        {"decoder.0": np.array([3.0, 0.0], np.float32), "encoder.0": np.array([9.0], np.float32)},
        {"decoder.0": np.array([3.0, 4.0], np.float32), "encoder.0": np.array([-9.0], np.float32)},
        {"decoder.0": np.array([0.0, -2.0], np.float32), "encoder.0": np.array([0.0], np.float32)},
    ]
    np.testing.assert_allclose(cosines(updates), [[1, 0.6, 0], [0.6, 1, -0.8], [0, -0.8, 1]], atol=1e-7)


def test_silos_that_agree_share_a_cluster() -> None:
    similar = np.array([[1, 0.1, 0.7, 0], [0.1, 1, 0, 0.6], [0.7, 0, 1, 0.1], [0, 0.6, 0.1, 1]])
    first, second, third, fourth = clusters(similar, 2)
    assert first == third != second == fourth


def test_a_cluster_averages_by_images() -> None:
    models = [{"a": np.array([1.0], np.float32)}, {"a": np.array([5.0], np.float32)}]
    np.testing.assert_allclose(average(models, [3, 1])["a"], [2.0])
