from __future__ import annotations

import base64
import zlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.errors import ConfigError, IdentityError
from feddiff.core.identity import (
    MAX_PEM_BYTES,
    MAX_TOKEN_CHARACTERS,
    Identity,
    Invitation,
    check_name,
    parse_address,
)

NOW = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
KEY = ec.derive_private_key(4711, ec.SECP256R1())
SECRET = bytes(range(32))
AUTHORITY = bytes(range(100, 132))

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
)
addresses = st.tuples(hosts, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}")
digests = st.binary(min_size=32, max_size=32)
invitations = st.builds(Invitation, name=names, address=addresses, authority=digests, secret=digests)


def certificate(*uris: str, dns: str | None = None, serial: int = 77) -> bytes:
    """A self-signed certificate with these SAN URIs."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=3))
    )
    san: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    san += [x509.DNSName(dns)] if dns else []
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return builder.sign(KEY, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(serialization.Encoding.PEM)


@given(names)
def test_a_name_within_the_rule_comes_back(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", ".a", "-a", "a b", "a/b", "../a", "a\n", "ä", "a" * 64, "a:b", "\u0661", "a\x00"]
)
def test_a_name_outside_the_rule_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 63 of a-z") as caught:
        check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("federator.example.org:50051", ("federator.example.org", 50051)),
        ("Federator.Example.ORG:1", ("federator.example.org", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:50051", ("::1", 50051)),
        ("[2001:DB8:0:0::1]:443", ("2001:db8::1", 443)),
        ("my_service:80", ("my_service", 80)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":1", "host:0", "host:65536", "host:+1", "host:1 ", " host:1", "host:\u0661"),
        *(
            "::1:50051",
            "[::1]",
            "[::1]50051",
            "[10.0.0.1]:1",
            "[host]:1",
            "[fe80::1%eth0]:1",
            "[fe80::1%\n]:1",
        ),
        *("10.0.0.256:1", "10.0.0:1", "a..b:1", "-a:1", "a/b:1", "https://host:1", "*:1", "h\nh:1"),
        *("\u212aiel:1", "a" * 64 + ":1", "a." * 127 + "a:1"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"host:port expected, e\.g\. ") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@given(invitations)
def test_a_token_carries_the_invitation(invitation: Invitation) -> None:
    assert Invitation.parse(invitation.token()) == invitation


def test_the_token_is_the_documented_form() -> None:
    body = AUTHORITY + SECRET + b"\x06silo-a" + b"fed.example:50051"
    packed = body + zlib.crc32(body).to_bytes(4, "big")
    expected = "fdi1_" + base64.urlsafe_b64encode(packed).decode().rstrip("=")
    assert Invitation("silo-a", "fed.example:50051", AUTHORITY, SECRET).token() == expected


@given(invitations, st.data())
def test_white_space_in_a_token_does_not_count(invitation: Invitation, data: st.DataObject) -> None:
    token = invitation.token()
    for _ in range(3):
        at = data.draw(st.integers(0, len(token)))
        token = token[:at] + data.draw(st.sampled_from([" ", "\n", "\r\n", "\t "])) + token[at:]
    assert Invitation.parse(token) == invitation


@given(invitations, st.data())
def test_one_wrong_character_is_found(invitation: Invitation, data: st.DataObject) -> None:
    token = invitation.token()
    at = data.draw(st.integers(0, len(token) - 1))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=.\u00e9 "
    wrong = data.draw(st.sampled_from(alphabet.replace(token[at], "")))
    with pytest.raises(IdentityError, match="paste it whole"):
        Invitation.parse(token[:at] + wrong + token[at + 1 :])


def test_every_bit_of_the_last_character_counts() -> None:
    """Base64 leaves up to four bits of the last character unused; decoders take any value there."""
    for length in range(1, 4):
        token = Invitation("a" * length, "host:1", AUTHORITY, SECRET).token()
        for wrong in set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") - {token[-1]}:
            with pytest.raises(IdentityError):
                Invitation.parse(token[:-1] + wrong)


@given(invitations, st.data())
def test_a_cut_token_is_found(invitation: Invitation, data: st.DataObject) -> None:
    token = invitation.token()
    start = data.draw(st.integers(0, len(token) - 1))
    end = data.draw(st.integers(start + 1, len(token)))
    with pytest.raises(IdentityError, match="paste it whole"):
        Invitation.parse(token[:start] + token[end:])


@given(st.one_of(st.text(), st.binary(max_size=400).map(lambda b: "fdi1_" + base64.b64encode(b).decode())))
def test_any_other_text_is_no_invitation(text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        Invitation.parse(text)
    assert "\n" not in str(caught.value)


def test_a_token_over_its_bound_is_not_looked_at() -> None:
    token = Invitation("silo-a", "fed.example:50051", AUTHORITY, SECRET).token()
    with pytest.raises(IdentityError):
        Invitation.parse(token + " " * MAX_TOKEN_CHARACTERS)


def test_a_token_with_a_right_checksum_and_a_wrong_name_is_refused() -> None:
    body = AUTHORITY + SECRET + b"\x06SILO-Afed.example:50051"
    packed = body + zlib.crc32(body).to_bytes(4, "big")
    with pytest.raises(IdentityError):
        Invitation.parse("fdi1_" + base64.urlsafe_b64encode(packed).decode().rstrip("="))


@pytest.mark.parametrize(
    "wrong", [{"name": "Silo"}, {"address": "host"}, {"authority": b"x" * 31}, {"secret": b"x" * 33}]
)
def test_an_invitation_that_cannot_be_is_not_made(wrong: dict[str, str | bytes]) -> None:
    right = {"name": "silo", "address": "host:1", "authority": AUTHORITY, "secret": SECRET}
    with pytest.raises(ConfigError):
        Invitation(**{**right, **wrong})  # type: ignore[arg-type]


def test_the_secret_is_not_shown() -> None:
    secret = b"correct horse battery staple 123"
    shown = repr(Invitation("silo-a", "fed.example:50051", AUTHORITY, secret))
    assert "silo-a" in shown
    assert "horse" not in shown
    assert secret.hex() not in shown


@pytest.mark.parametrize("role", ["silo", "federator", "operator", "invitation"])
def test_identity_is_read_from_the_certificate(role: str) -> None:
    pem = certificate("https://example.org/", f"feddiff:{role}:silo-a", dns="fed.example")
    parsed = x509.load_pem_x509_certificate(pem)
    assert Identity.from_certificate(pem) == Identity(
        role=role,  # type: ignore[arg-type]
        name="silo-a",
        serial=77,
        not_before=NOW,
        not_after=NOW + timedelta(days=3),
        fingerprint=parsed.fingerprint(hashes.SHA256()).hex(),
    )


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("https://example.org/",),
        ("feddiff:silo:a", "feddiff:silo:b"),
        ("feddiff:silo:a", "feddiff:silo:a"),
        ("feddiff:silo:a", "FEDDIFF:operator:a"),
        ("feddiff:silo:a", "feddiff:nonsense"),
        ("feddiff:root:a",),
        ("feddiff:silo",),
        ("feddiff:silo:",),
        ("feddiff:silo:A",),
        ("feddiff:silo:a:b",),
        ("feddiff:silo:a\n",),
        ("feddiff:silo:" + "a" * 64,),
        (" feddiff:silo:a",),
    ],
)
def test_a_certificate_without_exactly_one_proper_identity_is_refused(uris: tuple[str, ...]) -> None:
    with pytest.raises(IdentityError) as caught:
        Identity.from_certificate(certificate(*uris, dns="fed.example"))
    assert "\n" not in str(caught.value)


def test_two_certificates_in_one_text_are_refused() -> None:
    one, two = certificate("feddiff:silo:a"), certificate("feddiff:silo:b")
    trusted = two.replace(b"BEGIN CERTIFICATE", b"BEGIN TRUSTED CERTIFICATE")
    trusted = trusted.replace(b"END CERTIFICATE", b"END TRUSTED CERTIFICATE")
    for second in (one, two, trusted):
        with pytest.raises(IdentityError, match="2 PEM blocks"):
            Identity.from_certificate(one + second)


def test_a_text_over_its_bound_is_not_parsed() -> None:
    pem = certificate("feddiff:silo:a")
    assert Identity.from_certificate(pem + b"\n" * (MAX_PEM_BYTES - len(pem))).name == "a"
    with pytest.raises(IdentityError, match="at most"):
        Identity.from_certificate(pem + b"\n" * (MAX_PEM_BYTES - len(pem) + 1))


@given(st.data())
def test_a_damaged_certificate_is_an_identity_error_or_none_at_all(data: st.DataObject) -> None:
    der = bytearray(
        x509.load_pem_x509_certificate(certificate("feddiff:silo:a")).public_bytes(serialization.Encoding.DER)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    try:
        name = Identity.from_certificate(pem).name
    except IdentityError:
        return
    assert check_name(name) == name
