"""Becoming a silo: from an invitation to a certificate. Run once; the private key is made here and never leaves.

The server's certificate is fetched first and used as the only root, for the federation's CA is not known yet; the CA
that comes with the reply must have the fingerprint that the invitation carries and must have signed that very
server certificate. Somebody in between sees a certificate request, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import ssl
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc

from feddiff.core import notify, pki, trust, wire
from feddiff.core.errors import ConfigError, FederatorUnavailable, IdentityError, InvitationSpent
from feddiff.core.identity import Invitation, parse_address
from feddiff.core.store import write_atomic
from feddiff.silo import credentials
from feddiff.v1 import enrollment_pb2 as pb
from feddiff.v1 import enrollment_pb2_grpc

TIMEOUT_S = 10.0
CREDENTIAL = "join-token"
LONGEST_WAIT_S = 60.0
log = logging.getLogger("feddiff.silo")


def join(invitation: Invitation, folder: Path, address: str) -> str:
    """Enrol at ``address`` and keep key, certificate, CA and address in ``folder``; returns the silo's name.

    Raises InvitationSpent, IdentityError, ConfigError, FederatorUnavailable. May be repeated if it was interrupted.
    """
    key_path = folder / "key.pem"
    _check_ours(folder, invitation)
    if not key_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(key_path, pki.make_key(), mode=0o600)
    key = key_path.read_bytes()
    certificate, bootstrap_key = pki.invitation_certificate(invitation.name, invitation.secret)
    server = _server_certificate(address, certificate, bootstrap_key)
    bootstrap = grpc.ssl_channel_credentials(server, bootstrap_key, certificate)
    request = pb.EnrollRequest(name=invitation.name, request=pki.request_certificate(key, invitation.name))
    with grpc.secure_channel(address, bootstrap, wire.CLIENT_OPTIONS) as channel:
        try:
            reply = enrollment_pb2_grpc.EnrollmentStub(channel).Enroll(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise _explain(wire.raised(error), invitation, address) from None
    now = datetime.now(UTC)
    invited_by = trust.split(reply.authority)[0]
    trust.check_authority(invited_by, invitation.authority)
    # Every silo has a certificate of this CA; only the federator may be the one that we talked to.
    if (role := trust.check_signed_by(server, invited_by, now).role) != "federator":
        raise IdentityError(f"{address} shows the certificate of a {role}, not of the federator")
    identity = trust.check_signed_by_any(reply.certificate, reply.authority, now)
    if (identity.role, identity.name) != ("silo", invitation.name):
        raise IdentityError(f"{address} issued a certificate for {identity.role} {identity.name}")
    trust.check_key_matches(reply.certificate, key)
    credentials.store(folder, credentials.Credentials(key, reply.certificate, reply.authority))
    written = {
        "name": identity.name,
        "federator": address,
        "federation": reply.federation,
        "invitation": spent(invitation),
    }
    write_atomic(folder / "identity.json", json.dumps(written).encode())
    return identity.name


def handed_over() -> str | None:
    """The token that systemd hands over (``LoadCredential=join-token:FILE``), if there is one. Raises ConfigError."""
    if not (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
        return None
    try:
        return (Path(folder) / CREDENTIAL).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the credential {CREDENTIAL} cannot be read: {error}") from None


def _check_ours(folder: Path, invitation: Invitation) -> None:
    """Raises ConfigError if the folder is a silo's of another federation."""
    known = folder / "authority.pem"
    if known.exists() and invitation.authority not in map(trust.fingerprint, trust.split(known.read_bytes())):
        raise ConfigError(
            f"{folder} belongs to a silo of another federation; give another folder with --state (or, if the federation"
            f" says that it has replaced its CA while this silo was away, delete {known.name} there)"
        )


def spent(invitation: Invitation) -> str:
    """What a state folder remembers of the invitation that it was enrolled with."""
    return hashlib.sha256(invitation.token().encode()).hexdigest()


def join_patiently(invitation: Invitation, folder: Path, address: str, stopping: threading.Event) -> None:
    """``join``, waiting for a federator that is not up yet as long as it takes, or until told to stop."""
    pause = 1.0
    while not stopping.is_set():
        try:
            join(invitation, folder, address)
            return
        except FederatorUnavailable as error:
            log.warning("%s; next try in %.0f s", error, pause)
            notify.ready(f"not enrolled yet: {error}")
            notify.alive()
            stopping.wait(pause)
            pause = min(2 * pause, LONGEST_WAIT_S)


def _explain(error: Exception, invitation: Invitation, address: str) -> Exception:
    if isinstance(error, FederatorUnavailable):
        text = str(error)
        if "Socket closed" in text or "handshake" in text.lower():
            return InvitationSpent(
                f"{address} refused the invitation of {invitation.name} (or its name is not in its"
                f" certificate); ask the federation for a new one ({text[:200]})"
            )
    return error


def _server_certificate(address: str, certificate: bytes, key: bytes) -> bytes:
    host, port = parse_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as pair:  # mode 0600; the ssl module takes a client certificate from a file only
        pair.write(key + certificate)
        pair.flush()
        context.load_cert_chain(pair.name)
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            found = secured.getpeercert(binary_form=True)
    except socket.gaierror as error:
        raise ConfigError(f"{address}: no host of that name is known ({error.strerror}); check the address") from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise FederatorUnavailable(f"{address}: {why.lower()}; check the address and that the port is open") from None
    return ssl.DER_cert_to_PEM_cert(found or b"").encode()
