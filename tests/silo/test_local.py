from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from feddiff.core.codec import CODECS
from feddiff.core.config import from_table
from feddiff.core.errors import ConfigError, NotFinite, StoreError
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.silo.local import Local, read_identity
from feddiff.silo.session import Held, Progress, RoundWork
from feddiff.silo.trained import Trained

SIZE, CHUNK = 1000, 300
ENCODER, DECODER = "encoder.in", "decoder.0"


def vector(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def down(base: int, version: int, codec: str = "fp32", segment: str = DECODER) -> Manifest:
    name = f"down.{segment}.{'x' if base < 0 else base}-{version}"
    return Manifest(name, segment, base, version, codec, SIZE, CHUNK)


def up(base: int = 0, codec: str = "fp32", round: int = 1, segment: str = DECODER) -> Manifest:
    return Manifest(f"up.{round}.clinic.{segment}", segment, base, round, codec, SIZE, CHUNK)


def work(round: int = 1, **start: int) -> RoundWork:
    begins = {name: Held(version) for name, version in (start or {DECODER: round - 1}).items()}
    return RoundWork(round, (), (up(round=round, base=round - 1),), begins, (ENCODER,), 7)


def versions(local: Local) -> dict[str, int]:
    return {segment: held.version for segment, held in local.held().items()}


def received(local: Local, manifest: Manifest, values: F32, base: F32 | None = None) -> Path:
    """A transfer that lies whole in the inbox."""
    spool = Spool(manifest.path(local.inbox), manifest)
    for index in range(manifest.chunks):
        piece = slice(index * CHUNK, index * CHUNK + manifest.count(index))
        payload = CODECS[manifest.codec].encode(values[piece], None if base is None else base[piece])
        spool.append(index, payload, checksum(payload))
    return spool.commit(spool.digest())


def hold(local: Local, version: int = 0, *segments: str) -> None:
    for seed, segment in enumerate(segments or (ENCODER, DECODER)):
        manifest = down(-1, version, segment=segment)
        received(local, manifest, vector(seed))
        local.apply(manifest)


def held_by(local: Local, segment: str, version: int) -> F32:
    with WeightsReader(local.folder / "held" / f"{segment}@{version}.safetensors") as reader:
        return reader.read(segment)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path / "state")


# -- the folder


def test_the_folder_is_its_owners_alone(local: Local) -> None:
    assert stat.S_IMODE(local.folder.stat().st_mode) == 0o700


def test_one_process_at_a_time(local: Local) -> None:
    code = f"from feddiff.silo.local import Local; from pathlib import Path; Local(Path({str(local.folder)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "in use by another feddiff-silo" in other.stderr
    with pytest.raises(StoreError, match="in use"):
        Local(local.folder)
    local.close()
    Local(local.folder).close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--state"):
        Local(tmp_path / "file")


def rules(**changes: object) -> bytes:
    table = {"model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}, **changes}
    return from_table(table, "test").canonical()


def test_rules_are_kept_and_may_not_change(local: Local) -> None:
    assert local.rules() is None
    config = local.adopt(rules())
    assert local.rules() == config == local.adopt(rules())
    with pytest.raises(ConfigError, match="have changed"):
        local.adopt(rules(seed=1))
    assert local.rules() == config


def test_the_same_rules_in_other_bytes_are_the_same(local: Local) -> None:
    config = local.adopt(rules())
    assert local.adopt(json.dumps(json.loads(rules()), indent=4).encode()) == config


def test_identity(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--join"):
        read_identity(tmp_path)
    (tmp_path / "identity.json").write_text('{"name": "clinic-a", "invitation": "1234"}')
    assert read_identity(tmp_path) == ("clinic-a", "1234")
    (tmp_path / "identity.json").write_text('{"name": "clinic-a"')
    with pytest.raises(StoreError):
        read_identity(tmp_path)


# -- in


@pytest.mark.parametrize("codec", CODECS)
def test_a_received_version_is_held_bit_for_bit_and_replaces_the_one_before(local: Local, codec: str) -> None:
    hold(local)
    base = held_by(local, DECODER, 0)
    manifest = down(0, 1, codec)
    received(local, manifest, vector(5), base)
    local.apply(manifest)
    decoded = [
        CODECS[codec].decode(
            CODECS[codec].encode(vector(5)[start : start + CHUNK], base[start : start + CHUNK]),
            manifest.count(start // CHUNK),
            base[start : start + CHUNK],
        )
        for start in range(0, SIZE, CHUNK)
    ]
    assert held_by(local, DECODER, 1).tobytes() == np.concatenate(decoded).tobytes()
    assert versions(local) == {ENCODER: 0, DECODER: 1}
    assert sorted(path.name for path in (local.folder / "held").iterdir()) == [
        "decoder.0@1.safetensors",
        "encoder.in@0.safetensors",
    ]
    assert list(local.inbox.iterdir()) == []


def test_a_delta_without_its_base_is_refused_and_nothing_is_held(local: Local) -> None:
    manifest = down(0, 1)
    received(local, manifest, vector(1), vector(0))
    with pytest.raises(StoreError, match="@0"):
        local.apply(manifest)
    assert local.held() == {}


def test_a_transfer_that_was_damaged_on_disk_is_fetched_again(local: Local) -> None:
    hold(local)
    manifest = down(0, 1)
    place = received(local, manifest, vector(1), vector(1))
    text = bytearray(place.read_bytes())
    text[len(text) // 2] ^= 1
    place.write_bytes(text)
    with pytest.raises(StoreError, match="damaged"):
        local.apply(manifest)
    assert versions(local) == {ENCODER: 0, DECODER: 0}
    assert not place.exists()
    received(local, manifest, vector(1), vector(1))
    local.apply(manifest)
    assert versions(local) == {ENCODER: 0, DECODER: 1}


# -- a kill at any moment


def test_an_empty_folder_has_nothing(local: Local) -> None:
    assert local.progress() == Progress({}, None)


def test_progress_is_what_is_whole(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(1), DECODER: vector(2)}, None, {})
    local.encode(work(), up(), feedback=True)
    before = local.progress()
    assert versions(local) == {ENCODER: 0, DECODER: 0}
    assert before == Progress(local.held(), 1)
    # What kills leave behind: a version, a training and transfers in the making, and a stale transfer.
    (local.folder / "held" / ".decoder.0@7.safetensors.part").write_bytes(b"half")
    (local.folder / "trained" / ".round-9.safetensors.part").write_bytes(b"half")
    (local.folder / "outbox" / f"{up(segment=ENCODER).transfer}.transfer.part").write_bytes(b"half")
    (local.inbox / "down.decoder.0.0-1.transfer.part").write_bytes(b"half")
    received(local, down(0, 1), vector(3), vector(1))
    local.close()
    assert Local(local.folder).progress() == before


def test_a_kill_while_applying_a_version(local: Local) -> None:
    hold(local)
    manifest = down(0, 1)
    received(local, manifest, vector(5), vector(1))
    (local.folder / "held" / ".decoder.0@1.safetensors.part").write_bytes(b"half")
    local.apply(manifest)
    assert held_by(local, DECODER, 1).tobytes() == vector(5).tobytes()


def test_a_kill_after_the_version_and_before_the_old_one_is_gone(local: Local) -> None:
    hold(local)
    save(local.folder / "held" / "decoder.0@1.safetensors", {DECODER: vector(5)})
    assert versions(local) == {ENCODER: 0, DECODER: 1}
    manifest = down(1, 2)
    received(local, manifest, vector(6), vector(5))
    local.apply(manifest)
    assert versions(local) == {ENCODER: 0, DECODER: 2}
    assert not list((local.folder / "held").glob("decoder.0@[01].*"))


def test_a_kill_while_encoding(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(1), DECODER: vector(2)}, None, {})
    local.encode(work(), up(), feedback=True)
    place = up().path(local.folder / "outbox")
    whole = place.read_bytes()
    for kept in (10, len(whole) // 2, len(whole) - 1):
        place.unlink()
        place.with_name(place.name + ".part").write_bytes(whole[:kept])
        local.outgoing(work(), up(), feedback=True).close()
        assert place.read_bytes() == whole


def test_transfers_of_other_rounds_are_tidied_away(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(1), DECODER: vector(2)}, None, {})
    local.encode(work(), up(), feedback=True)
    current = RoundWork(1, (down(0, 1),), (up(),), {}, (), 7)
    received(local, down(0, 1), vector(3), vector(1))
    for box, name in (
        ("outbox", "up.0.clinic.decoder.0.transfer"),
        ("outbox", "up.0.clinic.encoder.in.transfer.part"),
        ("inbox", "down.decoder.0.x-0.transfer"),
    ):
        (local.folder / box / name).write_bytes(b"old")
    (local.inbox / "down.decoder.0.0-1.transfer.part").write_bytes(b"the round's own")
    local.tidy(current)
    assert [path.name for path in (local.folder / "outbox").iterdir()] == [f"{up().transfer}.transfer"]
    assert sorted(path.name for path in local.inbox.iterdir()) == [
        "down.decoder.0.0-1.transfer",
        "down.decoder.0.0-1.transfer.part",
    ]


# -- training


def test_the_first_training_starts_from_what_is_held(local: Local) -> None:
    hold(local)
    found = local.start(work())
    assert {name: values.tobytes() for name, values in found.items()} == {
        ENCODER: vector(0).tobytes(),
        DECODER: vector(1).tobytes(),
    }


def test_personal_segments_come_from_the_last_training_and_shared_ones_from_the_federation(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(11), DECODER: vector(12)}, {ENCODER: vector(13), DECODER: vector(14)}, {})
    received(local, down(0, 1), vector(15), vector(1))
    local.apply(down(0, 1))
    found = local.start(work(2, **{DECODER: 1}))
    assert set(found) == {ENCODER, DECODER}
    assert found[ENCODER].tobytes() == vector(11).tobytes()
    assert found[DECODER].tobytes() == vector(15).tobytes()


def test_a_newcomer_starts_from_the_whole_model_even_where_it_has_trained(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(11), DECODER: vector(12)}, None, {})
    found = local.start(work(2, **{DECODER: 0, ENCODER: 0}))
    assert found[ENCODER].tobytes() == vector(0).tobytes()


def test_a_training_replaces_the_one_before(local: Local) -> None:
    trained = Trained(local.folder)
    assert trained.round is None
    assert trained.averages() is None
    with pytest.raises(StoreError, match="no trained model"):
        trained.weights()
    trained.keep(9, {ENCODER: vector(1)}, {ENCODER: vector(2)}, {"loss": 0.5, "images": 12})
    assert trained.round == 9
    assert trained.weights().keys() == {ENCODER}
    averages = trained.averages()
    assert averages is not None
    assert averages[ENCODER].tobytes() == vector(2).tobytes()
    assert trained.metrics() == {"loss": 0.5, "images": 12}
    trained.keep(10, {ENCODER: vector(3)}, None, {})
    assert trained.round == 10
    assert trained.weights()[ENCODER].tobytes() == vector(3).tobytes()
    assert trained.averages() is None
    assert [path.name for path in (local.folder / "trained").iterdir()] == ["round-10.safetensors"]


# -- out


@pytest.mark.parametrize("base", [-1, 0])
@pytest.mark.parametrize("codec", CODECS)
def test_what_was_trained_is_what_the_other_end_decodes(local: Local, tmp_path: Path, codec: str, base: int) -> None:
    hold(local)
    values = (vector(1) + 0.01 * vector(2)).astype(np.float32)
    local.trained.keep(1, {ENCODER: vector(0), DECODER: values}, {DECODER: vector(9)}, {})
    manifest = up(base, codec)
    transfer = local.outgoing(work(), manifest, feedback=True)
    assert transfer.manifest == manifest
    other = Local(tmp_path / "other")
    hold(other)
    manifest.path(other.inbox).write_bytes(transfer.path.read_bytes())
    other.apply(manifest)
    found = held_by(other, DECODER, 1)
    reference = None if base < 0 else held_by(local, DECODER, 0)
    for index in range(manifest.chunks):
        piece = slice(index * CHUNK, index * CHUNK + manifest.count(index))
        held = None if reference is None else reference[piece]
        sent = CODECS[codec].encode(values[piece], held)
        assert found[piece].tobytes() == CODECS[codec].decode(sent, manifest.count(index), held).tobytes()
    if codec == "fp32":
        assert found.tobytes() == values.tobytes()


def test_weights_that_are_not_finite_never_leave(local: Local) -> None:
    hold(local)
    values = vector(2)
    values[777] = np.nan
    local.trained.keep(1, {ENCODER: vector(0), DECODER: values}, None, {})
    with pytest.raises(NotFinite, match=r"decoder\.0 after round 1"):
        local.encode(work(), up(), feedback=True)
    assert not list((local.folder / "outbox").glob("*.transfer"))


def test_a_transfer_that_is_not_what_its_manifest_says_is_encoded_again(local: Local) -> None:
    hold(local)
    local.trained.keep(1, {ENCODER: vector(0), DECODER: vector(2)}, None, {})
    local.encode(work(), up(), feedback=True)
    place = up().path(local.folder / "outbox")
    whole = place.read_bytes()
    place.write_bytes(whole[:-5])
    local.outgoing(work(), up(), feedback=True).close()
    assert place.read_bytes() == whole
    assert [payload for _, payload, _ in Transfer(place).chunks()]


def test_initial_weights_made_here_are_held_only_if_they_are_the_federators(local: Local) -> None:
    made = {ENCODER: vector(1), DECODER: vector(2)}
    digest = hashlib.sha256(made[ENCODER].tobytes() + made[DECODER].tobytes()).hexdigest()
    assert not local.keep_initial({ENCODER: vector(1), DECODER: vector(3)}, digest)
    assert local.held() == {}
    assert local.keep_initial(made, digest)
    assert versions(local) == {ENCODER: 0, DECODER: 0}
