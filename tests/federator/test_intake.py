from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import (
    ConfigError,
    DigestMismatch,
    NotSelected,
    ProtocolError,
    Revoked,
    RoundClosed,
    TransferError,
)
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.core.transfer import Chunk, Commit, Receiver, Sender, Standing
from feddiff.federator.database import Database
from feddiff.federator.federation import REACHABLE_S, Federation
from feddiff.federator.intake import Intake
from feddiff.federator.lookout import look
from feddiff.federator.rounds import decide

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (2500,)), ("up_blocks.0.a", (1500,))])
A, B, C = "clinic-a", "clinic-b", "clinic-c"


def rules(plan: str = "full", **rounds: object) -> FederationConfig:
    return from_table(
        {
            "plan": plan,
            "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
            "codec": {"chunk_elements": 1024},
            "rounds": {"count": 3, "participants": 2, **rounds},
        },
        "test",
    )


def vector(segment: str, seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(LAYOUT[segment].size).astype(np.float32)


def begun(folder: Path, config: FederationConfig) -> Federation:
    """A federation whose version 0 is published."""
    federation = Federation(folder, config, LAYOUT, Database(folder / "federation.db"))
    initial = save(folder / "initial.safetensors", {name: vector(name, 0) for name in LAYOUT.names})
    with WeightsReader(initial) as reader:
        for name in LAYOUT.names:
            federation.versions.publish_initial(name, reader)
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    return federation


def restarted(federation: Federation) -> Federation:
    """As another process finds it."""
    return Federation(federation.folder, federation.config, LAYOUT, Database(federation.folder / "federation.db"))


def enroll(federation: Federation, silo: str, serial: int = 1) -> None:
    federation.roster.invite(silo, b"pem", f"print-{serial}", time.time() + 60)
    federation.roster.enroll(silo, f"print-{serial}", f"key-{serial}", serial, time.time())


def join(federation: Federation, silo: str, samples: int = 10, holds: bool = True) -> None:
    enroll(federation, silo)
    federation.join(silo, samples, {}, dict.fromkeys(LAYOUT.names, 0) if holds else {}, "cpu", "feddiff")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """In round 1, with clinics A and B."""
    federation = begun(tmp_path, rules())
    for silo in (A, B):
        join(federation, silo)
    federation.begin_round([A, B], "2 silos are here")
    return federation


def update(folder: Path, manifests: Sequence[Manifest], seed: int) -> Sender:
    """What a silo that holds version 0 would hand in."""
    transfers = {}
    for manifest in manifests:
        spool, codec = Spool(manifest.path(folder / f"outbox-{seed}"), manifest), CODECS[manifest.codec]
        values, base = vector(manifest.segment, seed), vector(manifest.segment, 0)
        for index in range(manifest.chunks):
            piece = slice(index * manifest.chunk_elements, index * manifest.chunk_elements + manifest.count(index))
            payload = codec.encode(values[piece], base[piece])
            spool.append(index, payload, checksum(payload))
        transfers[manifest] = Transfer(spool.commit(spool.digest()))
    return Sender(manifests, transfers.__getitem__)


def hand_in(
    federation: Federation, intake: Intake, silo: str, seed: int = 1, parts: int | None = None
) -> tuple[Receiver, list[Chunk | Commit]]:
    """The first parts of a silo's update (or all), and those that are left."""
    sender = update(federation.folder, federation.uploads(silo), seed)
    receiver = intake.begin(silo, 1, sender.manifests)
    left = list(sender.parts(receiver.standing()))
    for _ in range(len(left) if parts is None else parts):
        intake.take(silo, 1, receiver, left.pop(0))
    return receiver, left


def publish(federation: Federation) -> None:
    federation.published(dict.fromkeys(LAYOUT.names, 1), (A,))


# -- intake


def test_an_update_is_in_when_all_its_segments_are(federation: Federation) -> None:
    intake = Intake(federation)
    receiver, left = hand_in(federation, intake, A, parts=0)
    for part in left:
        assert A not in federation.committed
        assert federation.work(A) is not None
        intake.take(A, 1, receiver, part)
    assert federation.committed == {A}
    assert federation.work(A) is None
    assert federation.work(B) is not None
    assert federation.journal.updates(1) == {A: set(LAYOUT.names)}
    for name in LAYOUT.names:
        place = federation.versions.upload(1, A, name, 0).path(federation.spool(1))
        chunks = [payload for _, payload, _ in Transfer(place).chunks()]
        assert len(chunks) == -(-LAYOUT[name].size // 1024)


def test_a_late_update_is_refused(federation: Federation) -> None:
    intake = Intake(federation)
    _, left = hand_in(federation, intake, A, parts=1)
    receiver = intake.begin(A, 1, federation.uploads(A))
    manifests = federation.uploads(A)
    publish(federation)
    with pytest.raises(RoundClosed, match="round 1"):
        intake.take(A, 1, receiver, left[0])
    with pytest.raises(RoundClosed, match="round 1"):
        intake.take(A, 1, receiver, next(part for part in left if isinstance(part, Commit)))
    with pytest.raises(RoundClosed):
        intake.begin(A, 1, manifests)
    federation.begin_round([A, B], "again")
    with pytest.raises(RoundClosed):
        intake.begin(A, 1, manifests)
    assert federation.journal.updates(1) == {}


def test_an_update_of_a_round_to_come_is_refused(federation: Federation) -> None:
    with pytest.raises(RoundClosed):
        Intake(federation).begin(A, 2, federation.uploads(A))


def test_who_was_not_planned_may_not_hand_in(federation: Federation) -> None:
    join(federation, C)
    with pytest.raises(NotSelected, match=C):
        Intake(federation).begin(C, 1, federation.uploads(A))


def test_only_what_the_task_names_may_be_offered(federation: Federation) -> None:
    intake, planned = Intake(federation), federation.uploads(A)
    for offered in (
        [],
        planned[:-1],
        planned[::-1],
        [*planned, planned[0]],
        federation.uploads(B),
        [replace(planned[0], elements=31), *planned[1:]],
        [replace(planned[0], codec="bf16"), *planned[1:]],
        [replace(planned[0], base_version=-1), *planned[1:]],
    ):
        with pytest.raises(ProtocolError, match=A):
            intake.begin(A, 1, offered)
    assert not federation.spool(1).exists()


def test_a_second_stream_takes_over_and_the_first_one_learns_it(federation: Federation) -> None:
    intake = Intake(federation)
    first, left = hand_in(federation, intake, A, parts=2)
    second = intake.begin(A, 1, federation.uploads(A))
    for part in left:
        with pytest.raises(TransferError, match="another upload"):
            intake.take(A, 1, first, part)
    safe = second.standing()
    assert safe[0].committed  # segment encoder.in: one chunk and its commit
    for part in left:
        assert intake.take(A, 1, second, part)
    assert federation.committed == {A}


def test_streams_of_two_silos_do_not_know_each_other(federation: Federation) -> None:
    intake = Intake(federation)
    first, left_a = hand_in(federation, intake, A, seed=1, parts=0)
    second, left_b = hand_in(federation, intake, B, seed=2, parts=0)
    for part_a, part_b in zip(left_a, left_b, strict=True):
        intake.take(A, 1, first, part_a)
        intake.take(B, 1, second, part_b)
    assert federation.committed == {A, B}


def test_an_evicted_silo_is_refused_at_its_next_chunk(federation: Federation) -> None:
    intake = Intake(federation)
    receiver, left = hand_in(federation, intake, A, parts=2)
    federation.evict(A, "sends rubbish")
    with pytest.raises(Revoked):
        intake.take(A, 1, receiver, left[0])
    with pytest.raises(Revoked):
        intake.begin(A, 1, federation.uploads(A))
    assert A not in federation.committed


def test_a_rejected_silo_is_told_why(federation: Federation) -> None:
    intake = Intake(federation)
    receiver, left = hand_in(federation, intake, A, parts=1)
    federation.reject(A, "decoder.0 holds NaN")
    with pytest.raises(RoundClosed, match="holds NaN"):
        intake.take(A, 1, receiver, left[0])
    with pytest.raises(RoundClosed, match="holds NaN"):
        intake.begin(A, 1, federation.uploads(A))
    assert federation.work(A) is None


def test_what_is_committed_costs_once_however_often_it_is_sent(federation: Federation) -> None:
    intake = Intake(federation)
    hand_in(federation, intake, A)
    before = list(federation.ledger.entries())
    assert {row.segment: row.parameters for row in before} == {name: LAYOUT[name].size for name in LAYOUT.names}
    assert all((row.silo, row.direction, row.raw) == (A, "up", 4 * row.parameters) for row in before)
    sender = update(federation.folder, federation.uploads(A), 1)
    assert list(sender.parts([Standing()] * len(sender.manifests)))
    sizes = {each.manifest.segment: each.payload_bytes for each in sender.transfers.values()}
    assert [row.encoded for row in before] == [sizes[row.segment] for row in before]
    receiver, left = hand_in(federation, intake, A)
    assert left == []
    for offer, transfer in sender.transfers.items():
        assert not intake.take(A, 1, receiver, Commit(offer, transfer.digest))
        assert not intake.take(A, 1, receiver, Chunk(offer, *next(transfer.chunks())))
        with pytest.raises(DigestMismatch):
            intake.take(A, 1, receiver, Commit(offer, bytes(32)))
    assert list(federation.ledger.entries()) == before


def test_what_was_sent_before_a_crash_of_the_federator_is_not_sent_again(federation: Federation) -> None:
    _, left = hand_in(federation, Intake(federation), A, parts=4)
    again = restarted(federation)
    _, still_left = hand_in(again, Intake(again), A, parts=0)
    assert still_left == left
    hand_in(again, Intake(again), A)
    assert again.committed == {A}


def test_a_crash_between_the_file_and_its_row_in_the_journal(federation: Federation) -> None:
    """The file is there, so the silo will not commit it again; it must count all the same, and once."""
    manifests = federation.uploads(A)
    receiver = Receiver(federation.spool(1), manifests)
    for part in update(federation.folder, manifests, 1).parts(receiver.standing()):
        assert receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
    again = restarted(federation)
    assert again.committed == set()
    for _ in range(2):
        _, left = hand_in(again, Intake(again), A)
        assert left == []
    assert again.committed == {A}
    assert sum(row.parameters for row in again.ledger.entries()) == LAYOUT.size


def test_a_part_of_no_transfer_is_refused(federation: Federation) -> None:
    intake = Intake(federation)
    receiver, _ = hand_in(federation, intake, A, parts=0)
    for part in (Chunk(3, 0, b"", checksum(b"")), Commit(3, bytes(32))):
        with pytest.raises(ProtocolError):
            intake.take(A, 1, receiver, part)


# -- federation


def test_work_is_what_the_plan_says(tmp_path: Path) -> None:
    federation = begun(tmp_path, rules("udec"))
    join(federation, A)
    join(federation, B, holds=False)
    federation.begin_round([A, B], "")
    for silo, down in ((A, []), (B, list(LAYOUT.names))):
        work = federation.work(silo)
        assert work is not None
        assert work.round == 1
        assert [each.segment for each in work.down] == down
        assert [each.segment for each in work.up] == ["decoder.0"]
        assert work.start == dict.fromkeys(LAYOUT.names, 0)
        assert work.personal == ("encoder.in", "bottleneck")


def test_a_silo_that_lost_its_disk_gets_everything_again(tmp_path: Path) -> None:
    federation = begun(tmp_path, rules("udec"))
    for silo in (A, B):
        join(federation, silo)
    federation.begin_round([A, B], "")
    federation.published({"decoder.0": 1}, (A, B))
    federation.begin_round([A, B], "")
    federation.hear(A, {"decoder.0": 0})
    work = federation.work(A)
    assert work is not None
    assert {each.segment: each.version for each in work.down} == {"encoder.in": 0, "bottleneck": 0, "decoder.0": 1}
    federation.hear(A, {"encoder.in": 0, "bottleneck": 0, "decoder.0": 1})
    work = federation.work(A)
    assert work is not None
    assert work.down == ()


def test_only_what_the_task_names_can_be_fetched(federation: Federation) -> None:
    federation.hear(A, {})
    work = federation.work(A)
    assert work is not None
    federation.check_transfers(A, work.down)
    assert [federation.versions.open(each).manifest for each in work.down] == list(work.down)
    good = work.down[0]
    for wanted in (
        replace(good, version=1, transfer="down.encoder.in.x-1"),
        replace(good, transfer="down.encoder.in.x-7"),
        replace(good, elements=good.elements + 1),
        federation.versions.upload(1, B, "encoder.in", 0),
    ):
        with pytest.raises(NotSelected, match=A):
            federation.check_transfers(A, [good, wanted])
    join(federation, C, holds=False)
    with pytest.raises(NotSelected, match=C):
        federation.check_transfers(C, [good])


def test_versions_that_never_were_are_refused(federation: Federation) -> None:
    for held in ({"encoder.in": 1}, {"encoder.in": -1}, {"encoder.in": 1 << 62}, {"nothing": 0}):
        with pytest.raises(ProtocolError, match="never was"):
            federation.hear(A, held)
    work = federation.work(A)
    assert work is not None
    assert work.down == ()


@pytest.mark.parametrize("samples", [0, -1, (1 << 40) + 1])
def test_numbers_of_images_that_cannot_be(federation: Federation, samples: int) -> None:
    enroll(federation, C)
    with pytest.raises(ProtocolError, match=C):
        federation.join(C, samples, {}, {}, "cpu", "feddiff")
    assert C not in federation.presence


def test_weights_are_fixed_when_the_round_opens(federation: Federation) -> None:
    federation.join(A, 9999, {}, {}, "cpu", "feddiff")
    last = federation.journal.last()
    assert last is not None
    assert last.weights == {A: 10, B: 10}


def test_who_is_evicted_is_out_until_it_enrols_anew(federation: Federation) -> None:
    federation.evict(A, "sends rubbish")
    assert federation.reachable(time.monotonic()) == {B}
    with pytest.raises(Revoked):
        federation.hear(A)
    assert A in restarted(federation).evicted
    assert look(federation, time.monotonic()).planned[A].rejected == "evicted"
    enroll(federation, A, serial=2)
    federation.join(A, 10, {}, {}, "cpu", "feddiff")
    assert federation.reachable(time.monotonic()) == {A, B}
    with pytest.raises(ConfigError):
        federation.evict(C, "who?")


def test_silos_are_reachable_for_a_while(federation: Federation) -> None:
    now = federation.presence[A].heard_at
    assert A in federation.reachable(now + REACHABLE_S - 1)
    assert A not in federation.reachable(now + REACHABLE_S)


def test_reports_of_a_round_that_is_over_are_answered_so(federation: Federation) -> None:
    assert federation.report(A, 1, "training", 1, 10, {"loss": 0.5, "bad": float("nan"), "worse": float("inf")})
    assert federation.journal.metrics(1) == {1: {A: {"loss": 0.5}}}
    assert not federation.report(A, 2, "training", 1, 10, {"loss": 0.4})
    publish(federation)
    assert not federation.report(A, 1, "training", 2, 10, {"loss": 0.1})
    assert federation.journal.metrics(1) == {1: {A: {"loss": 0.5}}}


def test_a_silo_that_repeats_itself_makes_no_progress(federation: Federation) -> None:
    federation.report(A, 1, "training", 5, 10, {})
    before = federation.presence[A].progress_at
    federation.report(A, 1, "training", 5, 10, {})
    assert federation.presence[A].progress_at == before
    assert federation.presence[A].heard_at > before
    federation.report(A, 1, "training", 6, 10, {})
    assert federation.presence[A].progress_at > before


def test_a_restart_in_the_middle_of_a_round_finds_it(federation: Federation) -> None:
    hand_in(federation, Intake(federation), A)
    again = restarted(federation)
    assert again.open_round() == 1
    assert again.committed == {A}
    assert again.uploads(B) == federation.uploads(B)
    assert decide(time.monotonic(), look(again, time.monotonic()), again.config.rounds).action == "wait"
    join(again, B)
    hand_in(again, Intake(again), B, seed=2)
    decision = decide(time.monotonic(), look(again, time.monotonic()), again.config.rounds)
    assert (decision.action, decision.silos) == ("fold", (A, B))


def test_rounds_follow_each_other(federation: Federation) -> None:
    assert look(federation, 0).collecting
    publish(federation)
    view = look(federation, time.monotonic())
    assert (view.round, view.collecting, view.expected) == (2, False, {A})
    assert federation.current == dict.fromkeys(LAYOUT.names, 1)
    assert look(restarted(federation), time.monotonic()).round == 2
    assert federation.begin_round([B, A], "").round == 2
    assert [each.base_version for each in federation.uploads(A)] == [1, 1, 1]
