"""federator/average.py: the moving average of the versions by hand, made again with the same bits, and what uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.fold import Contribution
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.federator.average import average, decay
from feddiff.federator.versions import Versions

SEGMENT, SIZE = "bottleneck", 2500
LAYOUT = cut([("mid_block.a", (SIZE,))])


def rules(**more: object) -> FederationConfig:
    model = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    return from_table({"model": model, "codec": {"chunk_elements": 1024}, **more}, "test")


def vector(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


def read(path: Path) -> F32:
    with WeightsReader(path) as reader:
        return reader.read(SEGMENT)


def begun(folder: Path, config: FederationConfig) -> Versions:
    versions = Versions(folder, LAYOUT, config)
    with WeightsReader(save(folder / "initial", {SEGMENT: vector(0)})) as reader:
        versions.publish_initial(SEGMENT, reader)
    return versions


def advance(versions: Versions, folder: Path, base: int) -> None:
    manifest = versions.upload(base + 1, "clinic", SEGMENT, base)
    spool, previous = Spool(manifest.path(folder), manifest), read(versions.weights(SEGMENT, base))
    from feddiff.core.codec import CODECS

    for index in range(manifest.chunks):
        piece = slice(index * 1024, index * 1024 + manifest.count(index))
        payload = CODECS["fp32"].encode(vector(base + 1)[piece], previous[piece])
        spool.append(index, payload, checksum(payload))
    transfer = Transfer(spool.commit(spool.digest()))
    versions.publish(SEGMENT, base, base + 1, [Contribution("clinic", 1.0, transfer)])
    transfer.close()


def test_the_decay_grows_up_to_what_was_asked_for() -> None:
    """(1 + step) / (10 + step) with step = version - 1, and nothing of the initial weights."""
    assert [decay(0.9, version) for version in (1, 2, 3, 80, 81, 82)] == [0, 2 / 11, 3 / 12, 80 / 89, 0.9, 0.9]
    assert [decay(0.1, version) for version in (1, 2, 3)] == [0, 0.1, 0.1]


def test_four_versions_by_hand(tmp_path: Path) -> None:
    versions = begun(tmp_path, rules(outer={"ema": 0.2}))
    for base in range(4):
        advance(versions, tmp_path / "spool", base)
    w = [vector(seed).astype(np.float64) for seed in range(5)]
    assert np.array_equal(read(versions.model(SEGMENT, 0)), vector(0))
    assert np.array_equal(read(versions.model(SEGMENT, 1)), vector(1)), "nothing of the initial weights is left"
    expected = w[1]
    for version, kept in ((2, 2 / 11), (3, 0.2), (4, 0.2)):
        expected = kept * expected + (1 - kept) * w[version]
        np.testing.assert_allclose(read(versions.model(SEGMENT, version)), expected, atol=1e-6)
        assert np.array_equal(read(versions.weights(SEGMENT, version)), vector(version)), "silos train from these"


def test_a_fold_that_is_repeated_makes_the_same_average(tmp_path: Path) -> None:
    once, twice = (begun(tmp_path / name, rules(outer={"ema": 0.9})) for name in ("once", "twice"))
    for base in range(3):
        for versions in (once, twice):
            advance(versions, tmp_path / "spool", base)
        again = Versions(tmp_path / "twice", LAYOUT, rules(outer={"ema": 0.9}))
        advance(again, tmp_path / "spool", base)
        assert once.model(SEGMENT, base + 1).read_bytes() == twice.model(SEGMENT, base + 1).read_bytes()


def test_without_one_there_is_none(tmp_path: Path) -> None:
    versions = begun(tmp_path, rules())
    advance(versions, tmp_path / "spool", 0)
    assert versions.model(SEGMENT, 1) == versions.weights(SEGMENT, 1)
    assert list((tmp_path / "averages").iterdir()) == []


def test_what_is_measured_is_the_average_and_old_ones_go(tmp_path: Path) -> None:
    versions = begun(tmp_path, rules(outer={"ema": 0.9}, keep_versions=1))
    for base in range(3):
        advance(versions, tmp_path / "spool", base)
    (tmp_path / "measured").mkdir()
    versions.keep({SEGMENT: 3}, tmp_path / "measured")
    expected = read(versions.model(SEGMENT, 3))
    versions.prune({SEGMENT: 3})
    assert [each.name for each in (tmp_path / "averages").iterdir()] == [f"{SEGMENT}@3.safetensors"]
    assert np.array_equal(read(tmp_path / "measured" / f"{SEGMENT}.safetensors"), expected)
    assert not np.array_equal(expected, vector(3))
    advance(versions, tmp_path / "spool", 3)


def test_an_average_that_is_lost_is_not_begun_anew_unnoticed(tmp_path: Path) -> None:
    versions = begun(tmp_path, rules(outer={"ema": 0.9}))
    advance(versions, tmp_path / "spool", 0)
    versions.model(SEGMENT, 1).unlink()
    with pytest.raises(StoreError):
        advance(versions, tmp_path / "spool", 1)


def test_chunks_are_only_how_it_is_read(tmp_path: Path) -> None:
    before, published = (save(tmp_path / name, {SEGMENT: vector(seed)}) for name, seed in (("b", 1), ("p", 2)))
    for chunk in (1, 7, SIZE, SIZE + 1):
        average(SEGMENT, 9, 0.9, before, published, tmp_path / f"{chunk}", chunk)
    assert len({(tmp_path / f"{chunk}").read_bytes() for chunk in (1, 7, SIZE, SIZE + 1)}) == 1
    assert read(tmp_path / "7") == pytest.approx(vector(1) / 2 + vector(2) / 2, abs=1e-6)


@pytest.mark.parametrize("more", [{"plan": "udec"}, {"personal": ["bottleneck"]}])
def test_where_there_is_no_global_model_there_is_no_average_of_it(more: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"outer\.ema is of the global model"):
        rules(outer={"ema": 0.9}, **more)
