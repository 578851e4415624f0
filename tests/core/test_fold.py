from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.codec import CODECS
from feddiff.core.fold import BadUpdate, Contribution, fold
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, WeightsWriter, save

SEGMENT, SIZE, CHUNK = "decoder.0", 1000, 300
ROUNDING = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of each codec; below 2**-24, fp16 errs by up to 2**-25."""


def vector(seed: int, scale: float = 1.0) -> F32:
    return (scale * np.random.default_rng(seed).standard_normal(SIZE)).astype(np.float32)


def up(silo: str, codec: str, delta: bool) -> Manifest:
    return Manifest(f"up.4.{silo}.{SEGMENT}", SEGMENT, 3 if delta else -1, 4, codec, SIZE, CHUNK)


def down(codec: str, delta: bool) -> Manifest:
    return Manifest(f"down.{SEGMENT}", SEGMENT, 3 if delta else -1, 4, codec, SIZE, CHUNK)


def payloads_of(manifest: Manifest, values: F32, base: F32) -> list[bytes]:
    found = []
    for index in range(manifest.chunks):
        piece = slice(index * CHUNK, index * CHUNK + manifest.count(index))
        found.append(CODECS[manifest.codec].encode(values[piece], None if manifest.absolute else base[piece]))
    return found


def sent(folder: Path, silo: str, samples: int, manifest: Manifest, payloads: Sequence[bytes]) -> Contribution:
    spool = Spool(manifest.path(folder), manifest)
    for index, payload in enumerate(payloads):
        spool.append(index, payload, checksum(payload))
    return Contribution(silo, samples, Transfer(spool.commit(spool.digest())))


def average(folder: Path, contributions: Sequence[Contribution], base: F32, manifest: Manifest) -> tuple[F32, bytes]:
    """The published vector, and the bytes of the transfer that publishes it."""
    save(folder / "base", {SEGMENT: base})
    spool = Spool(manifest.path(folder), manifest)
    with (
        WeightsReader(folder / "base") as reader,
        WeightsWriter(folder / "next", {SEGMENT: SIZE}) as writer,
    ):
        fold(contributions, reader, writer, spool)
        spool.commit(spool.digest())
        writer.commit()
    with WeightsReader(folder / "next") as reader:
        return reader.read(SEGMENT), manifest.path(folder).read_bytes()


def contributions_of(
    folder: Path, updates: Sequence[tuple[int, F32]], base: F32, codec: str = "fp32", delta: bool = True
) -> list[Contribution]:
    found = []
    for number, (samples, values) in enumerate(updates):
        manifest = up(f"silo-{number}", codec, delta)
        found.append(sent(folder, f"silo-{number}", samples, manifest, payloads_of(manifest, values, base)))
    return found


@given(
    st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(0, 1000)), min_size=1, max_size=5),
    st.sampled_from(["fp32", "fp16", "bf16"]),
    st.sampled_from(["fp32", "fp16", "bf16"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_weighted_mean(silos: list[tuple[int, int]], codec_up: str, codec_down: str, delta: bool) -> None:
    base = vector(5000)
    updates = [(samples, base + vector(seed, 0.01)) for samples, seed in silos]
    weights = np.array([samples for samples, _ in updates], np.float64)
    exact = np.average(np.stack([values for _, values in updates]).astype(np.float64), axis=0, weights=weights)
    with tempfile.TemporaryDirectory() as folder:
        contributions = contributions_of(Path(folder), updates, base, codec_up, delta)
        published, _ = average(Path(folder), contributions, base, down(codec_down, delta))
    # What a lossy codec rounds: the change from the base, or the weight itself. float32 rounds the result.
    rounded = np.stack([values - base if delta else values for _, values in updates]).astype(np.float64)
    size = np.abs(rounded).max(axis=0)
    lost = size * (ROUNDING[codec_up] + ROUNDING[codec_down]) * 1.01
    lost += 2.0**-24 * ((codec_up == "fp16") + (codec_down == "fp16"))
    mixed = 4 * 2.0**-24 * (np.abs(base) + size) if codec_up != "fp32" or codec_down != "fp32" else 0.0
    assert np.all(np.abs(published - exact) <= lost + mixed + 1e-6 * np.abs(exact))


def test_equal_updates_average_to_themselves_bit_for_bit(tmp_path: Path) -> None:
    base, values = vector(1), vector(2)
    contributions = contributions_of(tmp_path, [(3, values), (3, values)], base)
    published, _ = average(tmp_path, contributions, base, down("fp32", True))
    assert published.tobytes() == values.tobytes()


def test_only_those_who_report_a_segment_are_in_its_denominator(tmp_path: Path) -> None:
    """5 of 5 + 15 images if the silo with 80 reports another segment."""
    base = np.zeros(SIZE, np.float32)
    contributions = contributions_of(tmp_path, [(5, base + 1), (15, base + 3)], base)
    published, _ = average(tmp_path, contributions, base, down("fp32", True))
    assert np.array_equal(published, base + 2.5)


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_bits_in_whatever_order_updates_arrive(tmp_path: Path, codec: str) -> None:
    base, huge = vector(1), np.full(SIZE, 2.0**80, np.float32)
    # Summed in another order, the small ones would drown between the two huge ones.
    updates = [(3, vector(2)), (1, huge), (5, vector(3)), (1, -huge)]
    results = set()
    for number, order in enumerate(permutations(contributions_of(tmp_path, updates, base))):
        folder = tmp_path / str(number)
        folder.mkdir()
        published, transfer = average(folder, order, base, down(codec, True))
        results.add((published.tobytes(), transfer))
    assert len(results) == 1


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_published_is_what_a_silo_decodes(tmp_path: Path, codec: str, delta: bool) -> None:
    base, manifest = vector(1), down(codec, delta)
    published, _ = average(tmp_path, contributions_of(tmp_path, [(2, vector(2)), (5, vector(3))], base), base, manifest)
    transfer = Transfer(manifest.path(tmp_path))
    decoded = [
        CODECS[codec].decode(
            payload, manifest.count(index), base[index * CHUNK :][: manifest.count(index)] if delta else None
        )
        for index, payload, _ in transfer.chunks()
    ]
    assert np.concatenate(decoded).tobytes() == published.tobytes()


def raw(values: F32) -> bytes:
    """A chunk as no honest silo encodes it: unchecked."""
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return zstandard.ZstdCompressor().compress(planes.tobytes())


def refused(folder: Path, payloads: Sequence[bytes], codec_down: str = "fp32") -> BadUpdate:
    base = np.zeros(SIZE, np.float32)
    good = contributions_of(folder, [(5, vector(1, 0.1)), (5, vector(2, 0.1))], base)
    manifest = up("clinic-b", "fp32", False)
    bad = sent(folder, "clinic-b", 5, manifest, payloads)
    with pytest.raises(BadUpdate, match="clinic-b") as caught:
        average(folder, [good[0], bad, good[1]], base, down(codec_down, True))
    assert not down("fp32", True).path(folder).exists()
    assert not (folder / "next").exists()
    return caught.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 450, SIZE - 1])
def test_an_update_that_is_not_finite_is_its_silos_and_nothing_is_visible(
    tmp_path: Path, value: float, where: int
) -> None:
    values = vector(3)
    values[where] = value
    error = refused(tmp_path, [raw(values[start : start + CHUNK]) for start in range(0, SIZE, CHUNK)])
    assert error.silo == "clinic-b"
    assert SEGMENT in error.reason


def test_an_update_that_cannot_be_decoded_is_its_silos(tmp_path: Path) -> None:
    good = payloads_of(up("clinic-b", "fp32", False), vector(3), vector(3))
    assert "decoded" in refused(tmp_path, [*good[:2], b"rubbish", good[3]]).reason


def test_an_update_of_another_shape_is_its_silos(tmp_path: Path) -> None:
    good = payloads_of(up("clinic-b", "fp32", False), vector(3), vector(3))
    assert SEGMENT in refused(tmp_path, [good[3], *good[1:]]).reason


def test_an_update_that_is_damaged_on_disk_is_its_silos(tmp_path: Path) -> None:
    manifest = up("clinic-b", "fp32", False)
    bad = sent(tmp_path, "clinic-b", 5, manifest, payloads_of(manifest, vector(3), vector(3)))
    text = bytearray(bad.transfer.path.read_bytes())
    text[len(text) // 2] ^= 1
    bad.transfer.path.write_bytes(text)
    with pytest.raises(BadUpdate, match="clinic-b"):
        average(tmp_path, [bad], vector(1), down("fp32", True))


@pytest.mark.parametrize("codec", ["fp16", "bf16"])
def test_an_update_that_no_transfer_could_bring_down_is_its_silos(tmp_path: Path, codec: str) -> None:
    """Finite, but the mean is beyond the downlink's codec: one silo must not stop the federation."""
    largest = np.full(SIZE, np.finfo(np.float32).max, np.float32)
    base = -largest / 2 if codec == "bf16" else np.zeros(SIZE, np.float32)
    bad = sent(tmp_path, "clinic-b", 50, m := up("clinic-b", "fp32", False), payloads_of(m, largest, base))
    good = contributions_of(tmp_path, [(1, base + 1)], base)
    with pytest.raises(BadUpdate) as caught:
        average(tmp_path, [*good, bad], base, down(codec, True))
    assert caught.value.silo == "clinic-b"
    assert not (tmp_path / "next").exists()
