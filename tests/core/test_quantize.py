from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feddiff.core.codec import CODECS
from feddiff.core.errors import FedDiffError, NotFinite, ProtocolError
from feddiff.core.quantize import BLOCK, QUANTISERS, Largest, Uniform
from feddiff.core.segments import F32

CHUNK = 1 << 16
LARGEST = float(np.finfo(np.float32).max)
LEAST = 2.0**-126
UNIFORM = {name: each for name, each in QUANTISERS.items() if isinstance(each, Uniform)}
SPARSE = {name: each for name, each in QUANTISERS.items() if isinstance(each, Largest)}
EVERY = pytest.mark.parametrize("name", QUANTISERS)

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
magnitudes = st.sampled_from([1e-45, 1e-38, 1e-20, 1e-3, 1.0, 1e20, 1e38])


@st.composite
def vectors(draw: st.DrawFn) -> F32:
    """Some blocks, each of a scale of its own, with a few values of any size among them; the last is seldom full."""
    count = draw(st.integers(1, 3 * BLOCK))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    scales = np.array(draw(st.lists(magnitudes, min_size=3, max_size=3)))
    values = (random.standard_normal(3 * BLOCK) * scales.repeat(BLOCK)).clip(-LARGEST, LARGEST)[:count]
    special = draw(hnp.arrays(np.float32, st.integers(0, min(count, 5)), elements=anything))
    values[random.permutation(count)[: special.size]] = special
    return values.astype(np.float32)


def gaussian(count: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def through(name: str, values: F32, base: F32 | None = None) -> F32:
    codec = CODECS[name]
    return codec.decode(codec.encode(values, base), values.size, base)


def error(found: F32, true: F32) -> float:
    """Relative, in L2."""
    return float(np.linalg.norm(found.astype(np.float64) - true) / np.linalg.norm(true.astype(np.float64)))


def coarsest(quantiser: Uniform, values: F32) -> npt.NDArray[np.float64]:
    """For each value, the largest step that the docstring of Uniform allows."""
    wide = values.astype(np.float64)
    needs = []
    for start in range(0, values.size, BLOCK):
        block = wide[start : start + BLOCK]
        needs.append(max(np.abs(block).max() / quantiser.levels, quantiser.rms * np.sqrt(np.mean(block**2))))
    top = max(*needs, LEAST) * (1 + 2.0**-7)
    steps = np.maximum(np.maximum(9 / 8 * np.array(needs), top * 2.0**-31), LEAST)
    return steps.repeat(BLOCK)[: values.size]


# --- how far off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNIFORM)
@settings(deadline=None)
@given(values=vectors())
@example(values=np.array([LARGEST, -LARGEST, 1.0], np.float32))
@example(values=np.full(BLOCK + 1, LARGEST, np.float32))
@example(values=np.array([1e-45, -1e-45], np.float32))
@example(values=np.array([LARGEST] * BLOCK + [1e-45, 1e-30, 1.0, 1e30], np.float32))
def test_no_value_is_off_by_more_than_half_a_step(name: str, values: F32) -> None:
    wide = values.astype(np.float64)
    allowed = coarsest(UNIFORM[name], values) / 2 * (1 + 2.0**-20) + np.abs(wide) * 2.0**-23
    assert np.all(np.abs(through(name, values) - wide) <= allowed)


@pytest.mark.parametrize("name", SPARSE)
@settings(deadline=None)
@given(values=vectors())
@example(values=np.array([LARGEST, -LARGEST, 1.0], np.float32))
@example(values=np.array([1e-45, -1e-45], np.float32))
def test_the_largest_are_off_by_half_a_step_and_the_others_are_dropped(name: str, values: F32) -> None:
    sparse = SPARSE[name]
    wide, found = values.astype(np.float64), through(name, values).astype(np.float64)
    kept = np.sort(np.argsort(-np.abs(wide), kind="stable")[: sparse.kept(values.size)])
    allowed = coarsest(sparse.values, values[kept]) / 2 * (1 + 2.0**-20) + np.abs(wide[kept]) * 2.0**-23
    assert np.all(np.abs(found[kept] - wide[kept]) <= allowed)
    assert not np.delete(found, kept).any()


@EVERY
@settings(deadline=None)
@given(values=vectors(), seed=st.integers(0, 9))
def test_a_delta_is_quantised_as_a_value_would_be(name: str, values: F32, seed: int) -> None:
    base = gaussian(values.size, seed)
    with np.errstate(over="ignore"):
        expected = base + through(name, values - base)
    assert np.array_equal(through(name, values, base), expected)


@EVERY
@pytest.mark.parametrize("count", [1, 2, 7, 254, 255, 256, 257, 511, 1001, 40_001])
def test_odd_sizes_go_through(name: str, count: int) -> None:
    values = gaussian(count)
    worst = {"int8": 0.008, "int4": 0.09, "int2": 0.4}.get(name, 1.0)
    assert error(through(name, values), values) < worst


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("constant", [1e-30, 0.1, -3.0, LARGEST])
def test_a_constant_keeps_its_sign_and_size(name: str, constant: float) -> None:
    values = np.full(1000, constant, np.float32)
    assert error(through(name, values), values) < {"int8": 0.005, "int4": 0.1, "int2": 0.1}[name]


@EVERY
def test_zeros_stay_zeros_and_cost_nothing(name: str) -> None:
    zeros = np.zeros(CHUNK, np.float32)
    assert len(CODECS[name].encode(zeros, None)) < 100
    assert not through(name, zeros).any()


@EVERY
def test_what_no_step_can_hold_becomes_zero(name: str) -> None:
    denormal = np.array([1e-45, -1e-45, 1e-39, -1e-39], np.float32)
    assert not through(name, denormal).any()


def test_a_small_block_beside_a_huge_one_keeps_its_own_precision() -> None:
    values = gaussian(3 * BLOCK)
    values[BLOCK : 2 * BLOCK] *= np.float32(1e-6)
    for name, worst in {"int8": 0.01, "int4": 0.08, "int2": 0.35}.items():
        found = through(name, values)
        assert all(
            error(found[start : start + BLOCK], values[start : start + BLOCK]) < worst
            for start in range(0, values.size, BLOCK)
        )


def test_the_codecs_err_as_they_say() -> None:
    values = gaussian(CHUNK)
    found = {name: error(through(name, values), values) for name in QUANTISERS}
    assert found["int8"] < 0.009 < found["int4"] < 0.072 < found["int2"] < 0.29
    # What the kept part of a Gaussian leaves over: 1 - 2 (t phi(t) + Q(t)) of its energy, Q(t) being half the share.
    for name, share in {"topk": 0.9155, "topk3": 0.8058, "topk10": 0.5612}.items():
        assert found[name] == pytest.approx(share**0.5, rel=0.02)


@EVERY
def test_error_feedback_brings_all_of_it_across(name: str) -> None:
    """The loss stays bounded while the sum grows: the error of the sum falls with the number of rounds."""
    change = gaussian(5000)
    lost, total = np.zeros_like(change), np.zeros_like(change)
    errors = []
    for rounds in range(1, 201):
        sent = through(name, change + lost)
        lost = change + lost - sent
        total += sent
        if rounds in (1, 200):
            errors.append(error(total, np.float32(rounds) * change))
    assert errors[1] < min(errors[0] / 3, 0.3)


# --- how many bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_the_codecs_are_as_small_as_they_say(scale: float) -> None:
    """Gaussian values are the largest that there are at a given variance; changes of weights are a little smaller."""
    values = gaussian(CHUNK) * np.float32(scale)
    least = {"int8": 4.2, "int4": 7.6, "int2": 14, "topk": 250, "topk3": 110, "topk10": 42}
    for name, ratio in least.items():
        assert values.nbytes / len(CODECS[name].encode(values, None)) >= ratio


def test_int8_is_small_whatever_the_values_are() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, CHUNK).astype(np.float32)
    assert values.nbytes / len(CODECS["int8"].encode(values, None)) >= 3.95


# --- which values are kept ----------------------------------------------------------------------------


def test_among_equals_the_first_are_kept() -> None:
    values = np.full(1000, 2.0, np.float32)
    values[::2] *= -1
    values[700] = 5
    found = through("topk", values)
    assert np.flatnonzero(found).tolist() == [*range(9), 700]


@pytest.mark.parametrize(
    "places", [[0], [99_999], [0, 99_999], [254], [255], [256], [509, 510, 511], [0, 255, 511, 766]]
)
def test_values_far_apart_arrive_in_their_places(places: list[int]) -> None:
    values = np.zeros(100_000, np.float32)
    values[places] = 1
    assert np.flatnonzero(through("topk", values)).tolist() == places


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 101, 334])
def test_at_least_its_share_is_kept(name: str, count: int) -> None:
    values = np.ones(count, np.float32)
    kept = np.count_nonzero(through(name, values))
    assert kept == SPARSE[name].kept(count) == -(-count * SPARSE[name].percent // 100) >= 1


# --- bytes from the wire ------------------------------------------------------------------------------


def frame(body: npt.NDArray[np.uint8]) -> bytes:
    return zstandard.ZstdCompressor().compress(body.tobytes())


@EVERY
@settings(deadline=None)
@given(data=st.data(), count=st.integers(1, 600), delta=st.booleans())
def test_a_body_of_the_right_size_is_finite_or_refused(name: str, data: st.DataObject, count: int, delta: bool) -> None:
    body = data.draw(hnp.arrays(np.uint8, QUANTISERS[name].size(count)))
    base = np.full(count, 3e38, np.float32) if delta else None
    try:
        values = CODECS[name].decode(frame(body), count, base)
    except FedDiffError:
        return
    assert values.shape == (count,)
    assert np.isfinite(values).all()


@EVERY
@pytest.mark.parametrize("top", [0x7F80, 0x7FC0, 0x7FFF, 0x8000, 0xBF80, 0xFFFF])
def test_a_top_step_that_is_none_is_refused(name: str, top: int) -> None:
    body = QUANTISERS[name].narrow(gaussian(300))
    body[-2:] = top & 0xFF, top >> 8
    with pytest.raises(ProtocolError, match=f"{top:#06x}"):
        CODECS[name].decode(frame(body), 300, None)


@EVERY
def test_the_largest_top_step_stays_finite(name: str) -> None:
    body = QUANTISERS[name].narrow(gaussian(300))
    body[-2:] = 0x7F, 0x7F
    values = CODECS[name].decode(frame(body), 300, None)
    assert np.isfinite(values).all()
    assert np.abs(values).max() == np.float32(LARGEST)


def test_places_outside_the_chunk_are_refused() -> None:
    sparse = SPARSE["topk"]
    honest = sparse.narrow(np.arange(1, 301, dtype=np.float32))
    assert honest[:4].tolist() == [255, 42, 0, 0]  # 297 zeros, then three values

    def decode(*gaps: int) -> F32:
        return CODECS["topk"].decode(frame(np.concatenate((np.array(gaps, np.uint8), honest[4:]))), 300, None)

    assert np.flatnonzero(decode(255, 42, 0, 0)).tolist() == [297, 298, 299]
    for gaps in [(255, 43, 0, 0), (255, 42, 0, 1), (255, 254, 254, 254), (255, 255, 0, 0), (0, 0, 0, 0)]:
        with pytest.raises(ProtocolError, match="places"):
            decode(*gaps)


@EVERY
def test_a_delta_beyond_float32_is_refused_at_both_ends(name: str) -> None:
    codec = CODECS[name]
    high, low = np.array([LARGEST], np.float32), np.array([-LARGEST], np.float32)
    with pytest.raises(NotFinite, match="element 0"):
        codec.encode(high, low)
    payload = codec.encode(high, np.zeros(1, np.float32))
    with pytest.raises(NotFinite, match="element 0"):
        codec.decode(payload, 1, high)


# --- the same everywhere ------------------------------------------------------------------------------


def test_the_bytes_of_the_format_stay_as_they_are() -> None:
    """Hand-made bodies: silos of another version must decode the same."""

    def decode(name: str, count: int, *body: Any) -> list[float]:
        return CODECS[name].decode(frame(np.array(body, np.uint8)), count, None).tolist()

    one, half, nine_sixteenths = 255, 247, 248
    top = 0x80, 0x3F  # 1.0
    assert decode("int8", 3, 1, 0xFF, 0x80, one, *top) == [1, -1, -128]
    assert decode("int4", 3, 1, 0xFF, 0x7F, half, *top) == [0.5, -0.5, 63.5]
    assert decode("int2", 3, 0xF1, 0x07, nine_sixteenths, *top) == [9 / 16, -9 / 16, 7 * 9 / 16]
    assert decode("int8", 1, 1, 0, *top) == [9 / 16 * 2**-31]
    assert decode("int8", 1, 1, 255, 0, 0) == [LEAST]
    assert decode("topk", 101, 2, 97, 0x35, one, *top) == [0, 0, 5, *[0] * 97, 3]


@EVERY
def test_decoding_is_exact_arithmetic(name: str) -> None:
    """What both ends hold must be the same bits, whatever their machines' vector units do."""
    values = np.concatenate([gaussian(BLOCK, seed) * np.float32(10.0**seed) for seed in range(5)])[:-3]
    body = QUANTISERS[name].narrow(values)
    body[-7:-2] = 0, 3, 100, 201, 255
    assert QUANTISERS[name].widen(body, values.size).tolist() == reference(QUANTISERS[name], body.tolist(), values.size)


def reference(quantiser: Uniform | Largest, body: list[int], count: int) -> list[float]:
    """A decoder of one value after the other, in Python's numbers."""
    if isinstance(quantiser, Largest):
        out, place, gaps = [0.0] * count, 0, quantiser.kept(count) + count // 255
        values = iter(reference(quantiser.values, body[gaps:], quantiser.kept(count)))
        for gap in body[:gaps]:
            place += gap
            if gap != 255:
                out[place] = next(values)
                place += 1
        return out
    top = float(np.array([(body[-2] | body[-1] << 8) << 16], np.uint32).view(np.float32)[0])
    steps = body[-2 - -(-count // BLOCK) :]
    found = []
    for index in range(count):
        bits = 8 if quantiser.levels == 127 else 4
        code = body[index] if bits == 8 else body[index // 2] >> 4 * (index % 2) & 15
        signed = code - (1 << bits) * (code >> (bits - 1))
        step = np.float32(top * (9 + steps[index // BLOCK] % 8) / 16 * 2.0 ** (steps[index // BLOCK] // 8 - 31))
        found.append(float(np.float32(signed * float(step))))
    return found
