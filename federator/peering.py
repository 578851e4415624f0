"""The ``Exchange`` service: what silos that average for each other ask the federator and tell it.

Messages in, questions to the round's exchange, messages out; nothing is decided here, as in ``service``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from feddiff.core import peer_wire, wire
from feddiff.core.errors import ConfigError, NotSelected, ProtocolError
from feddiff.core.identity import parse_address
from feddiff.core.transfer import Chunk, Commit, Receiver
from feddiff.federator.exchange import Exchange
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import Entry
from feddiff.federator.testimony import plain
from feddiff.federator.traffic import Traffic
from feddiff.v1 import peer_pb2 as pb
from feddiff.v1 import peer_pb2_grpc, transfer_pb2

MAX_PATIENCE_S = 30.0


def introduce(federation: Federation, silo: str, advertise: str) -> None:
    """A silo says where others reach it; empty if it does not listen.

    Raises ConfigError if the rules need that it does.
    """
    if not federation.config.peers:
        return
    if advertise:
        parse_address(advertise)
    elif federation.config.topology == "peer":
        raise ConfigError(
            'in this federation silos send to each other (topology = "peer"): start feddiff-silo with --listen'
        )
    with federation.changed:
        federation.journal.note(f"address {silo}", advertise)


class ExchangeService(peer_pb2_grpc.ExchangeServicer):
    """Serves silos of a federation whose rules say so."""

    def __init__(self, federation: Federation, traffic: Traffic) -> None:
        self._federation, self._traffic = federation, traffic
        self._keeping = threading.Lock()

    def GetDuty(self, request: pb.DutyRequest, context: grpc.ServicerContext) -> pb.Duty:  # noqa: N802
        silo, exchange = self._silo(context)
        until = time.monotonic() + min(max(request.patience_s, 0.0), MAX_PATIENCE_S)
        with self._federation.changed:
            duty = exchange.duty(silo)
            while duty.id == request.known and time.monotonic() < until and context.is_active():
                self._federation.changed.wait(min(1.0, until - time.monotonic()))
                self._federation.hear(silo, progress=False)
                duty = exchange.duty(silo)
        context.set_compression(grpc.Compression.Gzip)
        return peer_wire.duty_to(duty)

    def Declare(self, request: pb.Declaration, context: grpc.ServicerContext) -> pb.Heard:  # noqa: N802
        silo, exchange = self._silo(context)
        updates = peer_wire.declared_from(request.updates)
        with self._federation.changed:
            exchange.declare(silo, request.round, request.revision, updates)
        return pb.Heard()

    def Fold(self, request: pb.Folded, context: grpc.ServicerContext) -> pb.Heard:  # noqa: N802
        silo, exchange = self._silo(context)
        with self._federation.changed:
            exchange.folded(
                silo, request.round, peer_wire.result_from(request), request.silo, plain(request.reason, 300)
            )
        return pb.Heard()

    def Judge(self, request: pb.Judgement, context: grpc.ServicerContext) -> pb.Heard:  # noqa: N802
        silo, exchange = self._silo(context)
        with self._federation.changed:
            exchange.judged(silo, request.round, request.owner, plain(request.finding, 300), not request.unreachable)
        return pb.Heard()

    def Complain(self, request: pb.Complaint, context: grpc.ServicerContext) -> pb.Heard:  # noqa: N802
        silo, exchange = self._silo(context)
        with self._federation.changed:
            exchange.complain(silo, request.round, plain(request.silo, 63))
        return pb.Heard()

    def Tally(self, request: pb.Tallies, context: grpc.ServicerContext) -> pb.Heard:  # noqa: N802
        silo, exchange = self._silo(context)
        rows = peer_wire.tallies_from(request.rows)
        known = {each.name for each in self._federation.roster.silos()}
        segments = {*self._federation.layout.names, ""}
        if any({row.source, row.target} - known or row.segment not in segments for row in rows):
            raise ProtocolError(f"{silo} counts what went between silos or of segments that there are not")
        if not 0 <= request.round <= self._federation.upcoming:
            raise ProtocolError(f"{silo} counts bytes of round {request.round}, which never was")
        exchange.tally.add(request.round, silo, rows)
        return pb.Heard()

    def Submit(  # noqa: N802
        self, requests: Iterator[transfer_pb2.SubmitRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.SubmitReply]:
        silo, exchange = self._silo(context)
        first = next(requests, None)
        if first is None or not first.HasField("offer") or first.parts:
            raise ProtocolError("an upload begins with its offer")
        offered = wire.manifests_from(first.offer.manifests)
        with self._federation.changed:
            wanted = exchange.keeps.get(silo, [])
        if not set(offered) <= set(wanted):
            raise NotSelected(f"{silo} sends weights that the federator did not ask it for")
        receiver = Receiver(self._federation.folder / "spool" / "kept" / silo, offered)
        try:
            yield transfer_pb2.SubmitReply(standing=wire.standing_to(receiver.standing()))
            for message in requests:
                parts = wire.parts_from(message)
                for part, size in zip(parts, wire.part_bytes(message), strict=True):
                    self._take(silo, first.offer.round, receiver, part, size)
                done = [transfer_pb2.Commit(**vars(part)) for part in parts if isinstance(part, Commit)]
                if done:
                    yield transfer_pb2.SubmitReply(committed=done)
        finally:
            receiver.close()
        with self._keeping:
            kept = exchange.holdings.assemble()
        with self._federation.changed:
            if kept:
                self._federation.changed.notify_all()

    def _take(self, silo: str, number: int, receiver: Receiver, part: Chunk | Commit, size: int) -> None:
        self._federation.hear(silo)
        fresh = receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
        manifest = receiver.manifests[part.offer]
        count = manifest.parameters if fresh and isinstance(part, Commit) else 0
        self._traffic.add(Entry(number, silo, manifest.segment, "up", parameters=count, raw=4 * count, wire=size))

    def _silo(self, context: grpc.ServicerContext) -> tuple[str, Exchange]:
        """The caller's name. Raises IdentityError, and NotSelected where silos do not average."""
        identity = wire.caller(context, "silo")
        silo = self._federation.roster.check(identity.name, identity.serial)
        if self._federation.exchange is None or not silo.samples:
            raise NotSelected("the federator averages here, or this silo has not joined yet")
        self._traffic.owned(context.peer(), identity.name)
        self._federation.hear(identity.name, progress=False)
        return identity.name, self._federation.exchange
