"""The federation's certificates: one authority, one server certificate, one client certificate for each silo.

Every connection is mutual TLS, enrolment too. From an invitation's secret both ends derive the same key and
the same self-signed *invitation certificate*; the federator trusts it until it is spent: the secret never
travels.

    federator                                      silo
    create_authority, issue_federator
    invitation_certificate ◄── secret, by mail ──► invitation_certificate        (identical bytes)
    trusts it for one enrolment ◄═════ mTLS ══════ request_certificate
    issue_client ════════════════════════════════► check_authority, check_signed_by, check_key_matches

Certificates and keys go in and out as PEM; keys are ECDSA P-256, signatures SHA-256 (RFC 5280, RFC 5480). All
times are timezone-aware. What cannot be parsed raises IdentityError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from feddiff.core.errors import ConfigError, IdentityError
from feddiff.core.identity import (
    SECRET_BYTES,
    Role,
    check_host,
    check_name,
    load_certificate,
    silo_host,
)
from feddiff.core.trust import PrivateKey, check_dates, check_key_matches, common_name, load_authority, load_key

MAX_REQUEST_BYTES = 16 << 10
MAX_DAYS = 36_500
DAYS = 30
"""How long certificates of silos and of the server are good; they renew themselves long before."""
RENEWED_AT = 2 / 3
"""Of a certificate's life."""
CLOCK_SKEW = timedelta(hours=1)
"""Certificates start this much early: a hospital's clock that is behind must not refuse a new one."""

_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def make_key() -> bytes:
    """A new private key, PKCS#8 PEM, not encrypted."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def create_authority(federation: str, now: datetime, days: float = 3650) -> tuple[bytes, bytes]:
    """A federation's CA: (certificate, key). It signs certificates, but no further CA. Raises ConfigError."""
    key = ec.generate_private_key(ec.SECP256R1())
    ends = now + _lifetime(days)
    return _sign("authority", check_name(federation), key.public_key(), now - CLOCK_SKEW, ends, key), _key_pem(key)


def issue_federator(
    ca: bytes, ca_key: bytes, key: bytes, names: Sequence[str], now: datetime, days: float = DAYS
) -> bytes:
    """The federator's server certificate, for the DNS names and IP addresses that silos reach it under.

    Raises ConfigError for a name that is no host, IdentityError if the CA cannot sign.
    """
    if not names:
        raise ConfigError("a federator needs at least one host name or IP address that silos reach it under")
    hosts = [_general_name(check_host(name)) for name in names]
    return _issue(ca, ca_key, "federator", check_name(common_name(ca)), load_key(key).public_key(), now, days, hosts)


def request_certificate(key: bytes, name: str) -> bytes:
    """A PKCS#10 request (RFC 2986), PEM. The name is for the reader only: the invitation decides it."""
    subject = _distinguished_name("silo", check_name(name))
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(load_key(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue_client(
    ca: bytes,
    ca_key: bytes,
    csr: bytes,
    role: Literal["silo", "operator"],
    name: str,
    now: datetime,
    days: float = DAYS,
) -> bytes:
    """A client certificate for the key of a request. Nothing else of the request is looked at.

    Raises IdentityError for a request that is over 16 KiB, has a wrong signature, or a key other than ECDSA
    on P-256, P-384, P-521 or RSA of 2048 to 8192 bits; CertificateExpired if the CA is outside its dates.
    """
    hosts = [x509.DNSName(silo_host(check_name(name)))] if role == "silo" else []
    return _issue(ca, ca_key, role, check_name(name), _requested_key(csr), now, days, hosts)


def renewal_due(certificate: bytes) -> datetime:
    """When a certificate is to be renewed: at two thirds of the life that it was issued for. Raises IdentityError."""
    found = load_certificate(certificate)
    issued = found.not_valid_before_utc + CLOCK_SKEW
    return issued + RENEWED_AT * (found.not_valid_after_utc - issued)


def key_digest(csr: bytes) -> str:
    """SHA-256 of the public key of a request (its SubjectPublicKeyInfo, RFC 5280 4.1), hexadecimal.

    Raises IdentityError for a request that ``issue_client`` would not take.
    """
    spki = _requested_key(csr).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def requested_name(csr: bytes) -> str:
    """The name that whoever made a request gave in it; it proves nothing. Raises IdentityError, ConfigError."""
    _requested_key(csr)
    found = x509.load_pem_x509_csr(csr).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return check_name(str(found[0].value) if found else "")


def hosts(certificate: bytes) -> list[str]:
    """The DNS names and IP addresses in a server's certificate. Raises IdentityError."""
    try:
        found = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    names = found.get_values_for_type(x509.DNSName)
    return [*names, *(str(each) for each in found.get_values_for_type(x509.IPAddress))]


def invitation_certificate(name: str, secret: bytes) -> tuple[bytes, bytes]:
    """The (certificate, key) that an invitation's secret stands for: the same bytes at both ends, always.

    The key is HKDF-SHA-256 (RFC 5869) of the secret, reduced as in FIPS 186-5 A.2.1; the signature is
    deterministic ECDSA (RFC 6979). It is no CA, so being trusted it vouches for nothing but itself. Its dates
    say nothing: an invitation ends when the federator stops trusting it. Raises ConfigError.
    """
    check_name(name)
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"an invitation's secret has {SECRET_BYTES} bytes, not {len(secret)}")
    info = b"feddiff invitation " + name.encode("ascii")
    derived = HKDF(hashes.SHA256(), 64, salt=None, info=info).derive(secret)
    scalar = int.from_bytes(derived[:48], "big") % (ec.SECP256R1().group_order - 1) + 1
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    begins, ends = datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    serial = int.from_bytes(derived[48:], "big") + 1
    return _sign("invitation", name, key.public_key(), begins, ends, key, serial=serial), _key_pem(key)


def _issue(
    ca: bytes,
    ca_key: bytes,
    role: Role,
    name: str,
    public_key: _PublicKey,
    now: datetime,
    days: float,
    hosts: Sequence[x509.GeneralName] = (),
) -> bytes:
    authority = load_authority(ca)
    check_key_matches(ca, ca_key)
    check_dates(authority, now)
    ends = min(now + _lifetime(days), authority.not_valid_after_utc)
    begins, signer = now - CLOCK_SKEW, load_key(ca_key)
    return _sign(role, name, public_key, begins, ends, signer, issuer=authority.subject, hosts=hosts)


def _sign(
    kind: Role | Literal["authority"],
    name: str,
    public_key: _PublicKey,
    begins: datetime,
    ends: datetime,
    signer: PrivateKey,
    *,
    issuer: x509.Name | None = None,
    hosts: Sequence[x509.GeneralName] = (),
    serial: int | None = None,
) -> bytes:
    """One certificate (RFC 5280). No issuer: self-signed. A given serial: nothing about it is random."""
    subject, authority = _distinguished_name(kind, name), kind == "authority"
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(public_key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(not authority, *[False] * 4, *[authority] * 2, *[False] * 2), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        # Without it, of an old and a new CA of one name, both trusted, BoringSSL tries only the first.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        identity = x509.UniformResourceIdentifier(f"feddiff:{kind}:{name}")
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if kind == "federator" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.SubjectAlternativeName([*hosts, identity]), critical=False)
        # A silo may also serve other silos (docs/peer.md), under its own name only.
        purposes = [purpose, ExtendedKeyUsageOID.SERVER_AUTH] if kind == "silo" else [purpose]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    certificate = builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True if serial else None)
    return certificate.public_bytes(serialization.Encoding.PEM)


def _distinguished_name(kind: str, name: str) -> x509.Name:
    """With its kind, a silo called like the federation does not look like its own issuer."""
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"feddiff {kind}")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _requested_key(csr: bytes) -> _PublicKey:
    if len(csr) > MAX_REQUEST_BYTES:
        raise IdentityError(f"a certificate request of {len(csr)} bytes; at most {MAX_REQUEST_BYTES} are read")
    try:
        request = x509.load_pem_x509_csr(csr)
        key = request.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            strong = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
        else:
            strong = isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 8192
        # The strength comes first: checking a signature by an absurdly long key takes long.
        proven = strong and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise IdentityError("this is not a certificate request in PEM form") from None
    if not strong or not isinstance(key, _PublicKey):
        raise IdentityError("the request's key must be ECDSA on P-256, P-384, P-521 or RSA of 2048 to 8192 bits")
    if not proven:
        raise IdentityError("the request's signature is wrong: whoever made it does not hold the key")
    return key


def _lifetime(days: float) -> timedelta:
    if not 0 < days <= MAX_DAYS:
        raise ConfigError(f"a certificate lasts up to {MAX_DAYS} days, not {days}")
    return timedelta(days=days)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
