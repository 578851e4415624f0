"""The ``Probe`` service: tells a silo's doctor who answers here, and echoes bytes so that it can measure its line.

Beside the ``Federation`` service, on the same port and under the same certificates. It changes nothing of the
federation; its bytes are overhead in the ledger. Echoes are rationed, for a line that is being measured is one that
somebody else's weights are waiting for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

import grpc

from feddiff.core import wire
from feddiff.core.errors import TooLarge, TransferError
from feddiff.federator.authority import Authority
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Direction, Entry
from feddiff.federator.measure import amount
from feddiff.federator.traffic import Traffic
from feddiff.v1 import probe_pb2 as pb
from feddiff.v1 import probe_pb2_grpc

MAX_ECHO_BYTES = 1 << 20
"""One way."""
RATION_BYTES, RATION_CALLS, PERIOD_S = 16 << 20, 100, 600.0
"""What a silo may have echoed in a period, both ways together."""
AT_ONCE = 2
"""Echoes under way, of all silos."""


class Ration:
    """How much each silo has had echoed lately. ``now``: seconds on any clock that only goes forward."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._had: dict[str, deque[tuple[float, int]]] = {}

    def take(self, silo: str, size: int) -> None:
        """Raises TransferError, saying when there will be more, for a silo that has had its ration."""
        with self._lock:
            now = self._now()
            had = self._had.setdefault(silo, deque())
            while had and had[0][0] <= now - PERIOD_S:
                had.popleft()
            if len(had) >= RATION_CALLS or sum(each for _, each in had) + size > RATION_BYTES:
                wait = had[0][0] + PERIOD_S - now
                raise TransferError(f"{silo} has measured its line enough for now; again in {wait / 60:.0f} min")
            had.append((now, size))


class ProbeService(probe_pb2_grpc.ProbeServicer):
    """Serves silos and holders of invitations."""

    def __init__(self, federation: Federation, traffic: Traffic, authority: Authority) -> None:
        self._federation, self._traffic, self._authority = federation, traffic, authority
        self._ration, self._places = Ration(), threading.Semaphore(AT_ONCE)

    def Look(self, request: pb.LookRequest, context: grpc.ServicerContext) -> pb.LookReply:  # noqa: N802
        federation, until = self._federation, 0.0
        caller = wire.caller(context, "silo", "invitation")
        if caller.role == "silo":
            federation.roster.check(caller.name, caller.serial, caller.not_after)
        else:
            until = federation.roster.check_invitation(caller.name, caller.fingerprint, time.time())
        self._traffic.owned(context.peer(), caller.name)
        context.set_compression(grpc.Compression.Gzip)
        return pb.LookReply(
            protocol=wire.PROTOCOL,
            software=wire.SOFTWARE,
            federation=federation.config.name,
            authority=self._authority.bundle,
            config=federation.config.canonical(),
            layout_digest=federation.layout.digest,
            clock=time.time(),
            until=until,
        )

    def Echo(self, request: pb.EchoRequest, context: grpc.ServicerContext) -> pb.EchoReply:  # noqa: N802
        caller = wire.caller(context, "silo")
        silo = self._federation.roster.check(caller.name, caller.serial, caller.not_after).name
        self._traffic.owned(context.peer(), silo)
        if max(len(request.payload), request.size) > MAX_ECHO_BYTES:
            raise TooLarge(f"an echo carries at most {amount(MAX_ECHO_BYTES)} each way")
        self._ration.take(silo, len(request.payload) + request.size)
        if not self._places.acquire(blocking=False):
            raise TransferError("other silos are measuring their lines; try again in a minute")
        try:
            reply = pb.EchoReply(payload=os.urandom(request.size))
            number = 0 if self._federation.round is None else self._federation.round.round
            sizes: tuple[tuple[Direction, int], ...] = (("up", request.ByteSize()), ("down", reply.ByteSize()))
            for direction, size in sizes:
                self._traffic.add(Entry(number, silo, OVERHEAD, direction, wire=wire.framed(size)))
            self._traffic.flush()  # the connection may be gone when the kernel is asked next
            return reply
        finally:
            self._places.release()
