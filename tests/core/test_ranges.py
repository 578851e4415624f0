"""core/ranges.py, core/gather.py: a range of a transfer is a transfer of its own, and ranges make the whole again."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.codec import CODECS
from feddiff.core.errors import ProtocolError
from feddiff.core.gather import gather
from feddiff.core.ranges import Cut, Range, checksums, digest, range_of, split
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum, committed
from feddiff.core.store import WeightsReader, save
from feddiff.core.transfer import Chunk, Receiver, Sender, Standing

SIZE, CHUNK = 5500, 1024  # six chunks, the last of 380


def manifest(codec: str = "fp32", base: int = -1) -> Manifest:
    return Manifest("up.1.a.decoder", "decoder", base, 1, codec, SIZE, CHUNK)


def values(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


def written(folder: Path, whole: Manifest, vector: F32, base: F32 | None = None) -> Transfer:
    with closing(Spool(whole.path(folder), whole)) as spool:
        for index in range(whole.chunks):
            at = slice(index * CHUNK, index * CHUNK + whole.count(index))
            payload = CODECS[whole.codec].encode(vector[at], None if base is None else base[at])
            spool.append(index, payload, checksum(payload))
        return Transfer(spool.commit(spool.digest()))


def moved(source: Transfer, piece: Range, folder: Path) -> Manifest:
    """Send a range through an offer into a folder."""
    cut = Cut(source, piece)
    receiver = Receiver(folder, [cut.manifest])
    for part in Sender([cut.manifest], lambda _: cut).parts([Standing()]):
        assert receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
    assert committed(folder, cut.manifest) == cut.digest
    return cut.manifest


@pytest.mark.parametrize(("codec", "base"), [("fp32", -1), ("fp32", 0), ("int8", 0)])
@given(cuts=st.sets(st.integers(1, 5)))
def test_ranges_make_the_whole_again(
    tmp_path_factory: pytest.TempPathFactory, codec: str, base: int, cuts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    old = values(1)
    save(folder / "base", {"decoder": old})
    ends = [0, *sorted(cuts), 6]
    pieces = [Range("decoder", first, end) for first, end in pairwise(ends)]
    source = written(folder, manifest(codec, base), values(2), None if base < 0 else old)
    places = [moved(source, each, folder / "in").path(folder / "in") for each in pieces]
    against = None if base < 0 else folder / "base"
    assert gather(places, "decoder", SIZE, folder / "cut", against)
    assert gather([source.path], "decoder", SIZE, folder / "whole", against)
    with WeightsReader(folder / "cut") as cut, WeightsReader(folder / "whole") as whole:
        assert np.array_equal(cut.read("decoder"), whole.read("decoder"))
        assert cut.digest == whole.digest
    assert not gather(places[1:], "decoder", SIZE, folder / "gap", against)
    assert not gather(places[:-1], "decoder", SIZE, folder / "gap", against)


def test_the_digest_of_a_range_follows_from_the_checksums_of_the_whole(tmp_path: Path) -> None:
    source = written(tmp_path, manifest(), values(3))
    told = split(checksums(source), 6)
    for first, end in ((0, 6), (0, 1), (2, 5), (5, 6)):
        cut = Cut(source, Range("decoder", first, end))
        assert cut.digest == digest(cut.manifest, told[first:end])
        assert cut.payload_bytes == sum(len(payload) for _, payload, _ in cut.chunks())
        assert range_of(cut.manifest) == Range("decoder", first, end)


def test_a_range_of_a_range_is_that_range(tmp_path: Path) -> None:
    source = written(tmp_path, manifest(), values(4))
    inner = Transfer(moved(source, Range("decoder", 2, 6), tmp_path / "in").path(tmp_path / "in"))
    one = Cut(inner, Range("decoder", 5, 6))
    assert one.manifest.elements == SIZE - 5 * CHUNK
    assert [payload for _, payload, _ in one.chunks()] == [list(source.chunks())[5][1]]
    assert not list(one.chunks(1))
    for first, end in ((1, 3), (0, 1), (5, 7)):
        with pytest.raises(ProtocolError, match="is not in"):
            Cut(inner, Range("decoder", first, end))


@pytest.mark.parametrize(("first", "end"), [(3, 3), (4, 2), (-1, 2)])
def test_there_are_no_empty_ranges(first: int, end: int) -> None:
    with pytest.raises(ProtocolError, match="no range"):
        Range("decoder", first, end)


def test_a_range_begins_at_a_chunk() -> None:
    with pytest.raises(ProtocolError, match="no chunk begins"):
        Manifest("up", "decoder", -1, 0, "fp32", 10, CHUNK, start=5)


def test_whole_segments_have_the_digest_that_they_always_had() -> None:
    assert b"start" not in manifest().canonical()
    assert b'"start":2048' in Range("decoder", 2, 3).of(manifest()).canonical()


def test_checksums_of_another_count_are_refused() -> None:
    with pytest.raises(ProtocolError, match="48 bytes of checksums for 2 chunks"):
        split(bytes(48), 2)
