"""Checking certificates: who signed, which CA, within which dates, whose key.

Used by a silo that enrols (core/pki.py says how) and by whoever starts up with certificates on disk. PEM goes in; what
cannot be parsed raises IdentityError.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from feddiff.core.errors import CertificateExpired, ConfigError, IdentityError
from feddiff.core.identity import MAX_PEM_BYTES, Identity, load_certificate, silo_host

MAX_AUTHORITIES = 4
_BEGIN = b"-----BEGIN CERTIFICATE-----"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def fingerprint(cert: bytes) -> bytes:
    """SHA-256 of the certificate's DER, 32 bytes."""
    return load_certificate(cert).fingerprint(hashes.SHA256())


def common_name(cert: bytes) -> str:
    """Of a certificate's subject; empty if it has none. A CA's is the federation's name."""
    found = load_certificate(cert).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def split(bundle: bytes) -> list[bytes]:
    """The certificates of a PEM text that may hold several, as the CAs of a federation are two while one is replaced.

    Raises IdentityError for none or more than ``MAX_AUTHORITIES``, and for what is no certificate of a CA.
    """
    parts = [_BEGIN + part for part in bundle.split(_BEGIN)[1:]]
    if not 1 <= len(parts) <= MAX_AUTHORITIES:
        raise IdentityError(f"1 to {MAX_AUTHORITIES} certificates of CAs expected, {len(parts)} found")
    for each in parts:
        load_authority(each)
    return parts


def check_signed_by_any(leaf: bytes, bundle: bytes, now: datetime) -> Identity:
    """``check_signed_by`` for the one of several CAs that signed. Raises IdentityError, CertificateExpired."""
    authorities = split(bundle)
    signers = [each for each in authorities if is_signed_by(leaf, each)]
    return check_signed_by(leaf, (signers or authorities)[0], now)


def check_authority(ca: bytes, expected_fingerprint: bytes) -> None:
    """Check that this is a CA, and the one the invitation speaks of. Raises IdentityError."""
    found = load_authority(ca).fingerprint(hashes.SHA256())
    if found != expected_fingerprint:
        raise IdentityError(
            f"the CA is {found.hex()[:16]}, the invitation speaks of {expected_fingerprint.hex()[:16]}: "
            "this is another federation's, or somebody stands in between; or its CA was replaced: ask for a new one"
        )


def check_signed_by(leaf: bytes, ca: bytes, now: datetime) -> Identity:
    """Check that the CA signed a certificate and that both are within their dates; whose it is comes back.

    The caller must still compare role and name: every silo has a certificate of the same CA. Raises
    IdentityError, CertificateExpired.
    """
    certificate, authority = load_certificate(leaf), load_authority(ca)
    if not _signed(certificate, authority):
        raise IdentityError(
            f"{_describe(certificate)}, issued by {certificate.issuer.rfc4514_string()[:120]!r}, "
            f"is not signed by {_describe(authority)}"
        )
    check_dates(certificate, now)
    check_dates(authority, now)
    return Identity.from_certificate(leaf)


def is_signed_by(leaf: bytes, ca: bytes) -> bool:
    """Whether the CA signed a certificate, whatever the dates. Raises IdentityError for what is neither."""
    return _signed(load_certificate(leaf), load_authority(ca))


def check_key_matches(cert: bytes, key: bytes) -> None:
    """Check that a private key belongs to a certificate. Raises IdentityError."""
    certificate = load_certificate(cert)
    if certificate.public_key() != load_key(key).public_key():
        raise IdentityError(f"the private key does not belong to {_describe(certificate)}")


def check_serves(cert: bytes, silo: str) -> None:
    """Check that other silos would know a silo by its certificate. Raises ConfigError."""
    certificate = load_certificate(cert)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        hosts = []
    if silo_host(silo) not in hosts:
        raise ConfigError(f"{_describe(certificate)} is from before silos could listen; enrol {silo} anew")


def load_authority(pem: bytes) -> x509.Certificate:
    """A certificate that may sign others. Raises IdentityError."""
    certificate = load_certificate(pem)
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise IdentityError(f"{_describe(certificate)} is not a CA's")
    return certificate


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Raises CertificateExpired outside the certificate's dates."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        minute = "%Y-%m-%d %H:%M"
        raise CertificateExpired(
            f"{_describe(certificate)} is valid from {begins:{minute}} to {ends:{minute}} UTC, "
            f"this clock says {now.astimezone(UTC):{minute}}: set the clock or get a new certificate"
        )


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _describe(certificate: x509.Certificate) -> str:
    digest = certificate.fingerprint(hashes.SHA256()).hex()[:16]
    return f"the certificate {digest} of {certificate.subject.rfc4514_string()[:120]!r}"


def load_key(pem: bytes) -> PrivateKey:
    """An unencrypted ECDSA or RSA key. Raises IdentityError."""
    if len(pem) > MAX_PEM_BYTES:
        raise IdentityError(f"a private key of {len(pem)} bytes; at most {MAX_PEM_BYTES} are read")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("this is not an unencrypted private key in PEM form") from None
    if not isinstance(key, PrivateKey):
        raise IdentityError("the private key must be of ECDSA or RSA")
    return key
