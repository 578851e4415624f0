"""Out and in again: evictions that hold, invitations that lead back, certificates and files that are no longer good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from stage import FEDERATOR, SILO, TINY_UNET, Stage, images

from feddiff.core import pki, wire
from feddiff.core.errors import FedDiffError, Revoked
from feddiff.core.identity import Identity, Invitation
from feddiff.silo import enroll
from feddiff.v1 import federation_pb2 as pb
from feddiff.v1 import federation_pb2_grpc, transfer_pb2

IDENTITY = 77


def answer(stub: federation_pb2_grpc.FederationStub) -> FedDiffError | None:
    """What a Join meets."""
    try:
        stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=1), timeout=90)
    except grpc.RpcError as error:
        return wire.raised(error)
    return None


@pytest.mark.slow
def test_an_evicted_silo_comes_back_by_a_new_invitation_only(stage: Stage) -> None:
    stage.found(rounds=1, silos=2, unet=TINY_UNET).serve()
    images(stage.folder / "data", 4, seed=0)
    old = stage.invite("hospital-a")
    state = stage.folder / "hospital-a"
    enroll.join(Invitation.parse(old), state, stage.address)
    assert answer(stage.stub(state)) is None
    stage.operate("revoke", "hospital-a")
    evicted = (state / "certificate.pem").read_bytes()

    done = stage.call(SILO, "join", old, "--state", str(state))
    assert done.code == IDENTITY, done.err
    assert done.err.startswith("feddiff-silo: The invitation is spent")
    assert done.err.count("\n") == 1
    assert (state / "certificate.pem").read_bytes() == evicted
    assert isinstance(answer(stage.stub(state)), Revoked)
    assert not stage.silo_status("hospital-a")["enrolled"]

    command = stage.operate("invite", "hospital-a").splitlines()[-1].split()
    assert command[0] == "feddiff-silo"
    command[command.index("--data") + 1] = str(stage.folder / "data")

    def comes() -> bytes:
        """The command as `invite` prints it, in the old folder; returns the certificate that it is in with."""
        silo = stage.run("hospital-a", "-m", SILO, *command[1:], "--state", str(state))
        lives = silo.told().count("is in trial with 4 images") + 1
        stage.until(
            "it is in", lambda: silo.told().count("is in trial with 4 images") == lives or silo.code is not None
        )
        assert silo.code is None, silo.told()
        assert silo.terminate() == 0
        return (state / "certificate.pem").read_bytes()

    back = comes()
    first, second = (Identity.from_certificate(each) for each in (evicted, back))
    assert (first.name, second.name) == ("hospital-a", "hospital-a")
    assert first.serial != second.serial
    status = stage.silo_status("hospital-a")
    assert (status["enrolled"], status["samples"]) == (True, 4)
    assert comes() == back, "the token was used: it may stay in the unit file, and enrols nobody again"


def test_an_eviction_cuts_an_upload_that_says_nothing(stage: Stage) -> None:
    """Such a stream would keep its place at the gate, and would commit on when the silo has long been out."""
    stage.found(rounds=2, silos=1).serve()  # which waits for another silo afterwards
    state = stage.enrol("hospital-a")
    stub = stage.stub(state)
    assert answer(stub) is None
    held = [pb.Held(segment=name, version=0) for name in stage.layout.names]
    task = stub.GetTask(pb.TaskRequest(held=held, known_task="wait", patience_s=20), timeout=120)
    assert task.id == "round-1", task.reason
    over = threading.Event()

    def requests() -> Iterator[transfer_pb2.SubmitRequest]:
        yield transfer_pb2.SubmitRequest(offer=transfer_pb2.Offer(round=1, manifests=task.round.up))
        over.wait()

    call = stub.Submit(requests(), timeout=120)
    try:
        assert next(call).HasField("standing")
        stage.operate("revoke", "hospital-a")
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED  # and not the call's own deadline
    finally:
        over.set()
    assert isinstance(answer(stub), Revoked)


def test_damaged_published_files_are_replaced_by_snapshots(stage: Stage) -> None:
    """One has lost its end, which shows when it is opened; one a bit of a chunk, which shows when it is sent."""
    server = stage.found(rounds=2, silos=1).serve()
    silo = stage.hospital("hospital-a")
    silo.gate[1] = threading.Event()
    silo.start()
    stage.until("the first round trains", lambda: silo.training(1))
    stage.operate("pause")
    silo.gate[1].set()
    stage.until("the first round is over", lambda: stage.status()["phase"] == "paused")
    torn, flipped = sorted((stage.home / "published").glob("down.*.0-1.transfer"))[:2]
    torn.write_bytes(torn.read_bytes()[:-40])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    stage.operate("resume")
    stage.until("the silo has finished", lambda: silo.finished)
    assert server.wait() == 0
    assert not torn.exists()
    assert not flipped.exists()
    for name, vector in silo.start_of(2).items():
        assert vector.tobytes() == stage.published(name, 1).tobytes(), name
    assert "Fetch refused" in server.told()
    assert "Traceback" not in server.told()


def test_an_expired_server_certificate_is_renewed_at_the_start_unless_the_ca_has_expired(stage: Stage) -> None:
    stage.found()
    now, key = datetime.now(UTC), (stage.home / "server.key").read_bytes()

    def issued(ca_days: float) -> None:
        made = now - timedelta(days=200)
        authority, authority_key = pki.create_authority("trial", made, ca_days)
        server = pki.issue_federator(authority, authority_key, key, ["127.0.0.1"], made, days=90)
        for name, content in (("ca.pem", authority), ("ca.key", authority_key), ("server.pem", server)):
            (stage.home / name).write_bytes(content)

    issued(ca_days=199)
    done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules))
    assert done.code == IDENTITY, done.err
    assert done.err.startswith("feddiff-federator: The certificate is outside its dates: ")
    assert done.err.count("\n") == 1
    issued(ca_days=230)
    server = stage.serve()
    stage.enrol("hospital-a")
    assert 29 < stage.status()["server_days"] < 30
    assert "the CA ends in 30 days: `feddiff-federator rotate-ca` makes a new one" in server.told()
    assert server.terminate() == 0
