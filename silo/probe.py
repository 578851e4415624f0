"""Asks the federator's ``Probe`` service: who it is, and how fast the line to it is. For the doctor only.

A connection of its own, beside the daemon's. The line is measured by echoes that grow until one takes long enough to
say something: a few megabytes at most, which the federator rations and counts as overhead.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from feddiff.core import wire
from feddiff.core.config import MAX_CONFIG_BYTES
from feddiff.core.errors import TooLarge
from feddiff.core.identity import MAX_PEM_BYTES
from feddiff.v1 import probe_pb2 as pb
from feddiff.v1 import probe_pb2_grpc

TIMEOUT_S = 15.0
SIZES = (32 << 10, 128 << 10, 512 << 10, 1 << 20, 1 << 20)
"""Bytes of the echoes one way, one after the other: 2.7 MB if none of them is slow."""
ENOUGH_S = 1.0
"""An echo that takes so long is the last."""


@dataclass(frozen=True)
class Answer:
    """What the federator says of itself."""

    protocol: int
    software: str
    federation: str
    authority: bytes
    """Its CA, PEM."""
    rules: bytes
    """Canonical JSON."""
    layout_digest: str
    ahead_s: float
    """By how much its clock is ahead of this one, give or take the time that the question took."""
    until: float
    """When the invitation ends that was shown, in seconds since 1970; 0: none was."""


@dataclass(frozen=True)
class Line:
    """What was measured, in bytes a second and seconds."""

    down: float
    up: float
    round_trip_s: float
    moved: int
    """Bytes, both ways together."""


class Probe:
    """A connection. ``root``: the certificate to believe; ``key`` and ``certificate``: who is asking, PEM."""

    def __init__(self, address: str, root: bytes, key: bytes, certificate: bytes) -> None:
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        self._channel = grpc.secure_channel(address, credentials, wire.CLIENT_OPTIONS)
        self._stub = probe_pb2_grpc.ProbeStub(self._channel)

    def look(self, now: float) -> Answer:
        """Who answers; ``now`` is this machine's clock. Raises what the federator raises, FederatorUnavailable."""
        began = time.monotonic()
        reply = self._ask(self._stub.Look, pb.LookRequest(protocol=wire.PROTOCOL, software=wire.SOFTWARE))
        took = time.monotonic() - began
        if len(reply.config) > MAX_CONFIG_BYTES or len(reply.authority) > MAX_PEM_BYTES:
            raise TooLarge("the federator's rules or CA")
        return Answer(
            reply.protocol,
            reply.software[:60],
            reply.federation[:64],
            reply.authority,
            reply.config,
            reply.layout_digest[:64],
            reply.clock - (now + took / 2),
            reply.until,
        )

    def line(self) -> Line:
        """How fast the line is. Raises TransferError if the federator has echoed enough."""
        trips = [self._echo(0, 0) for _ in range(3)]
        trip = statistics.median(trips)
        up, sent = self._rate(trip, lambda size: self._echo(size, 0))
        down, received = self._rate(trip, lambda size: self._echo(0, size))
        self._echo(0, 0)  # at which the federator counts what it sent last
        return Line(down, up, trip, sent + received)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._channel.close()

    def _rate(self, trip: float, echo: Any) -> tuple[float, int]:
        """(bytes a second of the last and largest echo, bytes of all)."""
        rate, moved = 0.0, 0
        for size in SIZES:
            took = echo(size)
            moved += size
            rate = size / max(took - trip, took / 10)  # a trip that was slower than usual must not make it infinite
            if took > ENOUGH_S:
                break
        return rate, moved

    def _echo(self, up: int, down: int) -> float:
        """Seconds that it took."""
        request = pb.EchoRequest(payload=os.urandom(up), size=down)
        began = time.monotonic()
        self._ask(self._stub.Echo, request)
        return time.monotonic() - began

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise wire.raised(error) from None
