from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.codec import payload_bound
from feddiff.core.errors import DigestMismatch, OffsetMismatch, ProtocolError, StoreError, TooLarge
from feddiff.core.spool import MAX_CHUNK_ELEMENTS, MAX_CHUNKS, Manifest, Spool, Transfer, checksum, committed

MANIFEST = Manifest("up.3.clinic.decoder.0", "decoder.0", 2, 3, "fp32", 10, 4)
PAYLOADS = (b"first" * 9, b"", b"third")
HEADER = 4 + 24 + len(MANIFEST.canonical())

payload_lists = st.lists(st.binary(max_size=40), min_size=1, max_size=6).map(tuple)


def manifest_of(payloads: Sequence[bytes]) -> Manifest:
    return replace(MANIFEST, elements=3 * len(payloads) - 1, chunk_elements=3)


def finish(spool: Spool, payloads: Sequence[bytes]) -> Path:
    for index in range(spool.chunks, len(payloads)):
        assert spool.append(index, payloads[index], checksum(payloads[index]))
    assert spool.payload_bytes == sum(map(len, payloads))
    return spool.commit(spool.digest())


def build(folder: Path, payloads: Sequence[bytes] = PAYLOADS, manifest: Manifest = MANIFEST) -> Path:
    return finish(Spool(manifest.path(folder), manifest), payloads)


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def whole_records(manifest: Manifest, payloads: Sequence[bytes], safe_bytes: int) -> int:
    """Chunks that lie wholly within the first ``safe_bytes`` of a transfer's file."""
    end, found = 4 + 24 + len(manifest.canonical()), 0
    for payload in payloads:
        end += 24 + len(payload)
        if end > safe_bytes:
            break
        found += 1
    return found


@given(payload_lists, st.data())
@settings(max_examples=60, deadline=None)
def test_cut_off_anywhere_the_longest_whole_prefix_is_found_and_the_rest_completes(
    payloads: tuple[bytes, ...], data: st.DataObject
) -> None:
    manifest = manifest_of(payloads)
    with temporary() as folder:
        original = build(folder / "sender", payloads, manifest).read_bytes()
        place = manifest.path(folder / "receiver")
        place.parent.mkdir()
        cut = data.draw(st.integers(0, len(original)))
        place.with_name(place.name + ".part").write_bytes(original[:cut])
        spool = Spool(place, manifest)
        assert spool.chunks == whole_records(manifest, payloads, cut)
        assert spool.payload_bytes == sum(map(len, payloads[: spool.chunks]))
        assert not place.exists()
        assert finish(spool, payloads).read_bytes() == original


@given(payload_lists, st.integers(1, 255), st.data())
@settings(max_examples=60, deadline=None)
def test_any_damaged_byte_costs_no_more_than_what_follows_it(
    payloads: tuple[bytes, ...], change: int, data: st.DataObject
) -> None:
    manifest = manifest_of(payloads)
    with temporary() as folder:
        original = build(folder / "sender", payloads, manifest).read_bytes()
        damaged = bytearray(original)
        place_of_damage = data.draw(st.integers(0, len(original) - 1))
        damaged[place_of_damage] ^= change
        place = manifest.path(folder / "receiver")
        place.parent.mkdir()
        place.with_name(place.name + ".part").write_bytes(damaged)
        spool = Spool(place, manifest)
        assert spool.chunks == whole_records(manifest, payloads, place_of_damage)
        assert finish(spool, payloads).read_bytes() == original


@given(payload_lists, st.integers(1, 2000).map(bytes) | st.binary(min_size=1))
@settings(max_examples=30, deadline=None)
def test_what_lies_behind_the_last_whole_chunk_is_cut_off(payloads: tuple[bytes, ...], garbage: bytes) -> None:
    manifest = manifest_of(payloads)
    with temporary() as folder:
        original = build(folder / "sender", payloads, manifest).read_bytes()
        place = manifest.path(folder / "receiver")
        spool = Spool(place, manifest)
        spool.append(0, payloads[0], checksum(payloads[0]))
        spool.close()
        part = place.with_name(place.name + ".part")
        part.write_bytes(part.read_bytes() + garbage)
        spool = Spool(place, manifest)
        assert spool.chunks == 1
        assert finish(spool, payloads).read_bytes() == original


def test_a_part_of_another_manifest_is_not_continued(tmp_path: Path) -> None:
    place = MANIFEST.path(tmp_path)
    older = Spool(place, replace(MANIFEST, version=4))
    older.append(0, PAYLOADS[0], checksum(PAYLOADS[0]))
    older.close()
    spool = Spool(place, MANIFEST)
    assert spool.chunks == 0
    finish(spool, PAYLOADS)
    transfer = Transfer(place)
    assert transfer.manifest == MANIFEST
    assert [payload for _, payload, _ in transfer.chunks()] == list(PAYLOADS)
    transfer.close()


def test_both_ends_agree_on_the_digest_and_it_depends_on_everything(tmp_path: Path) -> None:
    digests = set()
    for number, (manifest, payloads) in enumerate(
        [
            (MANIFEST, PAYLOADS),
            (replace(MANIFEST, segment="decoder.1"), PAYLOADS),
            (replace(MANIFEST, base_version=1), PAYLOADS),
            (MANIFEST, (PAYLOADS[0], b"x", PAYLOADS[2])),
            (MANIFEST, (PAYLOADS[1], PAYLOADS[0], PAYLOADS[2])),
        ]
    ):
        one, two = (
            build(tmp_path / f"{number}a", payloads, manifest),
            build(tmp_path / f"{number}b", payloads, manifest),
        )
        assert Transfer(one).digest == Transfer(two).digest
        digests.add(Transfer(one).digest)
    assert len(digests) == 5


def test_nothing_is_visible_before_commit_and_only_the_transfer_after_it(tmp_path: Path) -> None:
    spool = Spool(MANIFEST.path(tmp_path), MANIFEST)
    for index, payload in enumerate(PAYLOADS):
        spool.append(index, payload, checksum(payload))
        assert not MANIFEST.path(tmp_path).exists()
    place = spool.commit(spool.digest())
    assert place == MANIFEST.path(tmp_path)
    assert list(tmp_path.iterdir()) == [place]


def test_a_chunk_that_is_there_already_is_passed_over(tmp_path: Path) -> None:
    spool = Spool(MANIFEST.path(tmp_path), MANIFEST)
    assert spool.append(0, PAYLOADS[0], checksum(PAYLOADS[0]))
    before = spool.digest()
    assert not spool.append(0, b"something else", b"")
    assert (spool.chunks, spool.digest()) == (1, before)
    assert finish(spool, PAYLOADS).read_bytes() == build(tmp_path / "reference").read_bytes()


@pytest.mark.parametrize(
    ("index", "payload", "check", "refusal"),
    [
        (2, PAYLOADS[2], checksum(PAYLOADS[2]), OffsetMismatch),
        (3, b"x", checksum(b"x"), OffsetMismatch),
        (0xFFFFFFFF, b"x", checksum(b"x"), OffsetMismatch),
        (1, bytes(payload_bound(4) + 1), checksum(bytes(payload_bound(4) + 1)), TooLarge),
        (1, b"x", checksum(b"y"), DigestMismatch),
        (1, b"x", b"", DigestMismatch),
        (1, b"x", checksum(b"x") + b"\0", DigestMismatch),
    ],
    ids=["gap", "beyond the end", "the seal's number", "oversized", "damaged", "no checksum", "long checksum"],
)
def test_refused_chunks_leave_no_trace(
    tmp_path: Path, index: int, payload: bytes, check: bytes, refusal: type[Exception]
) -> None:
    spool = Spool(MANIFEST.path(tmp_path), MANIFEST)
    spool.append(0, PAYLOADS[0], checksum(PAYLOADS[0]))
    before = spool.digest()
    with pytest.raises(refusal, match=MANIFEST.transfer):
        spool.append(index, payload, check)
    assert (spool.chunks, spool.digest()) == (1, before)
    assert finish(spool, PAYLOADS).read_bytes() == build(tmp_path / "reference").read_bytes()


def test_the_last_chunk_is_held_to_its_own_smaller_bound(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, elements=1001, chunk_elements=1000)
    spool = Spool(manifest.path(tmp_path), manifest)
    full = bytes(payload_bound(1000))
    assert spool.append(0, full, checksum(full))
    with pytest.raises(TooLarge):
        spool.append(1, full, checksum(full))


def test_one_chunk_too_many_is_refused(tmp_path: Path) -> None:
    spool = Spool(MANIFEST.path(tmp_path), MANIFEST)
    for index, payload in enumerate(PAYLOADS):
        spool.append(index, payload, checksum(payload))
    with pytest.raises(OffsetMismatch):
        spool.append(3, b"x", checksum(b"x"))


def test_commit_needs_every_chunk_and_the_senders_digest(tmp_path: Path) -> None:
    spool = Spool(MANIFEST.path(tmp_path), MANIFEST)
    spool.append(0, PAYLOADS[0], checksum(PAYLOADS[0]))
    with pytest.raises(OffsetMismatch, match="1 of 3"):
        spool.commit(spool.digest())
    for index in (1, 2):
        spool.append(index, PAYLOADS[index], checksum(PAYLOADS[index]))
    with pytest.raises(DigestMismatch):
        spool.commit(bytes(32))
    assert not MANIFEST.path(tmp_path).exists()
    assert spool.commit(spool.digest()).exists()


def test_a_transfer_reads_as_it_was_written_from_any_chunk_on(tmp_path: Path) -> None:
    transfer = Transfer(build(tmp_path))
    whole = [(index, payload, checksum(payload)) for index, payload in enumerate(PAYLOADS)]
    assert transfer.manifest == MANIFEST
    assert transfer.payload_bytes == sum(map(len, PAYLOADS))
    for first in range(4):
        assert list(transfer.chunks(first)) == whole[first:]
    transfer.close()


@given(payload_lists, st.integers(1, 255), st.data())
@settings(max_examples=120, deadline=None)
def test_a_damaged_transfer_never_reads_as_something_else(
    payloads: tuple[bytes, ...], change: int, data: st.DataObject
) -> None:
    manifest = manifest_of(payloads)
    with temporary() as folder:
        place = build(folder, payloads, manifest)
        damaged = bytearray(place.read_bytes())
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= change
        place.write_bytes(damaged)
        first = data.draw(st.integers(0, len(payloads)))
        read: list[bytes] = []
        try:
            transfer = Transfer(place)
            assert transfer.manifest == manifest
            for _, payload, _ in transfer.chunks(first):
                read.append(payload)
        except StoreError:
            assert read == list(payloads[first:][: len(read)])
        else:
            assert read == list(payloads[first:])


def test_chunks_before_the_damage_are_still_good(tmp_path: Path) -> None:
    place = build(tmp_path)
    damaged = bytearray(place.read_bytes())
    damaged[HEADER + 24 + len(PAYLOADS[0]) + 24 + len(PAYLOADS[1]) + 24] ^= 1
    place.write_bytes(damaged)
    chunks = Transfer(place).chunks()
    assert [next(chunks)[1], next(chunks)[1]] == list(PAYLOADS[:2])
    with pytest.raises(StoreError, match="chunk 2"):
        next(chunks)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_transfer_that_is_cut_short_is_not_one(data: st.DataObject) -> None:
    with temporary() as folder:
        place = build(folder)
        whole = place.read_bytes()
        place.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(StoreError):
            Transfer(place)


def test_a_transfer_of_a_codec_that_is_gone_is_a_damaged_file(tmp_path: Path) -> None:
    place = build(tmp_path)
    whole = place.read_bytes()
    text = MANIFEST.canonical().replace(b"fp32", b"fp99")
    place.write_bytes(whole[:12] + checksum(text) + text + whole[HEADER:])
    with pytest.raises(StoreError, match="fp99"):
        Transfer(place)
    assert committed(tmp_path, MANIFEST) == b""


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing"):
        Transfer(tmp_path / "nothing")
    assert committed(tmp_path, MANIFEST) == b""


def test_committed_knows_the_digest_and_clears_away_what_is_something_else(tmp_path: Path) -> None:
    place = build(tmp_path)
    assert committed(tmp_path, MANIFEST) == Transfer(place).digest != b""
    assert place.exists()
    assert committed(tmp_path, replace(MANIFEST, elements=11)) == b""
    assert not place.exists()
    build(tmp_path)
    place.write_bytes(place.read_bytes()[:-1])
    assert committed(tmp_path, MANIFEST) == b""
    assert not place.exists()


@pytest.mark.parametrize(
    ("field", "value", "refusal"),
    [
        *[
            (field, name, ProtocolError)
            for field in ("transfer", "segment")
            for name in ("", ".", "..", "../x", "a/b", "/etc", "A", "a b", "a\0", "a\n", "-a", ".a", "ä", "a" * 129)
        ],
        ("codec", "", ProtocolError),
        ("codec", "zip", ProtocolError),
        ("codec", "FP32", ProtocolError),
        ("base_version", -2, ProtocolError),
        ("base_version", 3, ProtocolError),
        ("version", -1, ProtocolError),
        ("elements", 0, TooLarge),
        ("elements", -1, TooLarge),
        ("elements", 4 * MAX_CHUNKS + 1, TooLarge),
        ("elements", 1 << 63, TooLarge),
        ("chunk_elements", 0, TooLarge),
        ("chunk_elements", -1, TooLarge),
        ("chunk_elements", MAX_CHUNK_ELEMENTS + 1, TooLarge),
        ("chunk_elements", 1 << 31, TooLarge),
    ],
)
def test_bounds_of_a_manifest(field: str, value: Any, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        replace(MANIFEST, **{field: value})


def test_the_largest_manifest_can_be_a_file(tmp_path: Path) -> None:
    manifest = Manifest("a" * 128, "b" * 128, -1, 0, "bf16", MAX_CHUNKS * MAX_CHUNK_ELEMENTS, MAX_CHUNK_ELEMENTS)
    assert manifest.chunks == MAX_CHUNKS
    assert manifest.absolute
    spool = Spool(manifest.path(tmp_path), manifest)
    spool.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


@given(st.integers(1, 10_000), st.integers(1, 2_000))
def test_the_chunks_of_a_manifest_add_up(elements: int, chunk_elements: int) -> None:
    manifest = replace(MANIFEST, elements=elements, chunk_elements=chunk_elements)
    counts = [manifest.count(index) for index in range(manifest.chunks)]
    assert sum(counts) == elements
    assert all(count == chunk_elements for count in counts[:-1])
    assert 1 <= counts[-1] <= chunk_elements


@given(st.text(max_size=12))
def test_no_name_that_is_let_in_leaves_its_folder(name: str) -> None:
    folder = Path("/some/folder")
    try:
        manifest = replace(MANIFEST, transfer=name)
    except ProtocolError:
        return
    assert manifest.path(folder).resolve().parent == folder
