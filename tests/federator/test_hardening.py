"""What one silo, one damaged file or one full disk must not do to a federation."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core import pki, wire
from feddiff.core.codec import CODECS
from feddiff.core.config import from_table
from feddiff.core.errors import InvitationSpent, ProtocolError, Revoked, StoreError
from feddiff.core.fold import Contribution
from feddiff.core.identity import Identity
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.intake import Intake
from feddiff.federator.ledger import Entry, Ledger
from feddiff.federator.lookout import look
from feddiff.federator.presence import MAX_METRICS
from feddiff.federator.rounds import decide
from feddiff.federator.service import FederationService
from feddiff.federator.traffic import Traffic
from feddiff.v1 import federation_pb2 as pb

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (2500,)), ("up_blocks.0.a", (1500,))])
SEGMENT = "bottleneck"
A, B, C = "clinic-a", "clinic-b", "clinic-c"


def vector(seed: int, size: int) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def begun(folder: Path, pool: Mapping[str, float] | None = None, **rounds: object) -> Federation:
    """A federation whose version 0 is published."""
    config = from_table(
        {
            "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
            "codec": {"down": "bf16", "chunk_elements": 1024},
            "rounds": {"count": 3, **rounds},
            **({"pool": dict(pool)} if pool else {}),
        },
        "test",
    )
    federation = Federation(folder, config, LAYOUT, Database(folder / "federation.db"))
    initial = save(folder / "initial.safetensors", {each.name: vector(0, each.size) for each in LAYOUT.segments})
    with WeightsReader(initial) as reader:
        for name in LAYOUT.names:
            federation.versions.publish_initial(name, reader)
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    return federation


def enroll(federation: Federation, silo: str, serial: int = 1) -> None:
    federation.roster.invite(silo, b"pem", f"print-{serial}", time.time() + 60)
    federation.roster.enroll(silo, f"print-{serial}", "key", serial, time.time())


def running(folder: Path, *silos: str, **rounds: object) -> Federation:
    """In round 1 with these silos."""
    federation = begun(folder, None, participants=len(silos), **rounds)
    for silo in silos:
        enroll(federation, silo)
        federation.join(silo, 10, {}, dict.fromkeys(LAYOUT.names, 0), "cpu", "feddiff")
    federation.begin_round(silos, f"{len(silos)} silos are here")
    return federation


def hand_in(federation: Federation, silo: str) -> None:
    for name in LAYOUT.names:
        federation.committed_segment(silo, 1, name, b"digest", Entry(1, silo, name, "up"))


# -- evictions


def test_an_eviction_voids_the_invitation(tmp_path: Path) -> None:
    federation = running(tmp_path, A)
    federation.evict(A, "its scanner is broken")
    assert federation.roster.invitation_certificates() == []
    with pytest.raises(InvitationSpent, match="no such invitation"):
        federation.roster.enroll(A, "print-1", "key", 2, time.time())
    for serial in (1, 2):
        with pytest.raises(Revoked, match="its scanner is broken"):
            federation.roster.check(A, serial)
    enroll(federation, A, serial=3)
    assert federation.roster.check(A, 3).evicted is None


def test_an_eviction_cuts_the_streams_of_that_silo_alone(tmp_path: Path) -> None:
    federation = running(tmp_path, A, B)
    cut_off: list[str] = []

    def open_stream(silo: str) -> Callable[[], object]:
        def cancel() -> None:
            cut_off.append(silo)
            streams.discard(cancel)  # as gRPC's callback at the end of a call does

        streams = federation.hear(silo).streams
        streams.add(cancel)
        return cancel

    for silo in (A, A, B):
        open_stream(silo)
    federation.evict(A, "gone")
    assert cut_off == [A, A]
    federation.evict(B, "gone")
    assert cut_off == [A, A, B]


def test_a_silo_evicted_between_decision_and_opening_is_not_planned(tmp_path: Path) -> None:
    federation = begun(tmp_path, participants=2)
    for silo in (A, B):
        enroll(federation, silo)
        federation.join(silo, 10, {}, {}, "cpu", "feddiff")
    decision = decide(time.monotonic(), look(federation, time.monotonic()), federation.config.rounds)
    assert decision.silos == (A, B)
    federation.evict(A, "gone")
    opened = federation.begin_round(decision.silos, decision.reason)
    assert [each.silo for each in opened.plan.assignments] == [B]


def test_one_update_is_no_quorum_of_two_whatever_became_of_the_others(tmp_path: Path) -> None:
    federation = running(tmp_path, A, B, C, quorum=2)
    hand_in(federation, A)
    hand_in(federation, B)
    federation.reject(B, "weights hold NaN")
    federation.evict(C, "gone")
    now = time.monotonic()
    decision = decide(now, look(federation, now), federation.config.rounds)
    assert (decision.action, decision.silos) == ("fold", ())
    assert "1 of 2 needed updates" in decision.reason
    before = federation.current
    federation.published({}, decision.silos)
    assert federation.current == before == dict.fromkeys(LAYOUT.names, 0)
    assert federation.open_round() is None
    assert look(federation, now).round == 2


# -- what a silo says of itself


def metrics_of(federation: Federation, silo: str, round: int = 1) -> dict[str, float]:
    return federation.journal.metrics(round).get(round, {}).get(silo, {})


def test_metrics_that_are_no_numbers_are_dropped(tmp_path: Path) -> None:
    federation = running(tmp_path, A)
    values = {"loss": float("nan"), "worst": float("inf"), "best": float("-inf"), "kept": 1.5}
    assert federation.report(A, 1, "training", 1, 2, values)
    assert metrics_of(federation, A) == {"kept": 1.5}


def test_a_round_keeps_so_many_metrics_of_a_silo(tmp_path: Path) -> None:
    federation = running(tmp_path, A, B)
    for batch in range(5):
        federation.report(A, 1, "training", batch, 5, {f"{batch}-{each}": 1.0 for each in range(40)})
    kept = metrics_of(federation, A)
    assert len(kept) == MAX_METRICS
    known = next(iter(kept))
    federation.report(A, 1, "training", 5, 5, {"another": 1.0, known: 2.0})
    assert metrics_of(federation, A) == {**kept, known: 2.0}
    federation.report(B, 1, "training", 1, 5, {"loss": 1.0})
    assert metrics_of(federation, B) == {"loss": 1.0}
    federation.published({}, ())
    federation.begin_round([A, B], "again")
    federation.report(A, 2, "training", 1, 5, {"another": 1.0})
    assert metrics_of(federation, A, 2) == {"another": 1.0}


def test_metrics_told_again_leave_room_for_new_ones(tmp_path: Path) -> None:
    federation = running(tmp_path, A)
    told = {str(each): 1.0 for each in range(MAX_METRICS - 1)}
    federation.report(A, 1, "training", 1, 2, told)
    federation.report(A, 1, "training", 2, 2, {**told, "last": 1.0})
    assert metrics_of(federation, A) == {**told, "last": 1.0}


def calling(silo: str, federation: Federation) -> grpc.ServicerContext:
    """The context of a call with an enrolled silo's certificate."""
    now = datetime.now(UTC)
    authority, authority_key = pki.create_authority("trial", now)
    request = pki.request_certificate(pki.make_key(), silo)
    certificate = pki.issue_client(authority, authority_key, request, "silo", silo, now)
    enroll(federation, silo, Identity.from_certificate(certificate).serial)
    context = SimpleNamespace(
        auth_context=lambda: {"x509_pem_cert": [certificate]},
        peer=lambda: "ipv4:127.0.0.1:1",
        is_active=lambda: True,
        set_compression=lambda _: None,
    )
    return cast(grpc.ServicerContext, context)


def test_control_characters_reach_no_log_and_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = begun(tmp_path, participants=1)
    service = FederationService(federation, Intake(federation), Traffic(federation.ledger, 1, lambda: 0))
    context = calling(A, federation)
    bad = "\x1b[2J\x1b]0;title\x07\r\n04:00:00 I round 9 is published\u202e\u2028"
    with caplog.at_level("INFO"):
        request = pb.JoinRequest(protocol=wire.PROTOCOL, samples=1, device=bad, software=bad, labels={bad: 1})
        service.Join(request, context)
    told = federation.roster.get(A)
    assert all(text.isprintable() for text in (told.device, told.software, *told.labels))
    assert "round 9 is published" in told.device
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert any(told.device in record.getMessage() for record in caplog.records)
    federation.hear(A, dict.fromkeys(LAYOUT.names, 0))
    federation.begin_round([A], "here")
    service.Report(pb.ReportRequest(round=1, phase=bad, metrics={bad: 1.0}), context)
    assert federation.presence[A].phase.isprintable()
    assert federation.presence[A].phase.startswith("?[2J?]0;title?")
    assert all(name.isprintable() for name in metrics_of(federation, A))
    assert metrics_of(federation, A)


def test_who_has_not_joined_is_not_here(tmp_path: Path) -> None:
    federation = begun(tmp_path, participants=1)
    service = FederationService(federation, Intake(federation), Traffic(federation.ledger, 1, lambda: 0))
    context = calling(A, federation)
    for call, request in ((service.Report, pb.ReportRequest(round=0)), (service.GetTask, pb.TaskRequest())):
        with pytest.raises(ProtocolError, match="has not joined yet"):
            cast(Any, call)(request, context)
    assert federation.reachable(time.monotonic()) == set()


def test_what_a_silo_accepts_is_known_before_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = begun(tmp_path, {"alpha": 0.5, "beta": 0.5}, participants=1)
    service = FederationService(federation, Intake(federation), Traffic(federation.ledger, 1, lambda: 0))
    join, known = federation.join, list[str | None]()

    def joined(silo: str, *told: Any) -> None:
        known.append(federation.journal.fact(f"pool {silo}"))  # a round opens as soon as it has joined
        join(silo, *told)

    monkeypatch.setattr(federation, "join", joined)
    service.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=1, accepts_pool=True), calling(A, federation))
    assert known == ["accepted"]


# -- damaged files


def advanced(federation: Federation) -> None:
    """Version 1 of one segment is published."""
    versions, size = federation.versions, LAYOUT[SEGMENT].size
    manifest, values, base = versions.upload(1, A, SEGMENT, 0), vector(1, size), vector(0, size)
    spool = Spool(manifest.path(federation.folder / "spool"), manifest)
    for index in range(manifest.chunks):
        piece = slice(index * manifest.chunk_elements, index * manifest.chunk_elements + manifest.count(index))
        payload = CODECS[manifest.codec].encode(values[piece], base[piece])
        spool.append(index, payload, checksum(payload))
    versions.publish(SEGMENT, 0, 1, [Contribution(A, 1, Transfer(spool.commit(spool.digest())))])


@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: b"", lambda whole: b"x" + whole[1:]])
def test_where_a_delta_is_damaged_the_next_route_is_the_snapshot(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    federation = begun(tmp_path)
    advanced(federation)
    versions = federation.versions
    (delta,) = versions.routes({SEGMENT: 0}, {SEGMENT: 1})
    assert delta.base_version == 0
    versions.path(delta).write_bytes(damage(versions.path(delta).read_bytes()))
    with pytest.raises(StoreError):
        versions.open(delta)
    (instead,) = versions.routes({SEGMENT: 0}, {SEGMENT: 1})
    assert instead.absolute
    for _ in range(2):  # a snapshot that is damaged is encoded again
        versions.open(instead).close()
        versions.path(instead).write_bytes(b"rubbish")
        with pytest.raises(StoreError):
            versions.open(instead)
    with WeightsReader(versions.weights(SEGMENT, 1)) as reader:
        published = reader.read(SEGMENT)
    whole = versions.open(instead)
    chunks = [payload for _, payload, _ in whole.chunks()]
    whole.close()
    decoded = [
        CODECS[instead.codec].decode(payload, instead.count(index), None) for index, payload in enumerate(chunks)
    ]
    assert np.concatenate(decoded).tobytes() == published.tobytes()


# -- the ledger

sizes = st.integers(-(1 << 30), 1 << 40)
directions = st.sampled_from(["up", "down"])
entries = st.lists(
    st.builds(
        Entry, st.integers(0, 3), st.sampled_from([A, B]), st.sampled_from(["", SEGMENT]), directions, wire=sizes
    ),
    max_size=12,
)


@given(entries)
def test_the_bytes_on_the_wire_are_the_sum_of_the_rows(added: list[Entry]) -> None:
    database = Database(Path(":memory:"))
    ledger = Ledger(database)
    for each in added:
        ledger.add(each)
    for direction in ("up", "down"):
        assert ledger.wire(direction) == sum(each.wire for each in added if each.direction == direction)
        for round in range(4):
            rows = [each.wire for each in ledger.entries(round) if each.direction == direction]
            assert ledger.wire(direction, round) == sum(rows)
    database.close()


def test_what_a_full_disk_refuses_is_written_the_next_time(tmp_path: Path) -> None:
    database = Database(tmp_path / "federation.db")
    ledger = Ledger(database)
    traffic = Traffic(ledger, 1, lambda: 1)
    traffic.add(Entry(1, A, SEGMENT, "up", wire=100))
    database.connection.execute("PRAGMA query_only = ON")
    for _ in range(2):
        with pytest.raises(sqlite3.Error):
            traffic.keep()
        traffic.add(Entry(1, A, SEGMENT, "up", wire=10))
    database.connection.execute("PRAGMA query_only = OFF")
    assert ledger.wire("up") == 0
    traffic.keep()
    traffic.keep()
    assert ledger.wire("up") == 120
