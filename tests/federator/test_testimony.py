"""What silos say of their models and images: kept if it can be true, refused whole if it cannot."""

from __future__ import annotations

import hashlib
import io
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from feddiff.core.config import from_table
from feddiff.core.errors import FedDiffError, NotSelected, ProtocolError, Revoked, RoundClosed, TooLarge, TransferError
from feddiff.core.moments import MAX_MOMENTS_BYTES, Moments
from feddiff.core.quality import Measured
from feddiff.core.segments import cut
from feddiff.core.wire import MAX_GRID_BYTES, MAX_GRID_SIDE, MAX_NUMBERS, PIECE_BYTES
from feddiff.federator import desk, grids, testimony
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.statistics import Statistics

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (40,)), ("up_blocks.0.a", (50,))])
A, B, STRANGER = "clinic-a", "clinic-b", "clinic-c"
DIGEST = "ab" * 32
FID = Measured("fid", 12.5, None, 20, 31, "own training images", "tiny", DIGEST, ("biased",))


def running(folder: Path, plan: str = "udec", **quality: object) -> Federation:
    """In round 1 of 3 with two silos of 10 and 20 images."""
    table = {
        "plan": plan,
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "rounds": {"count": 3, "participants": 2},
        "quality": {"extractor": DIGEST, "samples": 20, **quality},
    }
    federation = Federation(folder, from_table(table, "test"), LAYOUT, Database(folder / "federation.db"))
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    for silo, samples in ((A, 10), (B, 20), (STRANGER, 30)):
        federation.roster.invite(silo, b"pem", silo, time.time() + 60)
        federation.roster.enroll(silo, silo, "key", 1, time.time())
        federation.join(silo, samples, {}, dict.fromkeys(LAYOUT.names, 0), "cpu", "feddiff")
    federation.begin_round([A, B], "2 silos are here")
    return federation


def png(*size: int, mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size or (9, 5)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def kept(federation: Federation) -> list[tuple[int, str, Measured]]:
    return [(each.round, each.of, each.measured) for each in federation.ledger.quality()]


def test_numbers_and_grid_are_kept_beside_the_round_and_replaced_when_told_again(tmp_path: Path) -> None:
    federation = running(tmp_path, grids=True)
    score = Measured("inception_score", 1.5, 0.25, 20, 0, "", "tiny", DIGEST)
    testimony.keep(federation, A, 1, [FID, score], png())
    testimony.keep(federation, A, 1, [replace(FID, value=7.0)], png(3, 3))
    testimony.keep(federation, B, 1, [FID], b"")
    assert kept(federation) == [(1, A, replace(FID, value=7.0)), (1, A, score), (1, B, FID)]
    assert grids.path(tmp_path, 1, A) == tmp_path / "grids" / "round-0001" / f"{A}.png"
    assert grids.path(tmp_path, 1, A).read_bytes() == png(3, 3)
    assert not grids.path(tmp_path, 1, B).exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (replace(FID, value=float("nan")), ProtocolError),
        (replace(FID, value=float("inf")), ProtocolError),
        (replace(FID, spread=float("nan")), ProtocolError),
        (replace(FID, digest="cd" * 32), ProtocolError),
        (replace(FID, digest=""), ProtocolError),
        (replace(FID, metric=""), ProtocolError),
        (replace(FID, metric="FID"), ProtocolError),
        (replace(FID, metric="best_of_all"), ProtocolError),
        (replace(FID, samples=20_000), ProtocolError),
        (replace(FID, reference=1 << 63), ProtocolError),
        (replace(FID, metric="precision", value=1.01), ProtocolError),
        (replace(FID, metric="recall", value=-0.01), ProtocolError),
        (replace(FID, cautions=("x",) * 1000), TooLarge),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_one_impossible_number_refuses_all(tmp_path: Path, number: Measured, kind: type[FedDiffError]) -> None:
    federation = running(tmp_path, grids=True)
    with pytest.raises(kind):
        testimony.keep(federation, A, 1, [replace(FID, metric="kid"), number], png())
    assert not kept(federation)
    assert not (tmp_path / "grids").exists()


def test_texts_are_cut_and_cannot_forge_a_line(tmp_path: Path) -> None:
    federation = running(tmp_path)
    told = replace(FID, against="\x1b[2J" * 99, extractor="x" * 999, cautions=("\r" * 999,))
    testimony.keep(federation, A, 1, [told], b"")
    ((_, _, found),) = kept(federation)
    texts = (found.metric, found.against, found.extractor, *found.cautions)
    assert all(text.isprintable() and len(text) <= 300 for text in texts)


def test_a_silo_cannot_fill_the_ledger(tmp_path: Path) -> None:
    federation = running(tmp_path)
    testimony.keep(federation, A, 1, [replace(FID, against=f"m{n}") for n in range(MAX_NUMBERS)], b"")
    with pytest.raises(TooLarge):
        testimony.keep(federation, A, 1, [replace(FID, against="another")], b"")
    testimony.keep(federation, A, 1, [replace(FID, against="m0", value=1.0)], b"")
    assert len(kept(federation)) == MAX_NUMBERS


def test_only_the_open_round_of_the_silo_is_told_of(tmp_path: Path) -> None:
    federation = running(tmp_path)
    for silo, round, kind in ((A, 2, RoundClosed), (A, 0, RoundClosed), (STRANGER, 1, NotSelected)):
        with pytest.raises(kind):
            testimony.keep(federation, silo, round, [FID], b"")
    federation.evict(A, "gone")
    with pytest.raises(Revoked):
        testimony.keep(federation, A, 1, [FID], b"")
    federation.published({"decoder.0": 1}, (B,))
    with pytest.raises(RoundClosed):
        testimony.keep(federation, B, 1, [FID], b"")
    assert not kept(federation)


def test_only_what_the_rules_ask_for_is_taken(tmp_path: Path) -> None:
    for number, (plan, rules, grid) in enumerate(
        (("full", {}, b""), ("udec", {"every": 2}, b""), ("udec", {}, png()), ("full", {"silos": True}, png()))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        federation = running(folder, plan, **rules)
        with pytest.raises(ProtocolError):
            testimony.keep(federation, A, 1, [FID], grid)
        assert not kept(federation)
        assert not (folder / "grids").exists()
    testimony.keep(federation, A, 1, [FID], b"")
    assert len(kept(federation)) == 1


def rebuilt(width: int, height: int, pixels: bytes, depth: int = 8, extra: bytes = b"", interlace: int = 0) -> bytes:
    """A PNG whose parts need not fit together."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tEXt", extra) if extra else b"")
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def test_pictures_that_pillow_draws_are_kept() -> None:
    grids.check(png())
    grids.check(png(700, 900, mode="RGB", optimize=True))
    grids.check(png(MAX_GRID_SIDE, 1))
    grids.check(rebuilt(4, 2, bytes(10)))


@pytest.mark.parametrize(
    "picture",
    [
        b"GIF89a",
        png()[:-1],
        png() + b"more",
        png(mode="RGBA"),
        png(mode="P"),
        png(mode="I;16"),
        png(MAX_GRID_SIDE + 1, 1),
        rebuilt(4, 2, bytes(10), extra=b"Comment\0hello"),
        rebuilt(4, 2, bytes(9)),
        rebuilt(4, 2, bytes(11)),
        rebuilt(0, 2, b""),
        rebuilt(1 << 30, 1 << 30, bytes(10)),
        rebuilt(4, 2, bytes(10), interlace=1),
        rebuilt(4, 2, bytes(10), depth=16),
        rebuilt(4096, 4096, bytes(60_000_000)),  # a bomb of 60 kB
    ],
    ids=range(15),
)
def test_anything_else_is_no_grid(picture: bytes) -> None:
    with pytest.raises(ProtocolError):
        grids.check(picture)


@given(st.binary(max_size=200), st.integers(0, 80), st.integers(0, 80))
def test_damage_never_raises_anything_but_a_refusal(noise: bytes, start: int, end: int) -> None:
    whole = png()
    picture = whole[:start] + noise + whole[end:]
    try:
        grids.check(picture)
    except ProtocolError:
        return
    Image.open(io.BytesIO(picture)).load()


def test_a_grid_over_a_mebibyte_is_refused_unseen(tmp_path: Path) -> None:
    federation = running(tmp_path, grids=True)
    with pytest.raises(TooLarge):
        testimony.keep(federation, A, 1, [FID], png() + bytes(MAX_GRID_BYTES))
    assert not kept(federation)


# -- statistics


def moments(count: int, seed: int = 0, size: int = 6, digest: str = DIGEST) -> Moments:
    return Moments.of(np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32), digest)


def pieces(data: bytes, size: int = PIECE_BYTES) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def statistics(folder: Path, **rules: object) -> Statistics:
    return running(folder, **{"plan": "full", "reference": "federated", **rules}).statistics  # type: ignore[arg-type]


def offer(to: Statistics, data: bytes, samples: int = 10, size: int = PIECE_BYTES) -> None:
    to.receive(A, samples, len(data), hashlib.sha256(data).hexdigest(), pieces(data, size))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400))
def test_statistics_are_kept_whatever_the_pieces(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    folder = tmp_path_factory.mktemp("f")
    kept, data = statistics(folder), moments(10).to_bytes()
    assert kept.known(A, 10) == ""
    offer(kept, data, size=size)
    assert (folder / "statistics" / f"{A}.moments").read_bytes() == data
    assert kept.known(A, 10) == kept.known(A, 0) == hashlib.sha256(data).hexdigest()
    assert [each.name for each in (folder / "statistics").iterdir()] == [f"{A}.moments"]
    assert kept.known(A, 11) == "", "it has other images now"
    assert not any((folder / "statistics").iterdir())


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        (moments(10, digest="cd" * 32).to_bytes(), 10),
        (moments(10, digest="").to_bytes(), 10),
        (moments(11).to_bytes(), 10),
        (b"\xff" * 1000, 10),
        (moments(10).to_bytes()[:-1], 10),
        (replace(moments(10), sum=np.full(6, np.nan)).to_bytes(), 10),
        (replace(moments(10), outer=-moments(10).outer).to_bytes(), 10),
    ],
    ids=("extractor", "no extractor", "count", "noise", "short", "NaN", "negative"),
)
def test_statistics_that_cannot_be_are_refused_and_the_old_ones_stay(tmp_path: Path, data: bytes, samples: int) -> None:
    kept, good = statistics(tmp_path), moments(10, seed=1).to_bytes()
    with pytest.raises(ProtocolError):
        offer(kept, data, samples)
    assert not any((tmp_path / "statistics").iterdir())
    offer(kept, good)
    with pytest.raises(ProtocolError):
        offer(kept, data, samples)
    assert kept.path(A).read_bytes() == good
    assert kept.known(A, 10) == hashlib.sha256(good).hexdigest()


def test_an_offer_is_held_to(tmp_path: Path) -> None:
    kept, data = statistics(tmp_path), moments(10).to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    endless = iter(lambda: bytes(PIECE_BYTES), None)

    def refused(size: int, digest: str, parts: Iterator[bytes]) -> None:
        with pytest.raises(TransferError):
            kept.receive(A, 10, size, digest, parts)

    refused(1 << 62, digest, endless)
    refused(MAX_MOMENTS_BYTES + 1, digest, endless)
    refused(0, digest, pieces(data))
    refused(len(data), "00" * 32, pieces(data))
    refused(len(data), digest.upper(), pieces(data))
    refused(len(data), digest, pieces(data + b"x", 7))
    refused(len(data), digest, pieces(data[:-8]))
    refused(len(data), digest, endless)
    refused(PIECE_BYTES + 1, digest, iter([bytes(PIECE_BYTES + 1)]))
    assert not any((tmp_path / "statistics").glob("*"))


def test_an_evicted_silos_statistics_go_with_it(tmp_path: Path) -> None:
    federation = running(tmp_path, "full", reference="federated")
    offer(federation.statistics, moments(10).to_bytes())
    federation.evict(B, "not this one")
    assert federation.statistics.path(A).exists()
    federation.evict(A, "it made them up")
    assert not federation.statistics.path(A).exists()
    assert federation.statistics.known(A, 10) == ""


@pytest.mark.parametrize("rules", [{"reference": "held"}, {"plan": "udec"}])
def test_nobody_gives_statistics_unasked(tmp_path: Path, rules: dict[str, str]) -> None:
    kept = statistics(tmp_path, **rules)
    with pytest.raises(ProtocolError):
        offer(kept, moments(10).to_bytes())
    assert not (tmp_path / "statistics").exists()


def test_the_report_takes_the_newest_pictures_and_leaves_an_operators_own(tmp_path: Path) -> None:
    federation = running(tmp_path)
    for name in ("samples/round-0009", "samples/round-10000", "samples/round-final", "grids/round-x/a"):
        (tmp_path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png())
    for number in (9, 10_000):
        grids.keep(tmp_path, number, A, png())
    told = desk.story(federation, [])
    assert told.samples == [("global model, round 10000", tmp_path / "samples" / "round-10000.png")]
    assert told.grids == [(f"{A}, round 10000", tmp_path / "grids" / "round-10000" / f"{A}.png")]
