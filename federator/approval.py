"""Enrolment by files, at the federator: a grant for a silo's request, once its fingerprint was compared."""

from __future__ import annotations

import time
from pathlib import Path

from feddiff.core import config as rules
from feddiff.core import grant, pki, trust
from feddiff.core.errors import ConfigError, IdentityError, StoreError
from feddiff.core.identity import Identity
from feddiff.core.store import write_atomic
from feddiff.federator import notary, outbox, site
from feddiff.federator.authority import Authority, stage
from feddiff.federator.operators import Operators
from feddiff.federator.roster import Roster


def approve(config: Path, path: Path, heard: str | None, out: Path) -> str:
    """Write the grant of a request; returns what to do next. The same request gets the same grant again.

    ``heard``: the fingerprint as the silo's administrator reads it out. A silo that is in already keeps its present
    certificate until the new one is used. Raises ConfigError, IdentityError, StoreError.
    """
    rules.load(config)
    folder = config.resolve().parent
    host, port = site.address(folder)
    try:
        request = grant.Request.parse(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    key = pki.key_digest(request.request.encode())
    if heard is None:
        raise ConfigError(
            f"{path} asks to be {request.name}, with the fingerprint {grant.spoken(key)}. Have them read it to you, by"
            ' telephone, from their screen; if it is this one: --fingerprint "…"'
        )
    if not key.startswith(grant.fingerprint(heard)):
        raise IdentityError(f"the request's fingerprint is {grant.spoken(key)}, not the one you heard: ask for another")
    authority = Authority(folder)
    ca = authority.current
    if not (known := trust.fingerprint(ca.certificate).hex()).startswith(request.authority):
        raise IdentityError(
            f"{request.name} expects a CA with the fingerprint {grant.spoken(request.authority)}; this federation's is"
            f" {grant.spoken(known)}: tell them, and have them ask anew"
        )
    with notary.attended(folder) as database:
        if any(each.name == request.name for each in Operators(database).all()):
            raise ConfigError(f"{request.name} is an operator's name; a silo needs another")
        certificate = _certificate(Roster(database), authority, request, key)
    federation = trust.common_name(ca.certificate)
    made = grant.Grant(request.name, federation, certificate.decode(), ca.certificate.decode())
    write_atomic(out, made.to_bytes())
    ends = Identity.from_certificate(certificate).not_after
    return (
        f"{out} makes {request.name} a silo of {federation}; it holds no secret, and is good until {ends:%Y-%m-%d}\n"
        f"next, there:  feddiff-silo install {out.name} --federator {site.joined(host, port)}\n"
        f"their screen must show the CA's fingerprint: {grant.spoken(known)}"
    )


def _certificate(roster: Roster, authority: Authority, request: grant.Request, key: str) -> bytes:
    """Issue it and enter it in the roster; or find what was issued for this request before."""
    name, ca = request.name, authority.current
    alone = stage(ca.certificate, ca.certificate)  # what is carried by hand vouches for one CA
    known = next((each for each in roster.silos(name) if each.evicted is None), None)
    before = roster.certificates.issued(name, key, alone)
    if before is not None and known is not None:
        return before
    issued = authority.issue(request.request.encode(), name, ca)
    with roster.together() as change:
        outbox.note(change, "order", by=outbox.console(), what="approve", silo=name)
        if known is None:
            roster.admit(name, Identity.from_certificate(issued).serial, time.time())
        roster.certificates.add(name, key, issued, alone, known.serial if known else None)
    return issued
