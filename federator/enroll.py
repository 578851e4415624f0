"""The ``Enrollment`` service: a certificate for a request, against a one-time invitation or the present certificate.

Who enrols shows the invitation's own TLS certificate (core/pki.py), so the secret never travels and nobody without an
invitation gets past the handshake. Who renews shows what it has, which counts until the new one is used.
"""

from __future__ import annotations

import logging
import time

import grpc

from feddiff.core import pki, wire
from feddiff.core.errors import IdentityError
from feddiff.core.identity import Identity
from feddiff.federator.authority import Authority
from feddiff.federator.roster import Roster
from feddiff.v1 import enrollment_pb2 as pb
from feddiff.v1 import enrollment_pb2_grpc

log = logging.getLogger("feddiff.federator")


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServicer):
    """Serves holders of invitations, and silos that renew."""

    def __init__(self, roster: Roster, federation: str, authority: Authority) -> None:
        self._roster, self._federation, self._authority = roster, federation, authority

    def Enroll(self, request: pb.EnrollRequest, context: grpc.ServicerContext) -> pb.EnrollReply:  # noqa: N802
        invited = wire.caller(context, "invitation")
        if request.name != invited.name:
            raise IdentityError(f"the invitation is for {invited.name!r}, not for {request.name!r:.80}")
        # The stage first: if it changes just now, the silo is asked to renew once more, and not too seldom.
        stage, bundle = self._authority.stage, self._authority.bundle
        key = pki.key_digest(request.request)
        certificate = self._authority.issue(request.request, invited.name)
        identity = Identity.from_certificate(certificate)
        with self._roster.together():
            self._roster.enroll(invited.name, invited.fingerprint, key, identity.serial, time.time())
            self._roster.certificates.add(invited.name, key, certificate, stage, None)
        log.info("%s enrolled; its certificate is good until %s", invited.name, f"{identity.not_after:%Y-%m-%d}")
        return pb.EnrollReply(certificate=certificate, authority=bundle, federation=self._federation)

    def Renew(self, request: pb.RenewRequest, context: grpc.ServicerContext) -> pb.RenewReply:  # noqa: N802
        identity = wire.caller(context, "silo")
        name, stage, bundle = identity.name, self._authority.stage, self._authority.bundle
        known = self._roster.check(name, identity.serial, identity.not_after)
        key = pki.key_digest(request.request)
        certificate = self._roster.certificates.issued(name, key, stage)
        if certificate is None:
            certificate = self._authority.issue(request.request, name)
            self._roster.certificates.add(name, key, certificate, stage, known.serial)
            log.info("%s renews its certificate", name)
        return pb.RenewReply(certificate=certificate, authorities=bundle)
