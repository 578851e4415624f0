"""core/moments.py, core/neighbours.py and core/quality.py against closed forms, and torchmetrics if installed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core import moments, neighbours
from feddiff.core.errors import DataError
from feddiff.core.moments import F64, Moments, fid
from feddiff.core.neighbours import memorisation, precision_recall
from feddiff.core.quality import (
    Features,
    Measured,
    class_distribution,
    inception_score,
    kid,
    measure,
    measure_copies,
    personalisation,
)

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, count: int, size: int, mean: float = 0.0) -> F64:
    """Features whose spread differs from one to the next, and which are correlated."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, size)) @ generator.normal(size=(size, size)) + mean


def exactly(mean: F64, covariance: F64, count: int = 100) -> Moments:
    """Moments with this very mean and covariance."""
    return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


class TestMoments:
    @given(SEEDS, st.integers(1, 6), st.lists(st.integers(1, 40), min_size=1, max_size=5))
    def test_of_parts_add_up_to_those_of_the_whole(self, seed: int, size: int, parts: list[int]) -> None:
        whole = normal(seed, sum(parts), size, mean=3)
        pieces = np.split(whole, np.cumsum(parts)[:-1])
        merged, pooled = Moments.of(pieces[0]), Moments.of(whole)
        for piece in pieces[1:]:
            merged = merged + Moments.of(piece)
        assert merged.count == len(whole)
        np.testing.assert_allclose(merged.sum, pooled.sum, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(merged.outer, pooled.outer, rtol=1e-9, atol=1e-9)

    def test_give_numpys_mean_and_covariance_block_by_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moments, "BLOCK", 7)
        features = normal(0, 30, 4, mean=2)
        found = Moments.of(features)
        np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9)

    @given(SEEDS, st.integers(1, 9), st.sampled_from(["", "0af" * 21]))
    def test_come_back_from_bytes_bit_by_bit(self, seed: int, size: int, digest: str) -> None:
        found = Moments.of(normal(seed, 12, size).astype(np.float32), digest)
        back = Moments.from_bytes(found.to_bytes())
        assert (back.count, back.digest) == (12, digest)
        assert back.sum.tobytes() == found.sum.tobytes()
        assert back.outer.tobytes() == found.outer.tobytes()

    @given(st.data())
    def test_damaged_bytes_are_refused_or_still_moments(self, data: st.DataObject) -> None:
        good = bytearray(Moments.of(normal(1, 5, 3)).to_bytes())
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            found = Moments.from_bytes(bytes(good[: data.draw(st.integers(len(good) - 2, len(good)))]))
        except DataError:
            return
        assert found.outer.shape == (found.size, found.size)
        assert np.isfinite(found.outer).all()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"size": 2', b'"size": 3'),
            (b'"size": 2', b'"size": 999999999'),
            (b'"count": 5', b'"count": -5'),
            (b'"count": 5', b'"count": 5.0'),
            (b'"digest": ""', b'"digest": "no hex"'),
            (b'"digest": ""', b'"more": ""'),
            (b"{", b"["),
        ],
    )
    def test_foreign_headers_are_refused(self, old: bytes, new: bytes) -> None:
        good = Moments.of(normal(1, 5, 2)).to_bytes()
        length = int.from_bytes(good[:8], "little")
        header = good[8 : 8 + length].replace(old, new)
        with pytest.raises(DataError):
            Moments.from_bytes(len(header).to_bytes(8, "little") + header + good[8 + length :])

    @pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\xff" * 100, (5000).to_bytes(8, "little") + bytes(6000)])
    def test_a_length_is_not_believed(self, data: bytes) -> None:
        with pytest.raises(DataError):
            Moments.from_bytes(data)

    @pytest.mark.parametrize(
        ("sum", "outer"),
        [
            ([9.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]),  # a mean beyond the mean square
            ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]),  # a correlation of 2
            ([0.0, 0.0], [[-1.0, 0.0], [0.0, 1.0]]),
            ([math.nan, 0.0], [[1.0, 0.0], [0.0, 1.0]]),
            ([0.0, 0.0], [[1e300, 0.0], [0.0, 1.0]]),
        ],
    )
    def test_sums_that_no_images_have_are_refused(self, sum: list[float], outer: list[list[float]]) -> None:
        with pytest.raises(DataError, match="no images have such sums"):
            Moments.from_bytes(Moments(4, np.array(sum), np.array(outer)).to_bytes())

    def test_of_two_extractors_do_not_add(self) -> None:
        features = normal(0, 9, 3)
        with pytest.raises(DataError, match="two extractors"):
            Moments.of(features, "a" * 64) + Moments.of(features, "b" * 64)
        with pytest.raises(DataError, match="two extractors"):
            Moments.of(features) + Moments.of(features[:, :2])

    @pytest.mark.parametrize("features", [np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan), np.zeros((2, 5000))])
    def test_need_features(self, features: F64) -> None:
        with pytest.raises(DataError):
            Moments.of(features)


class TestFid:
    def test_of_gaussians_with_commuting_covariances(self) -> None:
        """|m1 - m2|^2 + the sum of (s1 - s2)^2 over common axes (Dowson & Landau 1982)."""
        axes = np.linalg.qr(normal(0, 5, 5))[0]
        deviations = np.array([[1.0, 2.0, 3.0, 0.5, 0.0], [2.0, 2.0, 1.0, 0.1, 4.0]])
        means = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
        one, other = (exactly(m, axes @ np.diag(s**2) @ axes.T) for m, s in zip(means, deviations, strict=True))
        expected = float(np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2))
        assert fid(one, other) == pytest.approx(expected, rel=1e-9)

    def test_of_two_features_whose_covariances_do_not_commute(self) -> None:
        """For 2x2, tr (S1 S2)^(1/2) = (tr S1 S2 + 2 (det S1 S2)^(1/2))^(1/2)."""
        one, other = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
        product = one @ other
        root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
        mean = np.array([1.0, 2.0])
        expected = np.trace(one) + np.trace(other) - 2 * root
        assert fid(exactly(mean, one), exactly(mean, other)) == pytest.approx(expected, rel=1e-9)

    @settings(deadline=None)
    @given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.integers(1, 12))
    def test_is_a_distance_whatever_the_rank(self, seed: int, n: int, m: int, size: int) -> None:
        one, other = Moments.of(normal(seed, n, size)), Moments.of(normal(seed + 1, m, size, mean=1))
        scale = float(np.trace(one.covariance) + np.trace(other.covariance)) + 1
        assert fid(one, other) >= 0
        assert fid(one, other) == pytest.approx(fid(other, one), abs=1e-9 * scale)
        assert fid(one, one) == pytest.approx(0, abs=1e-9 * scale)

    def test_of_constant_features_is_their_distance(self) -> None:
        assert fid(Moments.of(np.zeros((3, 2))), Moments.of(np.full((4, 2), 3.0))) == 18

    def test_of_silos_moments_is_that_of_the_pooled_images(self) -> None:
        samples, silos = normal(0, 200, 8), [normal(seed, 50 + 30 * seed, 8, mean=seed) for seed in range(1, 5)]
        federated = Moments.of(silos[0])
        for silo in silos[1:]:
            federated = federated + Moments.from_bytes(Moments.of(silo).to_bytes())
        pooled = Moments.of(np.concatenate(silos))
        assert fid(Moments.of(samples), federated) == pytest.approx(fid(Moments.of(samples), pooled), rel=1e-9)

    def test_needs_two_images_of_one_extractor(self) -> None:
        features = normal(0, 5, 3)
        with pytest.raises(DataError, match="at least 2"):
            fid(Moments.of(features[:1]), Moments.of(features))
        with pytest.raises(DataError, match="two extractors"):
            fid(Moments.of(features, "a" * 64), Moments.of(features, "b" * 64))


class TestKid:
    @pytest.mark.parametrize("mean", [0.0, 0.5])
    def test_is_the_mmd_written_out(self, mean: float) -> None:
        one, other = normal(0, 6, 3), normal(1, 6, 3, mean=mean)

        def kernel(x: F64, y: F64) -> float:
            return float((x @ y / 3 + 1) ** 3)

        within = [
            sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / 30 for s in (one, other)
        ]
        between = sum(kernel(x, y) for x in one for y in other) / 36
        assert kid(one, other) == (pytest.approx(sum(within) - 2 * between, rel=1e-9), 0.0)

    def test_is_about_nothing_for_one_distribution_and_more_for_another(self) -> None:
        generator = np.random.default_rng(0)
        one, other = generator.normal(size=(2, 2000, 4))
        mean, spread = kid(one, other, subsets=30, size=200)
        assert abs(mean) < 3 * spread / math.sqrt(30)
        assert kid(one, other + 1, subsets=30, size=200)[0] > 20 * spread

    def test_is_drawn_by_its_seed(self) -> None:
        one, other = normal(0, 100, 3), normal(1, 80, 3)
        assert kid(one, other, 5, 20, seed=1) == kid(one, other, 5, 20, seed=1) != kid(one, other, 5, 20, seed=2)

    def test_needs_two_of_each(self) -> None:
        with pytest.raises(DataError, match="at least 2"):
            kid(normal(0, 1, 3), normal(1, 9, 3))
        with pytest.raises(DataError, match="one extractor"):
            kid(normal(0, 9, 2), normal(1, 9, 3))


class TestPrecisionRecall:
    def test_of_known_sets(self) -> None:
        """On a line with k = 1: two of four samples are within 1 of an image; 2 is beyond the 0.5 of those two."""
        reference = np.array([[0.0], [1.0], [2.0]])
        samples = np.array([[0.5], [1.0], [9.0], [10.0]])
        assert precision_recall(samples, reference, k=1) == (0.5, pytest.approx(2 / 3))

    def test_of_a_mode_left_out(self) -> None:
        generator = np.random.default_rng(0)
        left, right = generator.normal(size=(200, 5)), generator.normal(size=(200, 5)) + 50
        precision, recall = precision_recall(left[:100], np.concatenate([left[100:], right]))
        assert precision > 0.7
        assert recall < 0.5
        assert precision_recall(left, right) == (0, 0)

    @settings(deadline=None)
    @given(SEEDS, st.integers(4, 30), st.integers(1, 5), st.floats(0, 1e4))
    def test_of_equal_sets_is_1_even_far_from_the_origin(self, seed: int, n: int, size: int, mean: float) -> None:
        features = np.concatenate([normal(seed, n, size, mean)] * 2)  # with duplicates: radii of 0 for k = 1
        assert precision_recall(features, features[::-1], k=1) == (1, 1)
        assert precision_recall(features, features[::-1], k=3) == (1, 1)

    def test_is_the_same_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        samples, reference = normal(0, 60, 4), normal(1, 50, 4)
        whole = precision_recall(samples, reference)
        monkeypatch.setattr(neighbours, "BLOCK_DISTANCES", 120)
        assert precision_recall(samples, reference) == whole

    def test_needs_more_than_k(self) -> None:
        with pytest.raises(DataError, match="needs 4"):
            precision_recall(normal(0, 3, 2), normal(1, 9, 2), k=3)


class TestMemorisation:
    def test_of_fresh_images_is_as_expected(self) -> None:
        generator = np.random.default_rng(0)
        samples, training, held_out = (generator.normal(size=(600, 6)) for _ in range(3))
        check = memorisation(samples, training, held_out)
        assert check.expected == 0.01
        assert check.share < 0.03
        assert abs(check.copying) < 3
        assert 0.3 < check.authentic < 0.6

    def test_of_copies_is_found_and_the_originals_named(self) -> None:
        generator = np.random.default_rng(0)
        training, held_out, fresh = (generator.normal(size=(300, 6)) for _ in range(3))
        samples = np.concatenate([fresh[:150], training[:150] + 1e-3])
        check = memorisation(samples, training, held_out)
        assert check.share == pytest.approx(0.5, abs=0.03)
        assert check.copying < -3
        assert check.authentic < 0.3
        assert all(sample - 150 == original for sample, original, _ in check.suspects)
        assert [far for *_, far in check.suspects] == sorted(far for *_, far in check.suspects)

    def test_on_a_line(self) -> None:
        training = np.array([[0.0], [10.0], [11.0]])
        held_out = np.array([[2.0], [13.0], [7.0], [16.0]])  # 2, 2, 3 and 5 away
        check = memorisation(np.array([[1.0], [15.0], [5.2]]), training, held_out, quantile=0.25)
        assert (check.threshold, check.expected, check.share) == (2, 0.5, pytest.approx(1 / 3))
        assert check.authentic == pytest.approx(2 / 3)  # 1 < 10, 4 > 1, 4.8 > 1
        assert [each[:2] for each in check.suspects] == [(0, 0), (1, 2), (2, 1)]
        # Of 12 pairs samples win (1: 0, 4: 3, 4.8: 3); the variance is 12 (8 - 6 / 42) / 12 for one tie of two.
        assert check.copying == pytest.approx((6 - 6) / math.sqrt(8 - 6 / 42))

    def test_scores_as_the_rank_sum_test(self) -> None:
        stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
        training, held_out, samples = (normal(0, n, 1).round(1) for n in (50, 120, 80))
        samples = samples + 0.1
        far = [np.abs(each - training.T).min(axis=1).round(9) for each in (samples, held_out)]
        expected = stats.mannwhitneyu(*far, use_continuity=False, method="asymptotic")
        check = memorisation(samples, training, held_out)
        assert 2 * (1 - stats.norm.cdf(abs(check.copying))) == pytest.approx(expected.pvalue, rel=0.05)

    def test_needs_enough_held_out(self) -> None:
        with pytest.raises(DataError, match="100 held-out"):
            memorisation(normal(0, 9, 2), normal(1, 9, 2), normal(2, 99, 2))


class TestInceptionScore:
    def test_of_certain_and_even_classes_is_their_number(self) -> None:
        assert inception_score(np.eye(7)[np.arange(70) % 7], splits=1) == (pytest.approx(7), 0)

    def test_of_no_knowledge_is_1(self) -> None:
        assert inception_score(np.full((50, 4), 0.25)) == (pytest.approx(1), pytest.approx(0))

    @given(SEEDS, st.integers(2, 6), st.integers(10, 40))
    def test_is_between_1_and_the_classes(self, seed: int, classes: int, count: int) -> None:
        rows = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), count)
        assert 1 - 1e-9 <= inception_score(rows, splits=3)[0] <= classes + 1e-9

    def test_refuses_logits_and_too_few(self) -> None:
        with pytest.raises(DataError, match="not logits"):
            inception_score(normal(0, 20, 3))
        with pytest.raises(DataError, match="as many samples"):
            inception_score(np.full((9, 2), 0.5))


class TestClassDistribution:
    def test_counts_and_compares(self) -> None:
        found = class_distribution(np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]), 3)
        assert (found.samples, found.reference) == ((3, 1, 0), (2, 2, 0))
        assert found.divergence == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=0.01)

    @given(st.lists(st.integers(0, 4), min_size=1), st.integers(1, 5))
    def test_is_nothing_for_equal_shares_of_unequal_numbers(self, labels: list[int], times: int) -> None:
        assert class_distribution(np.array(labels), np.array(labels * times), 5).divergence == pytest.approx(
            0, abs=1e-12
        )

    @given(*[st.lists(st.integers(0, 4), min_size=1)] * 2)
    def test_is_finite_and_never_negative(self, one: list[int], other: list[int]) -> None:
        assert 0 <= class_distribution(np.array(one), np.array(other), 5).divergence <= math.log(5 / 1e-3)

    @pytest.mark.parametrize("labels", [[], [5], [-1]])
    def test_refuses_other_labels(self, labels: list[int]) -> None:
        with pytest.raises(DataError):
            class_distribution(np.array(labels, np.int64), np.array([0]), 5)


class TestPersonalisation:
    def test_of_hadjigeorgious_table(self) -> None:
        found = personalisation([189.8, 274.2, 202.2, 184.4, 190.4], [137.1, 187.1, 136.3, 127.3, 124.1])
        assert (round(found.api, 1), round(found.mpi, 1), found.pui) == (31.6, 31.8, 100)

    def test_counts_who_is_worse_off(self) -> None:
        found = personalisation([10.0, 10.0], [10.0, 5.0])
        assert (found.api, found.mpi, found.pui) == (25, 25, 50)

    @pytest.mark.parametrize(("shared", "personal"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
    def test_refuses_what_cannot_be(self, shared: list[float], personal: list[float]) -> None:
        with pytest.raises(DataError):
            personalisation(shared, personal)


def features(
    seed: int, count: int, size: int = 6, digest: str = "d" * 64, classes: int = 0, caution: str = ""
) -> Features:
    generator = np.random.default_rng(seed)
    chances = generator.dirichlet(np.ones(classes), count).astype(np.float32) if classes else None
    return Features(generator.normal(size=(count, size)).astype(np.float32), chances, "convnet", digest, caution)


class TestMeasure:
    def test_every_number_says_what_it_was_measured_with(self) -> None:
        found = measure(features(0, 40, classes=3), features(1, 50, classes=3), "test")
        assert [each.metric for each in found] == ["fid", "kid", "precision", "recall", "inception_score", "class_kl"]
        for each in found:
            assert (each.samples, each.extractor, each.digest) == (40, "convnet", "d" * 64)
            assert (each.reference, each.against) == ((0, "") if each.metric == "inception_score" else (50, "test"))
            assert not each.cautions
        assert "40 samples, 50 test images; convnet dddddddd" in str(found[0])

    def test_agrees_with_the_functions(self) -> None:
        samples, reference = features(0, 40), features(1, 50)
        found = {each.metric: each.value for each in measure(samples, reference, "test")}
        assert found["fid"] == fid(Moments.of(samples.values), Moments.of(reference.values))
        assert (found["precision"], found["recall"]) == precision_recall(samples.values, reference.values)

    def test_of_moments_there_is_the_fid_alone(self) -> None:
        samples, reference = features(0, 40), features(1, 50)
        (found,) = measure(samples, reference.moments(), "all silos")
        assert found.value == measure(samples, reference, "all silos")[0].value
        assert (found.metric, found.reference) == ("fid", 50)

    def test_too_few_for_the_features_is_marked(self) -> None:
        found = measure(features(0, 6), features(1, 50), "test")
        assert found[0].cautions == ("biased upwards: 6 samples for 6 features",)
        assert "biased upwards" in str(found[0])
        assert not found[1].cautions
        assert measure(features(0, 50), features(1, 6), "test")[0].cautions

    def test_a_foreign_network_is_marked_everywhere(self) -> None:
        assert all(
            each.cautions == ("odd",) for each in measure(features(0, 40, caution="odd"), features(1, 50), "test")
        )

    def test_two_extractors_are_refused(self) -> None:
        with pytest.raises(DataError, match="two extractors"):
            measure(features(0, 40), features(1, 50, digest="e" * 64), "test")
        with pytest.raises(DataError, match="two extractors"):
            measure_copies(features(0, 40), features(1, 50, digest="e" * 64), features(2, 100))

    @pytest.mark.parametrize("change", [{"samples": 41}, {"reference": 1}, {"digest": "e" * 64}, {"metric": "kid"}])
    def test_only_the_same_measurement_is_comparable(self, change: dict[str, Any]) -> None:
        one = Measured("fid", 3.0, None, 40, 50, "test", "convnet", "d" * 64)
        assert one.comparable(dataclasses.replace(one, value=2.0))
        assert not one.comparable(dataclasses.replace(one, **change))

    def test_copies(self) -> None:
        training = features(1, 50)
        check, found = measure_copies(training, training, features(2, 100))
        assert {each.metric: each.value for each in found} == {
            "memorised": 1.0,
            "copying": check.copying,
            "authentic": 0.0,
        }
        assert all((each.samples, each.reference) == (50, 50) for each in found)
        assert "100 held-out" in str(found[0])


@pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics.*")
class TestTorchmetrics:
    """An independent implementation, fed the same features."""

    @staticmethod
    def given(sets: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], metric: Any) -> Any:
        import torch

        for real, each in zip((False, True), sets, strict=True):
            metric.update(torch.from_numpy(each), real=real)
        return metric.compute()

    @staticmethod
    def network() -> Any:
        """Features are the images."""
        import torch

        class Same(torch.nn.Module):
            num_features = 12

            def forward(self, images: Any) -> Any:
                return images

        return Same()

    @staticmethod
    def sets() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return normal(0, 300, 12).astype(np.float32), normal(1, 250, 12, mean=0.5).astype(np.float32)

    def test_fid(self) -> None:
        image = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
        import torch

        metric = image.FrechetInceptionDistance(self.network(), input_img_size=(12,)).set_dtype(torch.float64)
        expected = float(self.given(self.sets(), metric))
        one, other = self.sets()
        assert fid(Moments.of(one), Moments.of(other)) == pytest.approx(expected, rel=1e-3)

    def test_kid(self) -> None:
        image = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
        one, other = (each[:200] for each in self.sets())
        expected, _ = self.given((one, other), image.KernelInceptionDistance(self.network(), 2, 200))
        assert kid(one, other)[0] == pytest.approx(float(expected), rel=1e-3)

    def test_inception_score(self) -> None:
        image = pytest.importorskip("torchmetrics.image.inception", reason="torchmetrics is not installed")
        import torch

        logits = 2 * self.sets()[0]
        metric = image.InceptionScore(self.network(), splits=1)
        metric.update(torch.from_numpy(logits))
        expected, _ = metric.compute()
        rows = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        assert inception_score(rows / rows.sum(axis=1, keepdims=True), 1)[0] == pytest.approx(float(expected), rel=1e-3)
