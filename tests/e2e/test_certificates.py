"""Certificates that change while the federation goes on: renewed, replaced with their CA, revoked; kills meanwhile."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import grpc
from noise import Noise
from stage import Hospital, Process, Stage

from feddiff.core import trust, wire
from feddiff.core.errors import CertificateExpired, FedDiffError, Revoked
from feddiff.core.identity import Identity
from feddiff.federator import custody
from feddiff.federator.authority import Authority
from feddiff.silo import credentials
from feddiff.silo.learner import Learned, Lesson, Told
from feddiff.v1 import federation_pb2 as pb
from feddiff.v1 import federation_pb2_grpc

A, B = "hospital-a", "hospital-b"
KILLED = """\
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from feddiff.silo import credentials
write, left = credentials.write_atomic, [int(sys.argv[2])]
def counted(*arguments, **more):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments, **more)
credentials.write_atomic = counted
import noise
sys.argv[1:] = sys.argv[3:]
sys.exit(noise.main())
"""


class Steady(Noise):
    """Trains until it is let go, and says again and again how far it is, as real training does."""

    def __init__(self, silo: Hospital, layout_digest: str) -> None:
        super().__init__(silo.samples, layout_digest)
        self.go, self._silo = threading.Event(), silo

    def learn(self, lesson: Lesson, told: Told) -> Learned | None:
        step = 1
        while not self.go.wait(0.2):
            step += 1
            if not told(step, 1_000_000, 2.0, 1.0):
                return None
        return super().learn(lesson, told)


def steady(stage: Stage, name: str) -> Steady:
    silo = stage.hospital(name)
    silo.learner = learner = Steady(silo, stage.layout.digest)
    silo.start()
    return learner


def serial(state: Path) -> int:
    return Identity.from_certificate(credentials.load(state).certificate).serial


def answer(stub: federation_pb2_grpc.FederationStub) -> FedDiffError | None:
    try:
        stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=1), timeout=20)
    except grpc.RpcError as error:
        return wire.raised(error)
    return None


def test_certificates_are_renewed_inside_a_round(stage: Stage) -> None:
    server = stage.found(rounds=1, lifetime="36s").serve()
    training, waiting = steady(stage, A), stage.hospital(B).start()
    states = [stage.folder / A, stage.folder / B]
    stage.until("one trains, one is done", lambda: stage.silo_status(B).get("committed"))
    first, served = [serial(state) for state in states], (stage.home / "server.pem").read_bytes()
    old = stage.stub(states[1])

    def renewed() -> bool:
        fresh = [serial(state) for state in states]
        return (
            all(new != was for new, was in zip(fresh, first, strict=True))
            and served != (stage.home / "server.pem").read_bytes()
        )

    stage.until("both silos and the server have renewed", renewed)
    stage.until("the new one was used", lambda: isinstance(answer(old), Revoked | CertificateExpired))
    days = [stage.silo_status(name)["certificate_days"] for name in (A, B)]
    assert all(0 < each * 86400 <= 36 for each in (*days, stage.status()["server_days"]))
    training.go.set()
    assert server.wait() == 0
    stage.until("both hear that it is over", lambda: waiting.finished and stage.hospitals[A].finished)
    assert stage.opened().journal.rounds()[0].silos == (A, B)
    assert "is averaged WITHOUT" not in server.told()
    assert "Traceback" not in server.told()


def test_the_ca_is_replaced_inside_a_round(stage: Stage) -> None:
    server = stage.found(rounds=1).serve()
    silos = [steady(stage, name) for name in (A, B)]
    stage.until("both train", lambda: all(stage.silo_status(name).get("training") for name in (A, B)))
    old = Authority(stage.home).current.certificate
    printed = stage.operate("rotate-ca")
    assert f"waiting for {A}, {B} to renew" in printed
    stage.until("all have renewed twice", lambda: not stage.status()["rotation"])
    new = Authority(stage.home).bundle
    assert stage.status()["authority"] == trust.fingerprint(new).hex() != trust.fingerprint(old).hex()

    def know(folder: Path) -> bool:
        mine = credentials.load(folder)
        assert trust.is_signed_by(mine.certificate, new)
        return mine.authorities == new

    stage.until("they trust the new one alone", lambda: all(know(stage.folder / name) for name in (A, B)))
    stage.enrol("hospital-c")
    for each in silos:
        each.go.set()
    assert server.wait() == 0
    stage.until("both hear that it is over", lambda: all(stage.hospitals[name].finished for name in (A, B)))
    assert stage.opened().journal.rounds()[0].silos == (A, B)
    assert "refused" not in server.told()
    assert "Traceback" not in server.told()


def test_a_silo_that_is_killed_while_it_renews_comes_back(stage: Stage) -> None:
    stage.found(rounds=1, silos=2).serve()
    state = stage.enrol(A)
    script = stage.folder / "killed.py"
    script.write_text(KILLED)

    def lives(process: Process) -> int:
        return process.told().count("is in trial with")

    stage.operate("rotate-ca")  # which has every silo renew twice
    for writes in (0, 2):
        before = serial(state)
        options = (str(state), stage.address, "--samples", "1", "--digest", stage.layout.digest)
        killed = stage.run(A, str(script), str(Path(__file__).parent), str(writes), *options)
        stage.until("it is killed", lambda: killed.code == -signal.SIGKILL)  # noqa: B023
        assert (serial(state) == before) == (writes == 0)
        was = lives(killed)
        again = stage.noise(A)
        stage.until("it is back", lambda: lives(again) > was)  # noqa: B023
        stage.until("it has renewed", lambda: serial(state) != before)  # noqa: B023
        stage.until("nothing is left over", lambda: not (state / credentials.PENDING).exists())
        assert again.terminate() == 0
    assert trust.is_signed_by(credentials.load(state).certificate, Authority(stage.home).signer.certificate)


def test_revoking_works_without_a_federator_too(stage: Stage) -> None:
    server = stage.found().serve()
    state = stage.enrol(A)
    token = stage.operate("operator", "anna").strip()
    assert token.startswith("fdo1_")
    assert server.terminate() == 0
    assert "no federator is running" in stage.operate("revoke", A, "--reason", "its laptop is lost")
    assert custody.revoke(stage.rules, "anna", "") == "the token of anna no longer holds"
    stage.invite(B)
    assert custody.revoke(stage.rules, B, "") == f"the invitation of {B} no longer holds"
    stage.serve()
    found = answer(stage.stub(state))
    assert isinstance(found, Revoked)
    assert "its laptop is lost" in str(found)
    assert not stage.silo_status(A)["enrolled"]


def test_many_handshakes_while_the_configuration_changes(stage: Stage) -> None:
    """gRPC frees a configuration that it replaces; the daemon must outlive that."""
    server = stage.found().serve()
    state = stage.enrol(A)
    over = threading.Event()
    failed: list[FedDiffError] = []

    def shake() -> None:
        while not over.is_set():
            mine = credentials.load(state)
            pair = grpc.ssl_channel_credentials(mine.authorities, mine.key, mine.certificate)
            with grpc.secure_channel(stage.address, pair, wire.CLIENT_OPTIONS) as channel:
                found = answer(federation_pb2_grpc.FederationStub(channel))
                if found is not None:
                    failed.append(found)

    threads = [threading.Thread(target=shake, daemon=True) for _ in range(4)]
    for each in threads:
        each.start()
    for number in range(8):
        stage.enrol(f"clinic-{number}")
    over.set()
    for each in threads:
        each.join(30)
    assert server.code is None, server.told()
    assert not failed
