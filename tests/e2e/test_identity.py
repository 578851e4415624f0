"""Who is refused, that they get nothing, and that the federator's log says why."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from datetime import UTC, datetime

import grpc
import pytest
from stage import SILO, Stage

from feddiff.core import pki, wire
from feddiff.core.errors import FedDiffError, FederatorUnavailable, IdentityError, InvitationSpent, Revoked, UnknownSilo
from feddiff.core.identity import Invitation
from feddiff.silo import enroll
from feddiff.v1 import enrollment_pb2, enrollment_pb2_grpc, federation_pb2_grpc, transfer_pb2
from feddiff.v1 import federation_pb2 as pb

REFUSED_IDENTITY = 77


def answer(channel: grpc.Channel) -> FedDiffError:
    """The error that a Join meets, as the silo's client would raise it."""
    stub = federation_pb2_grpc.FederationStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=1), timeout=10)
    return wire.raised(caught.value)


def test_strangers_get_nothing(stage: Stage) -> None:
    server = stage.found().serve()
    ca, ca_key = ((stage.home / name).read_bytes() for name in ("ca.pem", "ca.key"))
    now, key = datetime.now(UTC), pki.make_key()
    request = pki.request_certificate(key, "hospital-a")
    stage.enrol("hospital-a")

    def logged(sentence: str) -> None:
        stage.until(f"the log says {sentence!r}", lambda: re.search(sentence, server.told()), seconds=10)

    assert isinstance(answer(stage.secured(ca, None, None)), FederatorUnavailable)
    logged("refused a connection: the client shows no certificate")

    other, other_key = pki.create_authority("trial", now)  # another CA of the same name, for a silo of the same name
    forged = pki.issue_client(other, other_key, request, "silo", "hospital-a", now)
    assert isinstance(answer(stage.secured(ca, key, forged)), FederatorUnavailable)
    logged("refused a connection: the client's certificate is (not from this federation's CA|signed by another CA)")

    invited = Invitation.parse(stage.invite("hospital-b"))
    certificate, bootstrap = pki.invitation_certificate(invited.name, invited.secret)
    found = answer(stage.secured(ca, bootstrap, certificate))
    assert isinstance(found, IdentityError)
    logged(r"Join refused to \S+: This identity is refused: invitation 'hospital-b' may not call this")

    operator = pki.issue_client(ca, ca_key, request, "operator", "hospital-a", now)
    assert isinstance(answer(stage.secured(ca, key, operator)), IdentityError)
    logged("operator 'hospital-a' may not call this")

    # Signed by the right CA, but nobody enrolled it: the roster decides, not the signature alone.
    unknown = pki.issue_client(ca, ca_key, request, "silo", "hospital-z", now)
    assert isinstance(answer(stage.secured(ca, key, unknown)), UnknownSilo)
    logged("hospital-z is not enrolled in this federation")
    second = pki.issue_client(ca, ca_key, request, "silo", "hospital-a", now)
    assert isinstance(answer(stage.secured(ca, key, second)), Revoked)
    logged("hospital-a has enrolled anew since, or renewed its certificate")

    silos = {silo.name: silo.samples for silo in stage.opened().roster.silos()}
    assert silos == {"hospital-a": 0}
    assert all(not silo["reachable"] for silo in stage.status()["silos"])


def test_an_invitation_gives_its_own_name_once(stage: Stage) -> None:
    stage.found().serve()
    ca = (stage.home / "ca.pem").read_bytes()
    token = stage.invite("hospital-a")
    invited = Invitation.parse(token)
    certificate, bootstrap = pki.invitation_certificate(invited.name, invited.secret)
    enrollment = enrollment_pb2_grpc.EnrollmentStub(stage.secured(ca, bootstrap, certificate))

    def refusal(name: str) -> FedDiffError:
        request = enrollment_pb2.EnrollRequest(name=name, request=pki.request_certificate(pki.make_key(), name))
        with pytest.raises(grpc.RpcError) as caught:
            enrollment.Enroll(request, timeout=10)
        return wire.raised(caught.value)

    assert "the invitation is for 'hospital-a', not for 'hospital-b'" in str(refusal("hospital-b"))
    assert enroll.join(invited, stage.folder / "first", stage.address) == "hospital-a"
    assert enroll.join(invited, stage.folder / "first", stage.address) == "hospital-a", "its answer may have been lost"
    assert isinstance(refusal("hospital-a"), InvitationSpent)

    # A silo's certificate enrols nobody.
    silo = enrollment_pb2_grpc.EnrollmentStub(stage.channel(stage.folder / "first"))
    with pytest.raises(grpc.RpcError) as caught:
        silo.Enroll(enrollment_pb2.EnrollRequest(name="hospital-a"), timeout=10)
    assert isinstance(wire.raised(caught.value), IdentityError)


def test_tokens_that_do_not_work_say_so_in_one_line(stage: Stage) -> None:
    server = stage.found().serve()

    def join(token: str, folder: str) -> str:
        done = stage.call(SILO, "join", token, "--state", str(stage.folder / folder))
        assert done.code == REFUSED_IDENTITY, done.err
        assert done.err.count("\n") == 1, done.err
        assert not (stage.folder / folder / "identity.json").exists()
        return str(done.err)

    spent = stage.invite("hospital-a")
    enroll.join(Invitation.parse(spent), stage.folder / "hospital-a", stage.address)
    assert "hospital-a has enrolled with it already" in join(spent, "thief")
    assert "Enroll refused" in server.told()

    expired = stage.invite("hospital-b", expires="1m")
    with sqlite3.connect(stage.home / "federation.db") as database:
        database.execute("UPDATE invitations SET expires_at = ? WHERE name = 'hospital-b'", (time.time() - 1,))
    database.close()
    assert "the invitation of hospital-b has expired" in join(expired, "late")

    good = stage.invite("hospital-c")
    middle = len(good) // 2
    damaged = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    assert "invitation" in join(damaged, "damaged")
    assert "invitation" in join(good[:-3], "cut")

    replaced = stage.invite("hospital-d")
    stage.invite("hospital-d")
    join(replaced, "replaced")


def test_a_silo_sends_and_fetches_as_itself_only(stage: Stage) -> None:
    stage.found().serve()
    first, second = stage.hospital("hospital-a"), stage.hospital("hospital-b")
    for silo in (first, second):
        silo.gate[1] = threading.Event()
        silo.start()
    stage.until("both train", lambda: first.training(1) and second.training(1))
    stub = stage.stub(first.state)
    task = stub.GetTask(pb.TaskRequest(held=[pb.Held(segment=name, version=0) for name in stage.layout.names]))
    theirs = [transfer_pb2.Manifest.FromString(each.SerializeToString()) for each in task.round.up]
    for each in theirs:
        each.transfer = each.transfer.replace("hospital-a", "hospital-b")
    offer = transfer_pb2.Offer(round=1, manifests=theirs)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Submit(iter([transfer_pb2.SubmitRequest(offer=offer)]), timeout=10))
    assert "hospital-a offers other transfers than its task names" in str(wire.raised(caught.value))

    # Another silo's update is no published transfer, whatever it is called.
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Fetch(transfer_pb2.FetchRequest(offer=offer), timeout=10))
    assert "which its task does not name" in str(wire.raised(caught.value))
    for silo in (first, second):
        silo.gate[1].set()


def test_an_evicted_silo_is_out_at_once_and_may_be_invited_again(stage: Stage) -> None:
    server = stage.found(rounds=2, more="quorum = 1").serve()
    stays = stage.hospital("hospital-a")
    stays.gate[1] = threading.Event()
    stays.start()
    goes = stage.noise("hospital-b", seconds=0.5)
    stage.until("both train", lambda: stays.training(1) and stage.silo_status("hospital-b").get("training"))
    printed = stage.operate("revoke", "hospital-b", "--reason", "its scanner is broken")
    assert "its scanner is broken" in printed
    assert goes.wait() == REFUSED_IDENTITY
    assert goes.told().count("noise: This certificate is revoked: ") == 1
    assert "refused to" in server.told()
    assert "hospital-b was evicted" in server.told()
    again = stage.noise("hospital-b")  # its certificate has not expired
    assert again.wait() == REFUSED_IDENTITY

    enroll.join(Invitation.parse(stage.invite("hospital-b")), stage.folder / "hospital-b", stage.address)
    back = stage.noise("hospital-b")
    stage.until("it is back", lambda: stage.silo_status("hospital-b").get("reachable"))
    stays.gate[1].set()
    assert [server.wait(), back.wait()] == [0, 0]
    assert stage.opened().journal.rounds()[1].silos == ("hospital-a", "hospital-b")
