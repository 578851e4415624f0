"""Published versions when each round chooses its own codec: what was lost is carried, and the file says how it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.fold import Contribution
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.federator.versions import Versions, bound

LAYOUT = cut([("mid_block.a", (2500,))])
SEGMENT, SIZE = "bottleneck", 2500


def rules() -> FederationConfig:
    table = {
        "plan": "budget",
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "codec": {"chunk_elements": 1024},
        "keep_versions": 100,
        "budget": {"bytes_per_silo": 10**6},
    }
    return from_table(table, "test")


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    versions = Versions(tmp_path, LAYOUT, rules())
    with WeightsReader(save(tmp_path / "initial", {SEGMENT: change(0)})) as reader:
        versions.publish_initial(SEGMENT, reader)
    return versions


def change(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def weights(versions: Versions, version: int) -> F32:
    with WeightsReader(versions.weights(SEGMENT, version)) as reader:
        return reader.read(SEGMENT)


def publish(versions: Versions, folder: Path, base: int, values: F32, chosen: str) -> None:
    """One silo reports these values, without loss."""
    manifest, previous = versions.upload(base + 1, "clinic", SEGMENT, base, "fp32"), weights(versions, base)
    spool = Spool(manifest.path(folder / "spool"), manifest, fresh=True)
    for index in range(manifest.chunks):
        piece = slice(index * 1024, index * 1024 + manifest.count(index))
        payload = CODECS["fp32"].encode(values[piece], previous[piece])
        spool.append(index, payload, checksum(payload))
    transfer = Transfer(spool.commit(spool.digest()))
    versions.publish(SEGMENT, base, base + 1, [Contribution("clinic", 10, transfer)], chosen)
    transfer.close()


def test_a_lossless_version_brings_what_the_one_before_lost(versions: Versions, tmp_path: Path) -> None:
    publish(versions, tmp_path, 0, change(1), "int2")
    lost = change(1) - weights(versions, 1)
    assert np.abs(lost).max() > 0.1
    publish(versions, tmp_path, 1, change(2), "fp32")
    assert np.array_equal(weights(versions, 2), change(2) + lost)
    publish(versions, tmp_path, 2, change(3), "fp32")
    assert np.array_equal(weights(versions, 3), change(3))


def test_what_a_fold_lost_that_did_not_count_is_not_carried(versions: Versions, tmp_path: Path) -> None:
    publish(versions, tmp_path, 0, change(1), "int2")  # of a round that a rejection ended
    publish(versions, tmp_path, 0, change(1), "fp32")  # of the next one
    assert np.array_equal(weights(versions, 1), change(1))
    publish(versions, tmp_path, 1, change(2), "fp32")
    assert np.array_equal(weights(versions, 2), change(2))


def test_a_published_transfer_is_what_its_file_says(versions: Versions, tmp_path: Path) -> None:
    for base, chosen in enumerate(("int4", "fp32", "int2")):
        publish(versions, tmp_path, base, change(base + 1), chosen)
    for known in (versions, Versions(tmp_path, LAYOUT, rules())):
        route = known.routes({SEGMENT: 1}, {SEGMENT: 3})
        if len(route) > 1:
            assert [each.codec for each in route] == ["fp32", "int2"]
        manifests = [known.manifest(SEGMENT, base, base + 1) for base in range(3)]
        assert [each.codec for each in manifests] == ["int4", "fp32", "int2"]
        for manifest in manifests:
            opened = known.open(manifest)
            assert opened.manifest == manifest
            assert opened.payload_bytes == known.payload(manifest) <= bound(manifest)
            opened.close()
    snapshot = versions.manifest(SEGMENT, -1, 3)
    assert snapshot.codec == "fp32"
    worst = versions.payload(snapshot)
    versions.open(snapshot).close()
    assert 4 * SIZE * 0.8 < versions.payload(snapshot) <= worst == bound(snapshot)
