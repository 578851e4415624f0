"""``feddiff-silo doctor`` against real daemons: each thing is broken on purpose, and the sentence names it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from stage import SILO, TINY_UNET, Stage, images

from feddiff.core.finding import Finding, exit_code
from feddiff.core.identity import Invitation
from feddiff.silo import doctor, probe, rehearsal
from feddiff.silo.rehearsal import Rehearsal, Run
from feddiff.silo.source import Source
from feddiff.v1 import probe_pb2, probe_pb2_grpc

PATIENT = "Mueller_Erika_1951"


@pytest.fixture(autouse=True)
def untrained(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flat model of these tests is no network: what the child would tell is given instead."""

    def rehearse(rules: bytes, steps: bool) -> Rehearsal:
        layout = stage.layout if rules and hasattr(stage, "layout") else None
        return Rehearsal(1, (), False, layout, (Run(8, 100.0, 10**6),) if steps else ())

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)


def examined(patient: doctor.Patient) -> tuple[dict[str, Finding], int]:
    """The gravest finding of each subject, and the exit code."""
    found = list(doctor.examine(patient))
    order = ("ok", "warning", "problem")
    worst = sorted(found, key=lambda each: order.index(each.level))
    told = "".join(each.sentence + each.advice for each in found)
    assert PATIENT not in told
    return {each.subject: each for each in worst}, exit_code(found)


def problems(found: dict[str, Finding]) -> list[str]:
    return sorted(subject for subject, each in found.items() if each.level == "problem")


def pictures(stage: Stage) -> Source:
    images(stage.folder / "data", 6, seed=1)
    (stage.folder / "data" / f"{PATIENT}.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return Source(stage.folder / "data")


def test_before_enrolment_with_an_invitation_which_is_not_spent(stage: Stage) -> None:
    stage.found()
    server, token, state = stage.serve(), stage.invite("hospital-a"), stage.folder / "hospital-a"
    patient = doctor.Patient(state, source=pictures(stage), invitation=Invitation.parse(token))
    for _ in range(2):
        found, code = examined(patient)
        assert (problems(found), code) == ([], 0)
    assert "not enrolled yet; the invitation is for hospital-a" in found["enrolment"].sentence
    assert "as the invitation says" in found["authority"].sentence
    assert found["invitation"].level == "ok"
    assert found["clock"].level == "ok"
    assert found["rules"].sentence.startswith("trial: plan full, 3 rounds")
    assert found["images"].sentence == "1 file is left out: 1 x cannot be read (UnidentifiedImageError)"
    assert "about" not in found["time"].sentence
    assert not state.exists()
    stage.enrol("hospital-a")  # with another invitation: that of before is void
    elsewhere = doctor.Patient(stage.folder / "other", invitation=Invitation.parse(token))
    found, code = examined(elsewhere)
    assert (problems(found), code) == (["federator"], 77)
    assert server.terminate() == 0


def test_an_enrolled_silo_beside_its_daemon(stage: Stage) -> None:
    stage.found(rounds=1)
    stage.serve()
    state = stage.enrol("hospital-a")
    patient = doctor.Patient(state, source=pictures(stage))
    found, code = examined(patient)
    assert (problems(found), code) == ([], 0)
    assert found["line"].numbers["up_mbit_s"] > 0
    assert found["time"].sentence.startswith("about ")
    assert "as installed here" in found["authority"].sentence
    assert found["software"].level == "ok"
    moved = [row for row in stage.ledger() if row["silo"] == "hospital-a"]
    assert {row["segment"] for row in moved} == {""}
    measured = {row["direction"]: row["wire"] for row in moved}
    assert min(measured.values()) >= sum(probe.SIZES), "the probe's bytes are in the ledger, as overhead"
    assert max(measured.values()) < 1.1 * sum(probe.SIZES)

    silo = stage.noise("hospital-a")
    stage.until("it waits", lambda: stage.silo_status("hospital-a").get("reachable"))
    heads = state / "audit-heads"  # the daemon's own, and now and then a new one
    before = {path: path.stat().st_mtime_ns for path in state.iterdir() if path != heads}
    found, code = examined(doctor.Patient(state))
    assert (problems(found), code) == ([], 0)
    assert "feddiff-silo is at work in this folder" in found["daemon"].sentence
    assert "the training was not measured: the daemon is at work" in found["time"].sentence
    assert {path: path.stat().st_mtime_ns for path in state.iterdir() if path != heads} == before
    assert silo.code is None
    assert silo.terminate() == 0


def test_the_federators_echo_is_bounded_and_rationed(stage: Stage) -> None:
    stage.found()
    stage.serve()
    state = stage.enrol("hospital-a")
    stub = probe_pb2_grpc.ProbeStub(stage.channel(state))
    for request in (probe_pb2.EchoRequest(size=(1 << 20) + 1), probe_pb2.EchoRequest(payload=b"x" * ((1 << 20) + 1))):
        with pytest.raises(grpc.RpcError, match="an echo carries at most"):
            stub.Echo(request)
    assert len(stub.Echo(probe_pb2.EchoRequest(size=4711)).payload) == 4711
    for _ in range(15):
        stub.Echo(probe_pb2.EchoRequest(size=1 << 20))
    with pytest.raises(grpc.RpcError, match="has measured its line enough for now"):
        stub.Echo(probe_pb2.EchoRequest(size=1 << 20))
    found, code = examined(doctor.Patient(state))
    assert (found["line"].level, code) == ("warning", 0)
    assert "has measured its line enough for now" in found["line"].sentence


@contextmanager
def inspection(folder: Path, alpn: str = "h2") -> Iterator[tuple[int, str]]:
    """A firewall that opens TLS: (its port, the fingerprint of its CA)."""
    now, days = datetime.now(UTC), timedelta(days=30)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "St. Example Web Gateway CA")])
    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = []
    for subject, key, is_ca in ((authority, keys[0], True), (host, keys[1], False)):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(authority).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - days)
        builder = builder.not_valid_after(now + days).add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        made.append(builder.sign(keys[0], hashes.SHA256()))
    pem = serialization.Encoding.PEM
    (folder / "gateway.pem").write_bytes(made[1].public_bytes(pem) + made[0].public_bytes(pem))
    form = serialization.PrivateFormat.PKCS8
    (folder / "gateway.key").write_bytes(keys[1].private_bytes(pem, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "gateway.pem", folder / "gateway.key")
    context.set_alpn_protocols([alpn])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                    with context.wrap_socket(caller, server_side=True) as secured:
                        secured.recv(1)
                except (OSError, ValueError):
                    if server.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1]), made[0].fingerprint(hashes.SHA256()).hex()[:16]


def test_a_firewall_that_opens_tls_is_named(stage: Stage) -> None:
    stage.found()
    stage.serve()
    state = stage.enrol("hospital-a")
    ours = x509.load_pem_x509_certificate((stage.home / "ca.pem").read_bytes()).fingerprint(hashes.SHA256()).hex()[:16]
    invitation = Invitation.parse(stage.invite("hospital-b"))
    with inspection(stage.folder) as (port, gateway):
        for patient in (
            doctor.Patient(state, f"127.0.0.1:{port}"),
            doctor.Patient(stage.folder / "b", f"127.0.0.1:{port}", invitation=invitation),
        ):
            found, code = examined(patient)
            assert (problems(found), code) == (["authority"], 77)
            said = found["authority"]
            assert "somebody else answers in the federator's place" in said.sentence
            assert "CN=St. Example Web Gateway CA" in said.sentence
            assert f"CA fingerprint {gateway}" in said.sentence
            assert ours in said.sentence, "and whose was expected"
            assert f"have it let 127.0.0.1 port {port} through without inspection" in said.advice


def test_another_federation_answers(stage: Stage, tmp_path: Path) -> None:
    stage.found()
    other = Stage(tmp_path / "other").found()
    state = stage.folder / "hospital-a"
    try:
        stage.serve()
        other.serve()
        stage.enrol("hospital-a")
        found, code = examined(doctor.Patient(state, other.address))
        assert (problems(found), code) == (["authority"], 77)
        assert "the federator of another federation answers" in found["authority"].sentence
        strange = Invitation.parse(stage.invite("hospital-b"))
        found, code = examined(doctor.Patient(stage.folder / "b", other.address, invitation=strange))
        assert code == 77, "which does not know the invitation, and ends the connection"
    finally:
        other.close()


def test_dates_and_clocks(stage: Stage) -> None:
    stage.found()
    stage.serve()
    state = stage.enrol("hospital-a")

    def at(**ahead: float) -> doctor.Patient:
        return doctor.Patient(state, now=lambda: time.time() + timedelta(**ahead).total_seconds())

    found, code = examined(at(days=40))
    assert (problems(found), code) == (["TLS", "certificate"], 77)
    assert "the certificate of hospital-a ended on" in found["certificate"].sentence
    assert "the federator's certificate" in found["TLS"].sentence
    found, code = examined(at(hours=-2))
    assert (problems(found), code) == (["TLS", "certificate"], 77)
    assert found["certificate"].advice == "set the clock"
    found, code = examined(at(minutes=10))
    assert (problems(found), code) == ([], 0)
    assert "this clock is 10 minutes ahead of the federator's" in found["clock"].sentence
    found, code = examined(at(days=26))
    assert found["certificate"].level == "warning"
    assert (problems(found), code) == (["clock"], 77)


def test_an_evicted_silo_and_a_host_that_the_certificate_does_not_name(stage: Stage) -> None:
    stage.found()
    stage.serve()
    state = stage.enrol("hospital-a")
    found, code = examined(doctor.Patient(state, f"127.0.0.2:{stage.port}"))
    assert (problems(found), code) == (["host name"], 78)
    assert "is not for 127.0.0.2, but for" in found["host name"].sentence
    stage.operate("revoke", "hospital-a", "--reason", "it asked to leave")
    found, code = examined(doctor.Patient(state))
    assert (problems(found), code) == (["federator"], 77)
    assert "hospital-a was evicted: it asked to leave" in found["federator"].sentence


def test_another_protocol_and_other_rules(stage: Stage) -> None:
    stage.found()
    stage.serve().terminate()
    script = (
        "import feddiff.core.wire as wire; wire.PROTOCOL, wire.SOFTWARE = 9, 'feddiff 9.9.9';"
        "from feddiff.federator.cli import main; main()"
    )
    stage.run("later", "-c", script, "serve", "--config", str(stage.rules))
    log = stage.folder / "later.log"
    stage.until("it listens", lambda: f"port {stage.port}" in log.read_text())
    state = stage.enrol("hospital-a")
    (state / "rules.json").write_text(stage.opened().config.canonical().decode().replace('"seed":5', '"seed":6'))
    found, code = examined(doctor.Patient(state))
    assert problems(found) == ["rules", "software"]
    assert code == 78
    assert "the federator speaks protocol 9, this silo 2 (feddiff 9.9.9 at the federator" in found["software"].sentence
    assert found["software"].advice == "install feddiff 9.9.9 here"
    assert "the federator's rules have changed" in found["rules"].sentence


def test_classes_that_are_missing(stage: Stage) -> None:
    classes = '[data]\nclasses = ["covid", "healthy"]\n'
    stage.found(more=classes)
    stage.serve()
    state, data = stage.enrol("hospital-a"), stage.folder / "data"
    images(data / "covid", 3, seed=1)
    images(data / PATIENT, 2, seed=2)
    found, code = examined(doctor.Patient(state, source=Source(data)))
    assert (problems(found), code) == ([], 0)
    assert "there is no image of healthy; the federation's classes are covid, healthy" in found["classes"].sentence
    assert "2 files are left out: 2 x is in a folder that is not one of data.classes" in found["images"].sentence
    found, code = examined(doctor.Patient(state, source=Source(data / "none")))
    assert (problems(found), code) == (["images"], 66)


@pytest.mark.slow
def test_without_a_network(stage: Stage) -> None:
    stage.found()
    server = stage.serve()
    state = stage.enrol("hospital-a")
    assert server.terminate() == 0
    found, code = examined(doctor.Patient(state, source=pictures(stage)))
    assert (problems(found), code) == (["port"], 69)
    assert "connection refused" in found["port"].sentence
    assert found["images"].level == "warning"
    found, code = examined(doctor.Patient(stage.folder / "new"))
    assert (problems(found), code) == ([], 0)
    assert "is not enrolled" in found["enrolment"].sentence
    assert "nothing of the network was tried" in found["address"].sentence


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_with_a_real_model(stage: Stage) -> None:
    stage.found(unet=TINY_UNET, training="steps = 3")
    stage.serve()
    state = stage.enrol("hospital-a")
    images(stage.folder / "data", 4, seed=0)
    done = stage.call(SILO, "doctor", "--state", str(state), "--data", str(stage.folder / "data"), "--json")
    assert done.code == 0, done.out + done.err
    assert done.err == ""
    table = json.loads(done.out)
    found = {each["subject"]: each for each in table["findings"]}
    assert table["exit_code"] == 0
    assert found["images"]["numbers"]["images"] == 4
    if "was not made here in time" not in found["model"]["sentence"]:  # on a machine that is very busy
        assert "parameters in" in found["model"]["sentence"]
        assert "tried with" in found["time"]["sentence"] or "not measured" in found["time"]["sentence"]


@pytest.mark.slow
def test_the_command_before_anything_is_there(stage: Stage) -> None:
    nobody = stage.call(SILO, "doctor", "--federator", "127.0.0.1:1", "--state", str(stage.folder / "none"))
    assert nobody.code == 69
    assert "PROBLEM  port" in nobody.out
    assert nobody.out.endswith("ok\n")
