"""Enrolment by files, at the silo: a request goes out, a grant comes in; the private key is made here and stays.

request.key request.json    until the grant is installed
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from feddiff.core import grant, pki, trust
from feddiff.core.errors import ConfigError, IdentityError, StoreError
from feddiff.core.identity import check_name, parse_address
from feddiff.core.store import write_atomic
from feddiff.silo import credentials


def ask(folder: Path, name: str, address: str, authority: str, out: Path) -> str:
    """Write a request to become the silo of this name; returns what to do next. May be repeated: the key stays.

    ``authority``: the CA's fingerprint as its operator told it. Raises ConfigError, StoreError.
    """
    check_name(name)
    parse_address(address)
    expected = grant.fingerprint(authority)
    key_path = folder / "request.key"
    if not key_path.exists():
        write_atomic(key_path, pki.make_key(), mode=0o600)
    request = pki.request_certificate(key_path.read_bytes(), name)
    noted = {"name": name, "federator": address, "authority": expected}
    write_atomic(folder / "request.json", json.dumps(noted).encode())
    write_atomic(out, grant.Request(name, expected, request.decode()).to_bytes())
    return (
        f"{out} asks to be {name}: bring it to the federation's operator (it holds no secret; the key stays here)\n"
        f"and read them this, by telephone:  {grant.spoken(pki.key_digest(request))}\n"
        f"then, with the grant that comes back:  feddiff-silo install GRANT --federator {address}"
    )


def install(folder: Path, path: Path) -> str:
    """Become the silo that was asked for; returns what to do next. May be repeated.

    Raises IdentityError for a grant of another federation, name or request, CertificateExpired, ConfigError if nothing
    was asked for."""
    try:
        found = grant.Grant.parse(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    certificate, authority = found.certificate.encode(), found.authority.encode()
    if (folder / "identity.json").exists() and _same(folder, certificate):
        return f"{found.name} is enrolled with this grant already"
    try:
        noted = json.loads((folder / "request.json").read_text())
        key = (folder / "request.key").read_bytes()
        name, federator, expected = noted["name"], noted["federator"], noted["authority"]
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"{folder} has made no request; `feddiff-silo request NAME` does, or name the folder with --state"
        ) from None
    if not (seen := trust.fingerprint(authority).hex()).startswith(expected):
        raise IdentityError(
            f"the grant is of the CA {grant.spoken(seen)}, you were told {grant.spoken(expected)}: this is another"
            " federation's, or somebody changed it on the way"
        )
    identity = trust.check_signed_by(certificate, authority, datetime.now(UTC))
    if (identity.role, identity.name) != ("silo", name):
        raise IdentityError(f"the grant is for {identity.role} {identity.name}, the request was for silo {name}")
    try:
        trust.check_key_matches(certificate, key)
    except IdentityError:
        raise IdentityError("the grant is for another request than the one that was made here last") from None
    credentials.store(folder, credentials.Credentials(key, certificate, authority))
    written = {"name": name, "federator": federator, "federation": found.federation, "invitation": ""}
    write_atomic(folder / "identity.json", json.dumps(written).encode())
    for each in ("request.json", "request.key"):
        (folder / each).unlink(missing_ok=True)
    return (
        f"{name} is enrolled in {found.federation}, whose CA is {grant.spoken(seen)}\n"
        f"next:  feddiff-silo --data FOLDER --federator {federator}"
    )


def _same(folder: Path, certificate: bytes) -> bool:
    return trust.fingerprint(credentials.load(folder).certificate) == trust.fingerprint(certificate)
