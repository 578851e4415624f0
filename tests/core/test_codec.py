from __future__ import annotations

import threading
import tracemalloc
from collections.abc import MutableMapping
from typing import cast

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feddiff.core.codec import CODECS, Codec, payload_bound
from feddiff.core.errors import (
    DigestMismatch,
    FedDiffError,
    NotFinite,
    ProtocolError,
    TooLarge,
    WrongShape,
)
from feddiff.core.segments import F32

PI = float(np.float32(np.pi))
LARGEST = float(np.finfo(np.float32).max)
EVERY = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
LOSSY = {"fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 0.0)}
"""Largest relative error (half a unit in the last place) and absolute error (among denormals) of each."""

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-60000, 60000, width=32)
LENGTHS = st.integers(0, 300)


def vectors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[F32]:
    return hnp.arrays(np.float32, LENGTHS, elements=elements)


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[F32, F32]]:
    return LENGTHS.flatmap(lambda n: st.tuples(*[hnp.arrays(np.float32, n, elements=elements)] * 2))


def f32(*values: float) -> F32:
    return np.array(values, np.float32)


def same_bits(left: F32, right: F32) -> bool:
    return left.dtype == right.dtype == np.float32 and left.shape == right.shape and left.tobytes() == right.tobytes()


EDGES = {
    "empty": f32(),
    "zero": f32(0.0),
    "minus zero": f32(-0.0, 0.0, -0.0),
    "one element": f32(-3.25),
    "constant": np.full(4097, 0.1, np.float32),
    "denormal": f32(1e-45, -1e-45, 1.1754942e-38, -1.1754942e-38),
    "smallest normal": f32(1.1754944e-38, -1.1754944e-38),
    "largest": f32(LARGEST, -LARGEST),
    "mixed": f32(LARGEST, 1e-45, -0.0, 1.0, -LARGEST),
    "odd size": np.arange(-500, 501, dtype=np.float32) / 7,
}


# --- fp32: every bit survives ---------------------------------------------------------------------


@settings(deadline=None)
@given(vectors(anything))
def test_fp32_keeps_every_bit(values: F32) -> None:
    codec = CODECS["fp32"]
    assert same_bits(codec.decode(codec.encode(values, None), values.size, None), values)


@settings(deadline=None)
@given(pairs(anything))
def test_fp32_keeps_every_bit_of_a_delta(pair: tuple[F32, F32]) -> None:
    values, base = pair
    codec = CODECS["fp32"]
    assert same_bits(codec.decode(codec.encode(values, base), values.size, base), values)


@pytest.mark.parametrize("values", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("base", ["none", "itself", "negated", "zeros"])
def test_fp32_keeps_every_bit_at_the_edges(values: F32, base: str) -> None:
    start = {"none": None, "itself": values.copy(), "negated": -values, "zeros": np.zeros_like(values)}[base]
    codec = CODECS["fp32"]
    assert same_bits(codec.decode(codec.encode(values, start), values.size, start), values)


# --- fp16, bf16: rounded once, to nearest ---------------------------------------------------------


@pytest.mark.parametrize("name", LOSSY)
@settings(deadline=None)
@given(values=vectors(moderate))
def test_rounding_a_value_is_off_by_half_a_unit_at_most(name: str, values: F32) -> None:
    codec, (relative, absolute) = CODECS[name], LOSSY[name]
    back = codec.decode(codec.encode(values, None), values.size, None).astype(np.float64)
    # bf16 has float32's exponents, so its denormals are spaced 2^-133.
    floor = max(absolute, 2.0**-134)
    assert np.all(np.abs(back - values) <= np.maximum(relative * np.abs(values.astype(np.float64)), floor))


@pytest.mark.parametrize("name", LOSSY)
@settings(deadline=None)
@given(pair=pairs(st.floats(-30000, 30000, width=32)))
def test_rounding_a_delta_is_off_by_half_a_unit_of_the_delta(name: str, pair: tuple[F32, F32]) -> None:
    values, base = pair
    codec, (relative, absolute) = CODECS[name], LOSSY[name]
    back = codec.decode(codec.encode(values, base), values.size, base).astype(np.float64)
    change = np.abs(values.astype(np.float64) - base)
    # The subtraction and the addition in float32 round too, each by half a unit of what comes out.
    float32 = 2.0**-24 * (change + np.maximum(np.abs(values), np.abs(back))) + 2.0**-149
    assert np.all(np.abs(back - values) <= np.maximum(relative * change, max(absolute, 2.0**-134)) * 1.001 + float32)


@pytest.mark.parametrize("name", LOSSY)
@settings(deadline=None)
@given(values=vectors(anything))
def test_a_lossy_delta_from_itself_changes_nothing(name: str, values: F32) -> None:
    codec = CODECS[name]
    np.testing.assert_array_equal(codec.decode(codec.encode(values, values), values.size, values), values)


@pytest.mark.parametrize("name", LOSSY)
@settings(deadline=None)
@given(values=vectors(moderate))
def test_rounding_twice_is_rounding_once(name: str, values: F32) -> None:
    codec = CODECS[name]
    once = codec.decode(codec.encode(values, None), values.size, None)
    assert same_bits(codec.decode(codec.encode(once, None), values.size, None), once)


@settings(deadline=None)
@given(vectors(st.floats(-1.5 * 2.0**127, 1.5 * 2.0**127, width=32)))
def test_bf16_agrees_with_torch(values: F32) -> None:
    import torch

    torch.set_num_threads(1)
    codec = CODECS["bf16"]
    reference = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    assert same_bits(codec.decode(codec.encode(values, None), values.size, None), reference)


def test_bf16_ties_go_to_even() -> None:
    codec = CODECS["bf16"]
    step = 2.0**-7
    values = f32(1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 1 + step / 2 + 2**-23)
    assert codec.decode(codec.encode(values, None), 4, None).tolist() == [1, 1 + 2 * step, -1, 1 + step]


def test_fp16_ties_go_to_even() -> None:
    codec = CODECS["fp16"]
    assert codec.decode(codec.encode(f32(2049, 2051, 2**-25), None), 3, None).tolist() == [2048, 2052, 0]


def test_a_lossy_delta_keeps_what_the_value_itself_would_lose() -> None:
    base, values = np.full(9, 1000.0, np.float32), np.full(9, 1000.001, np.float32)
    for name in LOSSY:
        codec = CODECS[name]
        assert np.abs(codec.decode(codec.encode(values, base), 9, base) - values).max() < 1e-4
        assert np.abs(codec.decode(codec.encode(values, None), 9, None) - values).max() > 5e-4


# --- what must not be averaged --------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("delta", [False, True])
def test_nan_and_infinity_are_refused_with_their_place(codec: Codec, bad: float, delta: bool) -> None:
    values = np.ones(1000, np.float32)
    values[[17, 400, 999]] = bad
    with pytest.raises(NotFinite, match=r"element 17 .*3 of 1000"):
        codec.encode(values, np.zeros(1000, np.float32) if delta else None)


@pytest.mark.parametrize("bad", [65504.004, -65520.0, 1e6, -LARGEST])
def test_fp16_refuses_what_it_cannot_hold_and_says_what_can(bad: float) -> None:
    values = f32(65504, -65504, bad)
    for base in (None, np.zeros(3, np.float32)):
        with pytest.raises(NotFinite, match=r"element 2 .*bf16.*1 of 3"):
            CODECS["fp16"].encode(values, base)
    assert CODECS["fp16"].decode(CODECS["fp16"].encode(values[:2], None), 2, None).tolist() == [65504, -65504]


def test_bf16_refuses_what_would_round_to_infinity() -> None:
    codec = CODECS["bf16"]
    largest = np.array([0x7F7F7FFF, 0xFF7F7FFF], np.uint32).view(np.float32)
    back = codec.decode(codec.encode(largest, None), 2, None)
    assert back.view(np.uint32).tolist() == [0x7F7F0000, 0xFF7F0000]
    for bits in (0x7F7F8000, 0xFF7F8000, 0x7F7FFFFF):
        with pytest.raises(NotFinite, match=r"element 1 .*1 of 2"):
            codec.encode(np.array([0, bits], np.uint32).view(np.float32), None)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_delta_that_overflows_is_refused(name: str) -> None:
    with pytest.raises(NotFinite, match="element 1"):
        CODECS[name].encode(f32(0, LARGEST), f32(0, -LARGEST))


def frame(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(body)


def planes(words: list[int], width: int) -> bytes:
    return bytes(word >> 8 * byte & 0xFF for byte in range(width) for word in words)


@pytest.mark.parametrize(
    ("name", "words", "width"),
    [
        ("fp32", [0x3F800000, 0x7FC00000], 4),
        ("fp32", [0x3F800000, 0xFF800000], 4),
        ("fp16", [0x3C00, 0x7E01], 2),
        ("fp16", [0x3C00, 0xFC00], 2),
        ("bf16", [0x3F80, 0x7FC0], 2),
        ("bf16", [0x3F80, 0xFF80], 2),
    ],
)
def test_a_payload_that_holds_nan_or_infinity_is_refused(name: str, words: list[int], width: int) -> None:
    with pytest.raises(NotFinite, match=r"element 1 .*1 of 2"):
        CODECS[name].decode(frame(planes(words, width)), 2, None)


def test_a_bf16_delta_that_decodes_beyond_float32_is_refused() -> None:
    codec = CODECS["bf16"]
    near, far = f32(0, LARGEST / 4 * 3), f32(0, LARGEST)
    payload = codec.encode(near, np.zeros(2, np.float32))
    with pytest.raises(NotFinite, match="element 1"):
        codec.decode(payload, 2, far)


def test_an_fp32_delta_that_decodes_to_infinity_is_refused() -> None:
    one_step = CODECS["fp32"].encode(f32(1 + 2**-23), f32(1))
    with pytest.raises(NotFinite, match="element 0"):
        CODECS["fp32"].decode(one_step, 1, f32(LARGEST))


# --- shapes ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_base_of_another_length_is_refused(codec: Codec, size: int) -> None:
    base = np.zeros(size, np.float32)
    with pytest.raises(WrongShape, match="3"):
        codec.encode(np.zeros(3, np.float32), base)
    with pytest.raises(WrongShape, match="3"):
        codec.decode(codec.encode(np.zeros(3, np.float32), None), 3, base)


@EVERY
def test_only_flat_float32_vectors_are_taken(codec: Codec) -> None:
    for wrong in (np.zeros(4, np.float64), np.zeros(4, np.int32), np.zeros((2, 2), np.float32)):
        with pytest.raises(WrongShape):
            codec.encode(cast(F32, wrong), None)
        with pytest.raises(WrongShape):
            codec.encode(np.zeros(4, np.float32), cast(F32, wrong))


@EVERY
def test_views_with_strides_are_encoded_as_their_values(codec: Codec) -> None:
    values, base = np.arange(12, dtype=np.float32)[::3], np.arange(8, dtype=np.float32)[::-2]
    for start in (None, base):
        plain = None if start is None else start.copy()
        payload = codec.encode(values, start)
        assert payload == codec.encode(values.copy(), plain)
        assert same_bits(codec.decode(payload, 4, start), codec.decode(payload, 4, plain))
        if codec.name in ("fp32", *LOSSY):
            np.testing.assert_array_equal(codec.decode(payload, 4, start), values)


@EVERY
def test_inputs_stay_as_they_were_and_the_result_is_new(codec: Codec) -> None:
    values, base = np.linspace(-1, 1, 99, dtype=np.float32), np.linspace(0, 1, 99, dtype=np.float32)
    values.flags.writeable = base.flags.writeable = False
    for start in (None, base):
        back = codec.decode(codec.encode(values, start), 99, start)
        back[:] = 9
        assert same_bits(values, np.linspace(-1, 1, 99, dtype=np.float32))
        assert same_bits(base, np.linspace(0, 1, 99, dtype=np.float32))


# --- bytes from the wire --------------------------------------------------------------------------


@EVERY
@settings(deadline=None)
@given(garbage=st.binary(max_size=300), count=st.integers(0, 64), delta=st.booleans())
@example(garbage=b"", count=1, delta=False)
@example(garbage=b"\x28\xb5\x2f\xfd", count=1, delta=False)
def test_garbage_is_refused_as_such(codec: Codec, garbage: bytes, count: int, delta: bool) -> None:
    try:
        values = codec.decode(garbage, count, np.ones(count, np.float32) if delta else None)
    except FedDiffError:
        return
    assert values.shape == (count,)
    assert np.isfinite(values).all()


@EVERY
@settings(deadline=None)
@given(body=st.binary(max_size=256), count=st.integers(0, 64), delta=st.booleans())
def test_a_whole_frame_of_garbage_is_finite_or_refused(codec: Codec, body: bytes, count: int, delta: bool) -> None:
    try:
        values = codec.decode(frame(body), count, np.ones(count, np.float32) if delta else None)
    except FedDiffError:
        return
    assert values.shape == (count,)
    assert np.isfinite(values).all()


@EVERY
@settings(deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_a_crash(codec: Codec, data: st.DataObject) -> None:
    values = np.sin(np.arange(500, dtype=np.float32))
    payload = bytearray(codec.encode(values, None))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        back = codec.decode(bytes(payload), 500, None)
    except FedDiffError:
        return
    assert back.shape == (500,)
    assert np.isfinite(back).all()


@EVERY
def test_a_truncated_payload_is_refused_at_every_length(codec: Codec) -> None:
    payload = codec.encode(np.sin(np.arange(300, dtype=np.float32)), None)
    for length in range(len(payload)):
        with pytest.raises((DigestMismatch, ProtocolError)):
            codec.decode(payload[:length], 300, None)


@EVERY
@pytest.mark.parametrize("extra", [b"\0", frame(b"more")])
def test_bytes_after_the_frame_are_refused(codec: Codec, extra: bytes) -> None:
    payload = codec.encode(np.ones(5, np.float32), None)
    with pytest.raises(DigestMismatch):
        codec.decode(payload + extra, 5, None)
    with pytest.raises(ProtocolError):
        codec.decode(extra, 0, None)


@EVERY
@pytest.mark.parametrize("count", [4000, 6000])
def test_a_payload_of_another_count_is_refused(codec: Codec, count: int) -> None:
    with pytest.raises(ProtocolError, match=str(count)):
        codec.decode(codec.encode(np.ones(5000, np.float32), None), count, None)


def content(codec: Codec, count: int) -> int:
    """Bytes in the frame of a chunk."""
    return int(zstandard.get_frame_parameters(codec.encode(np.zeros(count, np.float32), None)).content_size)


@EVERY
def test_a_frame_that_does_not_state_its_size_is_refused(codec: Codec) -> None:
    body = bytes(content(codec, 1))
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    with pytest.raises(ProtocolError):
        codec.decode(unstated, 1, None)
    assert codec.decode(frame(body), 1, None).tolist() == [0]


@EVERY
def test_a_skippable_frame_is_refused(codec: Codec) -> None:
    size = content(codec, 2)
    skippable = b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)
    with pytest.raises((DigestMismatch, ProtocolError)):
        codec.decode(skippable, 2, None)


@EVERY
def test_a_payload_over_the_bound_is_refused_unread(codec: Codec) -> None:
    with pytest.raises(TooLarge, match=str(payload_bound(10))):
        codec.decode(bytes(payload_bound(10) + 1), 10, None)


def lying(body: bytes, stated: int) -> bytes:
    """A single-segment frame with an 8-byte content size that is not its body's (RFC 8878, 3.1.1.1)."""
    honest = frame(body)
    parameters = zstandard.get_frame_parameters(honest)
    header = zstandard.frame_header_size(honest)
    assert parameters.content_size == len(body)
    return honest[:4] + bytes([0b11100000 | 0b100]) + stated.to_bytes(8, "little") + honest[header:]


@EVERY
def test_a_bomb_does_not_go_off(codec: Codec) -> None:
    zeros = bytes(1 << 26)
    bomb = frame(zeros)
    count = 1000
    expected = content(codec, count)
    claims_less = lying(zeros, expected)
    claims_more = lying(zeros, 1 << 62)
    assert max(map(len, (bomb, claims_less, claims_more))) <= payload_bound(count)
    codec.decode(codec.encode(np.zeros(count, np.float32), None), count, None)
    tracemalloc.start()
    try:
        for payload in (bomb, claims_less, claims_more):
            with pytest.raises((ProtocolError, DigestMismatch, TooLarge)):
                codec.decode(payload, count, None)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@EVERY
def test_a_frame_that_holds_less_than_it_states_is_refused(codec: Codec) -> None:
    expected = content(codec, 100)
    with pytest.raises(DigestMismatch):
        codec.decode(lying(bytes(expected - 2), expected), 100, None)


# --- size, determinism, registry ------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 1000, 4096, 40_000, 1 << 18])
def test_no_payload_exceeds_the_bound(codec: Codec, count: int) -> None:
    random = np.random.default_rng(count)
    bits = random.integers(0, 1 << 32, count, np.uint32)
    bits[(bits & 0x7F800000) >= 0x7F000000] &= 0x3FFFFFFF
    noise = bits.view(np.float32)
    if codec.name == "fp16":
        noise = random.integers(0, 0x7C00, count, np.uint16).view(np.float16).astype(np.float32)
    for base in (None, np.zeros(count, np.float32)):
        assert len(codec.encode(noise, base)) <= payload_bound(count)


@EVERY
def test_nothing_is_sent_for_no_values(codec: Codec) -> None:
    empty = np.empty(0, np.float32)
    for base in (None, empty):
        assert codec.encode(empty, base) == b""
        assert codec.decode(b"", 0, base).shape == (0,)


@EVERY
def test_an_unchanged_chunk_costs_next_to_nothing(codec: Codec) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    assert len(codec.encode(values, values)) < 100


def test_a_near_base_makes_fp32_smaller() -> None:
    random = np.random.default_rng(0)
    base = (random.standard_normal(1 << 16) * 0.05).astype(np.float32)
    values = (base + random.standard_normal(1 << 16) * 1e-4).astype(np.float32)
    codec = CODECS["fp32"]
    assert len(codec.encode(values, base)) < 0.8 * len(codec.encode(values, None)) < 0.8 * values.nbytes


@EVERY
def test_the_same_chunk_is_the_same_bytes_in_every_thread(codec: Codec) -> None:
    random = np.random.default_rng(0)
    chunks = [random.standard_normal(50_000).astype(np.float32) for _ in range(8)]
    alone = [codec.encode(chunk, chunks[0]) for chunk in chunks]
    together: dict[int, list[bytes]] = {}

    def work(thread: int) -> None:
        together[thread] = [codec.encode(chunk, chunks[0]) for chunk in chunks]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(together.values()) == [alone] * 3


def test_the_bytes_of_the_format_stay_as_they_are() -> None:
    """Hand-made payloads, least significant plane first: silos of another version must decode the same."""
    assert CODECS["fp32"].decode(frame(planes([0x3F800000, 0xC0490FDB], 4)), 2, None).tolist() == [
        1,
        -PI,
    ]
    up_one, down_one = 2, 1  # zigzag
    moved = CODECS["fp32"].decode(frame(planes([up_one, down_one], 4)), 2, f32(1, 1))
    assert moved.tolist() == [1 + 2**-23, 1 - 2**-24]
    assert CODECS["fp16"].decode(frame(planes([0x3C00, 0xC000], 2)), 2, f32(1, 1)).tolist() == [2, -1]
    assert CODECS["bf16"].decode(frame(planes([0x3F80, 0xC000], 2)), 2, f32(1, 1)).tolist() == [2, -1]


def test_the_registry_is_closed_and_names_are_its_keys() -> None:
    assert [(name, codec.name, codec.lossless) for name, codec in CODECS.items()] == [
        ("fp32", "fp32", True),
        ("fp16", "fp16", False),
        ("bf16", "bf16", False),
        ("int8", "int8", False),
        ("int4", "int4", False),
        ("int2", "int2", False),
        ("topk", "topk", False),
        ("topk3", "topk3", False),
        ("topk10", "topk10", False),
    ]
    with pytest.raises(TypeError):
        cast(MutableMapping[str, Codec], CODECS)["mine"] = CODECS["fp32"]
