"""The ``Enrollment`` service: a certificate for a request, against a one-time invitation.

The caller's TLS certificate is the invitation's own (core/pki.py), so the secret never travels and nobody without an
invitation gets past the handshake.
"""

from __future__ import annotations

import hashlib
import logging
import time
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from feddiff.core import pki, wire
from feddiff.core.errors import IdentityError
from feddiff.core.identity import Identity
from feddiff.federator.roster import Roster
from feddiff.v1 import enrollment_pb2 as pb
from feddiff.v1 import enrollment_pb2_grpc

log = logging.getLogger("feddiff.federator")


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServicer):
    """Serves holders of invitations."""

    def __init__(self, roster: Roster, federation: str, authority: bytes, authority_key: bytes) -> None:
        self._roster, self._federation = roster, federation
        self._authority, self._authority_key = authority, authority_key

    def Enroll(self, request: pb.EnrollRequest, context: grpc.ServicerContext) -> pb.EnrollReply:  # noqa: N802
        invited = wire.caller(context, "invitation")
        if request.name != invited.name:
            raise IdentityError(f"the invitation is for {invited.name!r}, not for {request.name!r:.80}")
        now = datetime.now(UTC)
        certificate = pki.issue_client(self._authority, self._authority_key, request.request, "silo", invited.name, now)
        identity = Identity.from_certificate(certificate)
        key = x509.load_pem_x509_certificate(certificate).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._roster.enroll(
            invited.name, invited.fingerprint, hashlib.sha256(spki).hexdigest(), identity.serial, time.time()
        )
        log.info("%s enrolled; its certificate is good until %s", invited.name, f"{identity.not_after:%Y-%m-%d}")
        return pb.EnrollReply(certificate=certificate, authority=self._authority, federation=self._federation)
