from __future__ import annotations

import hashlib
import math
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core import pki, trust
from feddiff.core.errors import CertificateExpired, ConfigError, IdentityError, StoreError
from feddiff.core.identity import Identity
from feddiff.core.store import write_atomic

NOW = datetime.now(UTC).replace(microsecond=0)  # the handshakes below look at the machine's own clock
DAY = timedelta(days=1)
SECRET = bytes(range(32))
PairOf = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def authority() -> PairOf:
    return pki.create_authority("lungs", NOW)


@pytest.fixture(scope="module")
def federator(authority: PairOf) -> PairOf:
    key = pki.make_key()
    return pki.issue_federator(*authority, key, ["localhost", "127.0.0.1", "::1"], NOW), key


@pytest.fixture(scope="module")
def silo(authority: PairOf) -> PairOf:
    return enrol(authority, "silo-a")


def enrol(authority: PairOf, name: str) -> PairOf:
    key = pki.make_key()
    return pki.issue_client(*authority, pki.request_certificate(key, name), "silo", name, NOW), key


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request_by(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "silo-a")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.PEM)


def forged(issuer: bytes, issuer_key: bytes, name: str, key: bytes, authority: bool = False) -> bytes:
    """A certificate such as an attacker makes with the keys he holds."""
    signer = serialization.load_pem_private_key(issuer_key, None)
    holder = serialization.load_pem_private_key(key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    assert isinstance(holder, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"feddiff:silo:{name}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(parsed(issuer).subject if authority else subject)
        .issuer_name(parsed(issuer).subject)
        .public_key(holder.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(san, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


# Real handshakes: what BoringSSL, inside grpc, makes of these certificates.


class Server:
    """A gRPC server on localhost that demands client certificates and names its caller."""

    def __init__(self, certificate: bytes, key: bytes, roots: list[bytes]) -> None:
        self.roots = roots

        def configuration() -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration([(key, certificate)], b"".join(self.roots))

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            peer = Identity.from_certificate(context.auth_context()["x509_pem_cert"][0])
            return f"{peer.role} {peer.name} {peer.serial}".encode()

        credentials = grpc.dynamic_ssl_server_credentials(configuration(), configuration, True)
        self.grpc = grpc.server(futures.ThreadPoolExecutor(2))
        handlers = {"Who": grpc.unary_unary_rpc_method_handler(answer)}
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
        self.port = self.grpc.add_secure_port("localhost:0", credentials)
        self.grpc.start()

    def call(
        self, root: bytes, client: PairOf | None, *, host: str = "localhost", expect: str | None = None
    ) -> str | None:
        """The caller as the server sees it; None if there was no connection."""
        chain, key = client or (None, None)
        credentials = grpc.ssl_channel_credentials(root, key, chain)
        options: list[tuple[str, object]] = [("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.ssl_target_name_override", expect)] if expect else []
        with grpc.secure_channel(f"{host}:{self.port}", credentials, options) as channel:
            try:
                answer: bytes = channel.unary_unary("/Test/Who")(b"", timeout=20)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return None
            return answer.decode()


Serve = Callable[[PairOf, list[bytes]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(pair: PairOf, roots: list[bytes]) -> Server:
        servers.append(Server(*pair, roots))
        return servers[-1]

    yield start
    for server in servers:
        server.grpc.stop(None).wait()


def seen(role: str, certificate: bytes) -> str:
    identity = Identity.from_certificate(certificate)
    return f"{role} {identity.name} {identity.serial}"


def test_only_certificates_of_the_federation_get_in(
    serve: Serve, authority: PairOf, federator: PairOf, silo: PairOf
) -> None:
    ca = authority[0]
    server = serve(federator, [ca])
    other = enrol(pki.create_authority("lungs", NOW), "silo-a")
    assert server.call(ca, silo) == seen("silo", silo[0])
    assert server.call(ca, silo, host="127.0.0.1") == seen("silo", silo[0])
    assert server.call(ca, other) is None
    assert server.call(ca, None) is None
    assert server.call(ca, federator) is None  # a server's certificate is not a client's


def test_another_key_strength_gets_in_too(serve: Serve, authority: PairOf, federator: PairOf) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = pki.issue_client(*authority, request_by(key), "operator", "ward-3", NOW)
    answer = serve(federator, [authority[0]]).call(authority[0], (certificate, key_pem(key)))
    assert answer == seen("operator", certificate)


def test_an_invitation_gets_in_only_while_it_is_trusted(
    serve: Serve, authority: PairOf, federator: PairOf, silo: PairOf
) -> None:
    ca = authority[0]
    invitation = pki.invitation_certificate("silo-b", SECRET)
    server = serve(federator, [ca])
    assert server.call(ca, invitation) is None
    server.roots = [ca, invitation[0]]
    assert server.call(ca, invitation) == seen("invitation", invitation[0])
    assert server.call(ca, silo) == seen("silo", silo[0])
    server.roots = [ca]
    assert server.call(ca, invitation) is None


def test_two_invitations_of_one_name_do_not_hide_each_other(serve: Serve, authority: PairOf, federator: PairOf) -> None:
    ca = authority[0]
    pairs = [pki.invitation_certificate("silo-b", bytes([digit]) * 32) for digit in range(3)]
    server = serve(federator, [ca, *(certificate for certificate, _ in pairs)])
    for pair in pairs:
        assert server.call(ca, pair) == seen("invitation", pair[0])


def test_an_old_and_a_new_authority_of_one_name_do_not_hide_each_other(serve: Serve) -> None:
    old, new = (pki.create_authority("lungs", NOW) for _ in range(2))
    key = pki.make_key()
    server = serve((pki.issue_federator(*new, key, ["localhost"], NOW), key), [old[0], new[0]])
    for authority in (old, new):
        client = enrol(authority, "silo-a")
        assert server.call(old[0] + new[0], client) == seen("silo", client[0])


def test_an_invitation_vouches_for_nobody_else(serve: Serve, authority: PairOf, federator: PairOf) -> None:
    ca, key = authority[0], pki.make_key()
    invitation, invitation_key = pki.invitation_certificate("silo-b", SECRET)
    other_dates = forged(invitation, invitation_key, "silo-b", invitation_key)
    leaf = forged(invitation, invitation_key, "silo-a", key)
    server = serve(federator, [ca, invitation])
    assert server.call(ca, (invitation, invitation_key)) is not None
    assert server.call(ca, (leaf, key)) is None
    assert server.call(ca, (leaf + invitation, key)) is None
    assert server.call(ca, (other_dates, invitation_key)) is None
    # It is CA:FALSE that keeps them out: were the trusted certificate a CA's, the same leaf would get in.
    server.roots = [ca, forged(invitation, invitation_key, "silo-b", invitation_key, authority=True)]
    assert server.call(ca, (leaf, key)) == seen("silo", leaf)


def test_a_silo_cannot_make_certificates(serve: Serve, authority: PairOf, federator: PairOf, silo: PairOf) -> None:
    key = pki.make_key()
    leaf = forged(*silo, "silo-z", key)
    assert serve(federator, [authority[0]]).call(authority[0], (leaf + silo[0], key)) is None


def test_the_server_is_known_by_its_name(serve: Serve, authority: PairOf, federator: PairOf, silo: PairOf) -> None:
    ca, key = authority[0], pki.make_key()
    elsewhere = serve((pki.issue_federator(*authority, key, ["fed.example.org"], NOW), key), [ca])
    assert elsewhere.call(ca, silo) is None
    assert elsewhere.call(ca, silo, expect="fed.example.org") is not None
    stranger = pki.create_authority("lungs", NOW)[0]
    assert serve(federator, [ca]).call(stranger, silo) is None


def test_a_silo_cannot_pose_as_the_federator(serve: Serve, authority: PairOf, silo: PairOf) -> None:
    ca = authority[0]
    assert serve(enrol(authority, "localhost"), [ca]).call(ca, silo) is None


def test_enrolment_from_nothing_but_an_invitation(serve: Serve, authority: PairOf, federator: PairOf) -> None:
    """What a silo does that does not have the CA yet, step by step."""
    ca = authority[0]
    invitation = pki.invitation_certificate("silo-b", SECRET)
    server = serve(federator, [ca, invitation[0]])
    leaf = ssl.get_server_certificate(("localhost", server.port)).encode()
    assert server.call(leaf, invitation) == seen("invitation", invitation[0])
    trust.check_authority(ca, hashlib.sha256(parsed(ca).public_bytes(serialization.Encoding.DER)).digest())
    peer = trust.check_signed_by(leaf, ca, NOW)
    assert (peer.role, peer.name) == ("federator", "lungs")


# What is in the certificates, judged by another verifier than grpc's.


def test_certificates_hold_in_a_strict_verifier(authority: PairOf, federator: PairOf, silo: PairOf) -> None:
    policy = PolicyBuilder().store(Store([parsed(authority[0])])).time(NOW)
    for host in (x509.DNSName("localhost"), x509.IPAddress(ip_address("::1"))):
        policy.build_server_verifier(host).verify(parsed(federator[0]), [])
    assert policy.build_client_verifier().verify(parsed(silo[0]), []).subjects
    for wrong in (federator[0], pki.invitation_certificate("silo-a", SECRET)[0]):
        with pytest.raises(VerificationError):
            policy.build_client_verifier().verify(parsed(wrong), [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("localhost")).verify(parsed(silo[0]), [])


def test_an_authority_signs_leaves_only(authority: PairOf) -> None:
    extensions = parsed(authority[0]).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_identities_and_dates(authority: PairOf, federator: PairOf, silo: PairOf) -> None:
    server, client = Identity.from_certificate(federator[0]), Identity.from_certificate(silo[0])
    assert (server.role, server.name, server.not_after) == ("federator", "lungs", NOW + 30 * DAY)
    assert (client.role, client.name, client.not_after) == ("silo", "silo-a", NOW + 30 * DAY)
    assert client.not_before == NOW - pki.CLOCK_SKEW
    assert bytes.fromhex(client.fingerprint) == trust.fingerprint(silo[0])


def test_a_certificate_does_not_outlive_its_authority() -> None:
    ca, ca_key = pki.create_authority("lungs", NOW, days=10)
    client = enrol((ca, ca_key), "silo-a")[0]
    assert Identity.from_certificate(client).not_after == NOW + 10 * DAY
    request = pki.request_certificate(pki.make_key(), "silo-a")
    with pytest.raises(CertificateExpired, match="this clock says"):
        pki.issue_client(ca, ca_key, request, "silo", "silo-a", NOW + 11 * DAY)


@pytest.mark.parametrize("days", [-1, 0, math.nan, pki.MAX_DAYS + 1])
def test_absurd_lifetimes_are_refused(authority: PairOf, days: float) -> None:
    with pytest.raises(ConfigError):
        pki.create_authority("lungs", NOW, days)
    with pytest.raises(ConfigError):
        pki.issue_federator(*authority, pki.make_key(), ["localhost"], NOW, days)


@pytest.mark.parametrize("names", [[], [""], ["a b"], ["*.example.org"], ["host:1"], ["[::1]"], ["ok", "a/b"]])
def test_a_federator_needs_proper_hosts(authority: PairOf, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        pki.issue_federator(*authority, pki.make_key(), names, NOW)


def test_names_outside_the_rule_get_no_certificate(authority: PairOf) -> None:
    key = pki.make_key()
    with pytest.raises(ConfigError):
        pki.create_authority("Lungs", NOW)
    with pytest.raises(ConfigError):
        pki.request_certificate(key, "Silo A")
    with pytest.raises(ConfigError):
        pki.issue_client(*authority, pki.request_certificate(key, "a"), "silo", "a:b", NOW)
    with pytest.raises(ConfigError):
        pki.invitation_certificate("a:b", SECRET)


# Requests.


def test_the_request_does_not_choose_the_name(authority: PairOf) -> None:
    key = pki.make_key()
    request = pki.request_certificate(key, "boss")
    certificate = pki.issue_client(*authority, request, "silo", "silo-a", NOW)
    trust.check_key_matches(certificate, key)
    assert trust.check_signed_by(certificate, authority[0], NOW).name == "silo-a"
    assert "boss" not in parsed(certificate).subject.rfc4514_string()


def test_a_strong_rsa_key_is_certified(authority: PairOf) -> None:
    key = rsa.generate_private_key(65537, 2048)
    certificate = pki.issue_client(*authority, request_by(key), "silo", "silo-a", NOW)
    trust.check_key_matches(certificate, key_pem(key))


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP224R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: rsa.generate_private_key(65537, 1024),
    ],
)
def test_other_keys_are_not_certified(
    authority: PairOf, make: Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]
) -> None:
    with pytest.raises(IdentityError, match="key must be ECDSA"):
        pki.issue_client(*authority, request_by(make()), "silo", "silo-a", NOW)


def test_a_request_for_a_key_that_is_not_held_is_refused(authority: PairOf) -> None:
    request = x509.load_pem_x509_csr(pki.request_certificate(pki.make_key(), "silo-a"))
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(pki.request_certificate(pki.make_key(), "silo-a"))
    point = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    mine, theirs = request.public_key().public_bytes(*point), other.public_key().public_bytes(*point)
    der = der.replace(mine, theirs)
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="does not hold the key"):
        pki.issue_client(*authority, pem, "silo", "silo-a", NOW)


def test_a_request_over_its_bound_is_not_parsed(authority: PairOf) -> None:
    request = pki.request_certificate(pki.make_key(), "silo-a")
    longest = request + b"\n" * (pki.MAX_REQUEST_BYTES - len(request))
    assert pki.issue_client(*authority, longest, "silo", "silo-a", NOW)
    with pytest.raises(IdentityError, match="at most"):
        pki.issue_client(*authority, longest + b"\n", "silo", "silo-a", NOW)


# Invitations.


def test_both_ends_derive_the_same_invitation_certificate() -> None:
    certificate, key = pki.invitation_certificate("silo-a", SECRET)
    assert pki.invitation_certificate("silo-a", SECRET) == (certificate, key)
    trust.check_key_matches(certificate, key)
    # The two ends may run different versions of the libraries: these bytes must never change.
    assert trust.fingerprint(certificate).hex() == "8069233b67ef40ccbd8eaf2e2a1ec5240bbd85cfc55d87e96367ac2fb1c0c9a2"


def test_an_invitation_certificate_depends_on_name_and_secret() -> None:
    pairs = [("silo-a", SECRET), ("silo-b", SECRET), ("silo-a", SECRET[::-1])]
    made = [parsed(pki.invitation_certificate(*pair)[0]) for pair in pairs]
    assert len({certificate.serial_number for certificate in made}) == 3
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert len({certificate.public_key().public_bytes(*form) for certificate in made}) == 3


def test_an_invitation_certificate_says_what_it_is() -> None:
    pem = pki.invitation_certificate("silo-a", SECRET)[0]
    identity = Identity.from_certificate(pem)
    assert (identity.role, identity.name) == ("invitation", "silo-a")
    assert identity.not_before == datetime(2020, 1, 1, tzinfo=UTC)
    assert identity.not_after == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert not parsed(pem).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert SECRET not in parsed(pem).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_secret_has_32_bytes(length: int) -> None:
    with pytest.raises(ConfigError):
        pki.invitation_certificate("silo-a", bytes(length))


# Checks.


def test_the_authority_is_the_one_expected(authority: PairOf, silo: PairOf) -> None:
    trust.check_authority(authority[0], trust.fingerprint(authority[0]))
    other = pki.create_authority("lungs", NOW)[0]
    with pytest.raises(IdentityError, match="somebody stands in between") as caught:
        trust.check_authority(other, trust.fingerprint(authority[0]))
    assert trust.fingerprint(other).hex()[:16] in str(caught.value)
    assert trust.fingerprint(authority[0]).hex()[:16] in str(caught.value)
    with pytest.raises(IdentityError, match="2 PEM blocks"):
        trust.check_authority(authority[0] + other, trust.fingerprint(authority[0]))
    with pytest.raises(IdentityError, match="not a CA's"):
        trust.check_authority(silo[0], trust.fingerprint(silo[0]))


def test_a_signature_is_checked(authority: PairOf, silo: PairOf) -> None:
    assert trust.check_signed_by(silo[0], authority[0], NOW) == Identity.from_certificate(silo[0])
    stranger = pki.create_authority("lungs", NOW)
    with pytest.raises(IdentityError, match="is not signed by") as caught:
        trust.check_signed_by(enrol(stranger, "silo-a")[0], authority[0], NOW)
    assert "feddiff authority" in str(caught.value)
    assert trust.fingerprint(authority[0]).hex()[:16] in str(caught.value)
    with pytest.raises(IdentityError, match="not a CA's"):
        trust.check_signed_by(forged(*silo, "silo-z", pki.make_key()), silo[0], NOW)


@pytest.mark.parametrize(
    ("offset", "valid"),
    [(-2 * DAY, False), (-pki.CLOCK_SKEW, True), (30 * DAY, True), (30 * DAY + timedelta(seconds=1), False)],
)
def test_dates_are_checked(authority: PairOf, silo: PairOf, offset: timedelta, valid: bool) -> None:
    if valid:
        assert trust.check_signed_by(silo[0], authority[0], NOW + offset).name == "silo-a"
    else:
        with pytest.raises(CertificateExpired, match=f"valid from {NOW - pki.CLOCK_SKEW:%Y-%m-%d %H:%M} to"):
            trust.check_signed_by(silo[0], authority[0], NOW + offset)


def test_a_key_belongs_to_its_certificate(silo: PairOf) -> None:
    trust.check_key_matches(*silo)
    with pytest.raises(IdentityError, match="does not belong"):
        trust.check_key_matches(silo[0], pki.make_key())


def test_an_authority_signs_with_its_own_key_only(authority: PairOf, silo: PairOf) -> None:
    request = pki.request_certificate(pki.make_key(), "a")
    with pytest.raises(IdentityError, match="does not belong"):
        pki.issue_client(authority[0], pki.make_key(), request, "silo", "a", NOW)
    with pytest.raises(IdentityError, match="not a CA's"):
        pki.issue_client(*silo, request, "silo", "a", NOW)


@pytest.mark.parametrize("junk", [b"", b"\xff" * 50, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_junk_is_an_identity_error(authority: PairOf, silo: PairOf, junk: bytes) -> None:
    ca, ca_key = authority
    request = pki.request_certificate(silo[1], "a")
    calls: list[Callable[[], object]] = [
        lambda: trust.fingerprint(junk),
        lambda: trust.check_authority(junk, bytes(32)),
        lambda: trust.check_signed_by(junk, ca, NOW),
        lambda: trust.check_signed_by(silo[0], junk, NOW),
        lambda: trust.check_key_matches(junk, silo[1]),
        lambda: trust.check_key_matches(silo[0], junk),
        lambda: pki.request_certificate(junk, "a"),
        lambda: pki.issue_client(ca, ca_key, junk, "silo", "a", NOW),
        lambda: pki.issue_client(ca, junk, request, "silo", "a", NOW),
        lambda: pki.issue_client(junk, ca_key, request, "silo", "a", NOW),
        lambda: pki.issue_federator(junk, ca_key, silo[1], ["localhost"], NOW),
        lambda: pki.issue_federator(ca, ca_key, junk, ["localhost"], NOW),
    ]
    for call in calls:
        with pytest.raises(IdentityError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_keys_that_cannot_be_used_are_refused(silo: PairOf) -> None:
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    for key in (locked, key_pem(ed25519.Ed25519PrivateKey.generate()), silo[1] + b"\n" * (64 << 10)):
        with pytest.raises(IdentityError):
            trust.check_key_matches(silo[0], key)


# Files.


@given(data=st.binary(max_size=300))
def test_a_private_file_is_the_owners_only(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "silo.key"
    write_atomic(path, data, mode=0o600)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_private_file_replaces_a_public_one(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "silo.key", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"old")
    elsewhere.chmod(0o644)
    path.symlink_to(elsewhere)
    write_atomic(path, b"new", mode=0o600)
    assert (elsewhere.read_bytes(), path.read_bytes()) == (b"old", b"new")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "silo.key"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "silo.key"
    write_atomic(path, b"old", mode=0o600)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError):
        write_atomic(tmp_path / "no" / "silo.key", b"", mode=0o600)
