from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import StoreError
from feddiff.core.fold import BadUpdate, Contribution
from feddiff.core.quantize import QUANTISERS
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.core.transfer import Chunk, Receiver, Sender
from feddiff.federator.versions import Versions, route
from feddiff.silo.local import Local

LAYOUT = cut([("conv_in.weight", (50,)), ("mid_block.a", (2500,)), ("up_blocks.0.a", (1500,))])
SEGMENT = "bottleneck"
SIZE = LAYOUT[SEGMENT].size


def config(down: str = "fp32", delta: bool = True, keep_versions: int = 100, up: str = "fp32") -> FederationConfig:
    return from_table(
        {
            "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
            "codec": {"up": up, "down": down, "delta": delta, "chunk_elements": 1024},
            "keep_versions": keep_versions,
        },
        "test",
    )


def vector(seed: int, scale: float = 1.0, size: int = SIZE) -> F32:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def begun(folder: Path, rules: FederationConfig) -> Versions:
    """Version 0 of every segment is published."""
    versions = Versions(folder, LAYOUT, rules)
    initial = save(folder / "initial", {segment.name: vector(0, size=segment.size) for segment in LAYOUT.segments})
    with WeightsReader(initial) as reader:
        for name in LAYOUT.names:
            versions.publish_initial(name, reader)
    return versions


def weights(versions: Versions, version: int, segment: str = SEGMENT) -> F32:
    with WeightsReader(versions.weights(segment, version)) as reader:
        return reader.read(segment)


def contribute(folder: Path, versions: Versions, silo: str, base: int, values: F32) -> Contribution:
    manifest = versions.upload(base + 1, silo, SEGMENT, base)
    previous, codec = weights(versions, base), CODECS[manifest.codec]
    spool = Spool(manifest.path(folder), manifest)
    for index in range(manifest.chunks):
        piece = slice(index * manifest.chunk_elements, index * manifest.chunk_elements + manifest.count(index))
        payload = codec.encode(values[piece], None if manifest.absolute else previous[piece])
        spool.append(index, payload, checksum(payload))
    return Contribution(silo, 10, Transfer(spool.commit(spool.digest())))


def advance(folder: Path, versions: Versions, base: int, scale: float = 0.01) -> None:
    previous = weights(versions, base)
    contributions = [
        contribute(folder / "spool", versions, silo, base, previous + vector(100 * base + number, scale))
        for number, silo in enumerate(("clinic-a", "clinic-b"))
    ]
    versions.publish(SEGMENT, base, base + 1, contributions)


def bring(versions: Versions, local: Local, held: Mapping[str, int], target: int) -> list[int]:
    """Take a silo to a version of the segment; the bases of the transfers that it took."""
    found = versions.routes(held, {SEGMENT: target})
    for manifest in found:
        receiver = Receiver(local.inbox, [manifest])
        for part in Sender([manifest], versions.open).parts(receiver.standing()):
            assert receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
        local.apply(manifest)
    return [manifest.base_version for manifest in found]


def held_by(local: Local, version: int) -> F32:
    with WeightsReader(local.folder / "held" / f"{SEGMENT}@{version}.safetensors") as reader:
        return reader.read(SEGMENT)


deltas_of = st.dictionaries(st.integers(0, 8), st.integers(0, 1000))


@given(st.none() | st.integers(0, 9), st.integers(0, 9), deltas_of, st.integers(0, 5000))
def test_the_chain_is_taken_if_it_is_there_and_no_larger(
    held: int | None, target: int, deltas: dict[int, int], snapshot: int
) -> None:
    found = route(held, target, deltas, snapshot)
    chain = None if held is None or held > target else list(range(held, target))
    if chain is not None and all(base in deltas for base in chain) and sum(deltas[b] for b in chain) <= snapshot:
        assert list(found) == chain
    else:
        assert found == (-1,)


@given(st.integers(0, 9), deltas_of, st.integers(0, 5000))
def test_who_has_it_gets_nothing(version: int, deltas: dict[int, int], snapshot: int) -> None:
    assert route(version, version, deltas, snapshot) == ()


@pytest.mark.parametrize(
    ("down", "delta"),
    [(name, delta) for name in CODECS for delta in (True, False) if delta or name not in QUANTISERS],
)
def test_a_silo_holds_the_federators_very_bits_over_a_chain_or_a_snapshot(
    tmp_path: Path, down: str, delta: bool
) -> None:
    versions, follower, latecomer = (
        begun(tmp_path, config(down, delta)),
        Local(tmp_path / "follower"),
        Local(tmp_path / "latecomer"),
    )
    assert bring(versions, follower, {}, 0) == [-1]
    assert held_by(follower, 0).tobytes() == weights(versions, 0).tobytes()
    for base in range(3):
        advance(tmp_path, versions, base)
        assert bring(versions, follower, {SEGMENT: base}, base + 1) == [base if delta else -1]
        assert held_by(follower, base + 1).tobytes() == weights(versions, base + 1).tobytes()
    assert bring(versions, latecomer, {}, 3) == [-1]
    assert held_by(latecomer, 3).tobytes() == weights(versions, 3).tobytes()
    assert not np.array_equal(weights(versions, 0), weights(versions, 3))


def test_a_silo_that_was_away_catches_up_over_the_deltas(tmp_path: Path) -> None:
    versions, local = begun(tmp_path, config("fp16")), Local(tmp_path / "silo")
    bring(versions, local, {}, 0)
    advance(tmp_path, versions, 0)
    advance(tmp_path, versions, 1, scale=1e-7)
    assert bring(versions, local, {SEGMENT: 0}, 2) == [0, 1]
    assert held_by(local, 2).tobytes() == weights(versions, 2).tobytes()
    assert {name: held.version for name, held in local.held().items()} == {SEGMENT: 2}


def test_where_a_delta_is_gone_the_snapshot_is_taken(tmp_path: Path) -> None:
    versions = begun(tmp_path, config("fp16"))
    for base in range(2):
        advance(tmp_path, versions, base)
    versions.path(versions.manifest(SEGMENT, 0, 1)).unlink()
    assert [each.base_version for each in versions.routes({SEGMENT: 0}, {SEGMENT: 2})] == [-1]
    assert [each.base_version for each in versions.routes({SEGMENT: 1}, {SEGMENT: 2})] == [1]


def test_deltas_that_cost_more_than_everything_are_not_taken(tmp_path: Path) -> None:
    versions = begun(tmp_path, config("fp32"))
    for base in range(3):
        advance(tmp_path, versions, base, scale=10.0)
    assert [each.base_version for each in versions.routes({SEGMENT: 0}, {SEGMENT: 3})] == [-1]


def test_routes_are_for_the_targets_alone_in_layout_order(tmp_path: Path) -> None:
    versions = begun(tmp_path, config())
    found = versions.routes({"bottleneck": 0}, {"decoder.0": 0, "encoder.in": 0, "bottleneck": 0})
    assert [(each.segment, each.base_version) for each in found] == [("encoder.in", -1), ("decoder.0", -1)]


@pytest.mark.parametrize("down", CODECS)
def test_publishing_again_after_a_crash_writes_the_same_bytes(tmp_path: Path, down: str) -> None:
    versions = begun(tmp_path, config(down))
    contributions = [contribute(tmp_path / "spool", versions, silo, 0, vector(7)) for silo in ("clinic-a", "clinic-b")]
    versions.publish(SEGMENT, 0, 1, contributions)
    manifest = versions.manifest(SEGMENT, 0, 1)
    files = [versions.path(manifest), versions.weights(SEGMENT, 1)]
    before = [path.read_bytes() for path in files]
    files[1].unlink()
    part = files[0].with_name(files[0].name + ".part")
    part.write_bytes(before[0][: len(before[0]) // 2])
    versions.publish(SEGMENT, 0, 1, contributions[::-1])
    assert [path.read_bytes() for path in files] == before
    assert not part.exists()


def test_an_update_left_half_folded_by_a_crash_is_not_continued_with_others(tmp_path: Path) -> None:
    versions = begun(tmp_path, config())
    old, new = (contribute(tmp_path / "spool", versions, f"clinic-{seed}", 0, vector(seed)) for seed in (7, 8))
    versions.publish(SEGMENT, 0, 1, [old])
    place = versions.path(versions.manifest(SEGMENT, 0, 1))
    place.rename(place.with_name(place.name + ".part"))
    versions.publish(SEGMENT, 0, 1, [new])
    assert weights(versions, 1).tobytes() == vector(8).tobytes()
    local = Local(tmp_path / "silo")
    bring(versions, local, {}, 0)
    assert bring(versions, local, {SEGMENT: 0}, 1) == [0]
    assert held_by(local, 1).tobytes() == vector(8).tobytes()
    with WeightsReader(versions.weights(SEGMENT, 1)) as reader:
        assert reader.metadata["version"] == "1"


def test_a_bad_update_leaves_nothing_visible(tmp_path: Path) -> None:
    versions = begun(tmp_path, config())
    manifest = versions.upload(1, "clinic-b", SEGMENT, 0)
    spool = Spool(manifest.path(tmp_path), manifest)
    for index in range(manifest.chunks):
        spool.append(index, b"rubbish", checksum(b"rubbish"))
    bad = Contribution("clinic-b", 10, Transfer(spool.commit(spool.digest())))
    with pytest.raises(BadUpdate, match="clinic-b"):
        versions.publish(SEGMENT, 0, 1, [contribute(tmp_path, versions, "clinic-a", 0, vector(1)), bad])
    assert not versions.weights(SEGMENT, 1).exists()
    assert not versions.path(versions.manifest(SEGMENT, 0, 1)).exists()
    advance(tmp_path, versions, 0)
    assert versions.weights(SEGMENT, 1).exists()


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_prune_keeps_the_newest_versions_and_never_drops_the_current(tmp_path: Path, keep: int) -> None:
    versions = begun(tmp_path, config("fp16", keep_versions=keep))
    for base in range(4):
        advance(tmp_path, versions, base)
        versions.open(versions.manifest(SEGMENT, -1, base + 1)).close()
    current = {"encoder.in": 0, SEGMENT: 4, "decoder.0": 0}
    versions.prune(current)
    kept = [version for version in range(5) if versions.weights(SEGMENT, version).exists()]
    assert kept == list(range(max(0, 5 - keep), 5))
    for version in range(1, 5):
        assert versions.path(versions.manifest(SEGMENT, -1, version)).exists() == (version in kept)
    assert all(versions.weights(name, version).exists() for name, version in current.items())
    versions.prune(current)
    assert versions.weights(SEGMENT, 4).exists()


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("down", ["fp32", "int8", "int2"])
def test_prune_keeps_the_differences_that_are_no_larger_than_a_snapshot(tmp_path: Path, down: str, keep: int) -> None:
    versions = begun(tmp_path, config(down, keep_versions=keep))
    locals_ = [Local(tmp_path / f"silo-{version}") for version in range(7)]
    for version in range(7):
        bring(versions, locals_[version], {}, version)
        if version < 6:
            advance(tmp_path, versions, version)
            versions.prune({"encoder.in": 0, SEGMENT: version + 1, "decoder.0": 0})
    deltas = [versions.path(versions.manifest(SEGMENT, base, base + 1)) for base in range(6)]
    sizes = [path.stat().st_size if path.exists() else 10**9 for path in deltas]
    snapshot = versions.path(versions.manifest(SEGMENT, -1, 6)).stat().st_size
    for base, path in enumerate(deltas):
        assert path.exists() == (base >= 6 - keep or sum(sizes[base:]) <= 4 * SIZE)
        taken = bring(versions, locals_[base], {SEGMENT: base}, 6)
        assert taken == (list(range(base, 6)) if sum(sizes[base:]) <= snapshot else [-1])
        assert held_by(locals_[base], 6).tobytes() == weights(versions, 6).tobytes()
    assert deltas[0].exists() == (down == "int2")


def test_prune_before_anything_was_published_but_the_beginning(tmp_path: Path) -> None:
    versions = begun(tmp_path, config(keep_versions=1))
    versions.prune(dict.fromkeys(LAYOUT.names, 0))
    assert all(versions.weights(name, 0).exists() for name in LAYOUT.names)


def test_a_version_that_is_no_longer_kept(tmp_path: Path) -> None:
    versions = begun(tmp_path, config())
    for base, version in ((-1, 9), (3, 4)):
        with pytest.raises(StoreError):
            versions.open(versions.manifest(SEGMENT, base, version))


def test_a_snapshot_is_encoded_once(tmp_path: Path) -> None:
    versions = begun(tmp_path, config())
    manifest = versions.manifest(SEGMENT, -1, 0)
    versions.open(manifest).close()
    before = versions.path(manifest).stat()
    versions.open(manifest).close()
    assert versions.path(manifest).stat().st_mtime_ns == before.st_mtime_ns
    assert versions.path(manifest).stat().st_ino == before.st_ino


def test_uploads_say_what_the_rules_say(tmp_path: Path) -> None:
    delta = begun(tmp_path, config(up="bf16")).upload(5, "clinic-a", SEGMENT, 3)
    assert (delta.base_version, delta.version, delta.codec, delta.elements) == (3, 5, "bf16", SIZE)
    absolute = begun(tmp_path, config(up="fp16", delta=False)).upload(5, "clinic-a", SEGMENT, 3)
    assert (absolute.absolute, absolute.version, absolute.codec) == (True, 5, "fp16")
    assert delta.transfer == absolute.transfer
