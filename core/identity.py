"""Who is at the other end: names, the identity inside a certificate, and the invitation that leads to one.

A federator invites a silo by name; the invitation, one line of text, goes to the hospital by telephone or
mail. With it the silo finds the federator, proves that it was invited and recognises the federation's
authority (core/pki.py makes the certificates). From then on a silo is whatever its certificate says: every
call is checked against the ``Identity`` that is read here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from typing import Literal, Self, cast, get_args

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from feddiff.core.errors import ConfigError, IdentityError

Role = Literal["silo", "federator", "operator", "invitation"]

SILO_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
DIGEST_BYTES = 32
SECRET_BYTES = 32
MAX_PEM_BYTES = 64 << 10
MAX_TOKEN_CHARACTERS = 4096
TOKEN_PREFIX = "fdi1_"

# Letters, digits and hyphens (RFC 1123), and the underscore that container networks use. A last label of
# digits alone would be a misspelt IPv4 address.
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?!(?:.*\.)?[0-9]+\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
_ROLE_URI = re.compile(rf"feddiff:({'|'.join(get_args(Role))}):(.*)", re.DOTALL)
_NOT_X509 = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def check_name(name: str) -> str:
    """The name of a silo or federation, unchanged. Raises ConfigError, saying the rule."""
    if not re.fullmatch(SILO_NAME, name):
        raise ConfigError(
            f"{name[:64]!r} is not a name: 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    return name


def silo_host(name: str) -> str:
    """The DNS name in a silo's certificate, by which other silos know it, wherever it listens.

    A digest, for a silo's name may hold what a DNS name may not.
    """
    return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.silo.feddiff"


def check_host(host: str) -> str:
    """A DNS name or IP address in its canonical spelling (RFC 1123, RFC 5952). Raises ConfigError."""
    if "%" not in host:  # an IPv6 zone means something on one machine only
        try:
            return str(ip_address(host))
        except ValueError:
            pass
    if not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"{host[:80]!r} is neither a host name nor an IP address")
    return host.lower()


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[IPv6]:port``; the host has no brackets. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    try:
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if ":" not in host:
                raise ConfigError("only IPv6 addresses stand in brackets")
        elif ":" in host:
            raise ConfigError("IPv6 addresses stand in brackets")
        if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ConfigError("ports go from 1 to 65535")
        return check_host(host), int(port)
    except ConfigError as error:
        raise ConfigError(f"{text[:80]!r}: host:port expected, e.g. federator.example.org:50051 ({error})") from None


def load_certificate(pem: bytes) -> x509.Certificate:
    """The one certificate in a PEM text of at most 64 KiB.

    A second certificate is refused, not ignored: whoever later trusts the whole text would trust that
    one too. Raises IdentityError.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise IdentityError(f"a certificate of {len(pem)} bytes; at most {MAX_PEM_BYTES} are read")
    if (found := pem.count(b"-----BEGIN ")) != 1:
        raise IdentityError(f"one PEM certificate expected, {found} PEM blocks found")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        # Fields are decoded when first read: what is needed later is read here, so that it cannot fail there.
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
        _ = (
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.signature_hash_algorithm,
        )
    except _NOT_X509:
        raise IdentityError("this is not an X.509 certificate in PEM form") from None
    return certificate


@dataclass(frozen=True)
class Identity:
    """Who a certificate says its holder is. It proves nothing by itself: TLS checks signature and key."""

    role: Role
    name: str
    serial: int
    not_before: datetime
    """UTC, as is not_after."""
    not_after: datetime
    fingerprint: str
    """SHA-256 of the certificate's DER, hexadecimal."""

    @classmethod
    def from_certificate(cls, pem: bytes) -> Self:
        """Read the one SAN URI ``feddiff:<role>:<name>`` of a certificate (RFC 5280 4.2.1.6).

        Raises IdentityError if there is none, more than one, or its name or role breaks the rules.
        """
        certificate = load_certificate(pem)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        own = [uri for uri in uris if uri.lower().startswith("feddiff:")]
        if len(own) != 1:
            raise IdentityError(f"the certificate names {len(own)} feddiff identities; exactly one is needed")
        match = _ROLE_URI.fullmatch(own[0])
        if match is None:
            raise IdentityError(f"the certificate's identity {own[0][:80]!r} is not feddiff:<role>:<name>")
        try:
            name = check_name(match[2])
        except ConfigError as error:
            raise IdentityError(f"the certificate's name: {error}") from None
        return cls(
            role=cast(Role, match[1]),
            name=name,
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


@dataclass(frozen=True)
class Invitation:
    """What a silo needs to enrol, once. Raises ConfigError for fields that cannot be."""

    name: str
    address: str
    """The federator's, host:port."""
    authority: bytes
    """SHA-256 of the DER of the federation's CA certificate, 32 bytes."""
    secret: bytes = field(repr=False)
    """32 random bytes, shared with the federator only."""

    def __post_init__(self) -> None:
        check_name(self.name)
        parse_address(self.address)
        if len(self.authority) != DIGEST_BYTES or len(self.secret) != SECRET_BYTES:
            raise ConfigError("an invitation has a 32-byte authority fingerprint and a 32-byte secret")

    def token(self) -> str:
        """``fdi1_`` and base64url (RFC 4648 5, unpadded) of the invitation.

        Inside: authority, secret, length of the name in one byte, name, address, CRC-32 of all that. The
        checksum is against damage on the way: it finds every single wrong character.
        """
        name = self.name.encode("ascii")
        body = self.authority + self.secret + bytes([len(name)]) + name + self.address.encode("ascii")
        packed = body + zlib.crc32(body).to_bytes(4, "big")
        return TOKEN_PREFIX + base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Self:
        """Read a token as it was pasted: spaces and line breaks do not count. Raises IdentityError."""
        damaged = IdentityError(f"the invitation is damaged: paste it whole, from {TOKEN_PREFIX} to its end")
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise damaged
        text = "".join(token.split())
        digits = text.removeprefix(TOKEN_PREFIX)
        try:
            packed = base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
            authority, secret = packed[:DIGEST_BYTES], packed[DIGEST_BYTES : DIGEST_BYTES + SECRET_BYTES]
            start = DIGEST_BYTES + SECRET_BYTES + 1
            end = start + packed[start - 1]
            name, address = packed[start:end].decode("ascii"), packed[end:-4].decode("ascii")
            invitation = cls(name, address, authority, secret)
        except (ValueError, IndexError, ConfigError):
            raise damaged from None
        # Encoding again compares the prefix and the checksum, and the bits that base64 decoding lets pass.
        if invitation.token() != text:
            raise damaged
        return invitation
