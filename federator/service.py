"""The ``Federation`` service: messages in, questions to the federation, messages out. Nothing is decided here.

Every call is made by a silo whose verified certificate names it; no message carries a name of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc

from feddiff.core import wire
from feddiff.core.errors import ProtocolError, StoreError
from feddiff.core.transfer import Chunk, Commit, Receiver, Sender, batches
from feddiff.federator import outbox, peering, testimony
from feddiff.federator.federation import Federation
from feddiff.federator.gate import Gate, Passage
from feddiff.federator.intake import Intake
from feddiff.federator.ledger import OVERHEAD, Direction, Entry
from feddiff.federator.purse import afford
from feddiff.federator.tasks import task
from feddiff.federator.testimony import plain
from feddiff.federator.traffic import Traffic
from feddiff.v1 import federation_pb2 as pb
from feddiff.v1 import federation_pb2_grpc, transfer_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

Reply = TypeVar("Reply", bound="Message")
MAX_PATIENCE_S = 30.0
MAX_HELD = 4096
MAX_METRICS = 64
MAX_LABELS = 10_000


class FederationService(federation_pb2_grpc.FederationServicer):
    """Serves silos."""

    def __init__(self, federation: Federation, intake: Intake, traffic: Traffic) -> None:
        self._federation, self._intake, self._traffic = federation, intake, traffic
        self._gate = Gate()

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:  # noqa: N802
        silo = self._silo(context, joined=False)
        if request.protocol != wire.PROTOCOL:
            raise ProtocolError(
                f"this federator speaks feddiff protocol {wire.PROTOCOL} ({wire.SOFTWARE}), the silo {request.protocol}"
                f" ({request.software:.60}); install the federator's version at the silo"
            )
        if request.layout_digest and request.layout_digest != self._federation.layout.digest:
            raise ProtocolError(
                "the silo's diffusers cuts the model into other segments than the federator's; install the same version"
            )
        if len(request.labels) > MAX_LABELS:
            raise ProtocolError(f"{len(request.labels)} labels; at most {MAX_LABELS}")
        if request.samples:  # without any, it only asks for the rules: it cannot read its images before
            # First, for a round may open as soon as the silo is here, and its weight counts the images it accepts.
            self._federation.pool.consent(silo, request.accepts_pool)
            peering.introduce(self._federation, silo, request.advertise)
            self._federation.join(
                silo,
                request.samples,
                {plain(label, 64): count for label, count in request.labels.items()},
                self._held(silo, request.held),
                plain(request.device, 200),
                plain(request.software, 60),
            )
        config = self._federation.config
        reply = pb.JoinReply(
            protocol=wire.PROTOCOL,
            software=wire.SOFTWARE,
            federation=config.name,
            config=config.canonical(),
            config_digest=config.digest,
            layout_digest=self._federation.layout.digest,
            initial_digest=self._federation.journal.fact("initial") or "",
            statistics=self._federation.statistics.known(silo, request.samples),
        )
        context.set_compression(grpc.Compression.Gzip)
        return self._counted(silo, request, reply)

    def GetTask(self, request: pb.TaskRequest, context: grpc.ServicerContext) -> pb.Task:  # noqa: N802
        silo = self._silo(context)
        self._federation.hear(silo, self._held(silo, request.held))
        until = time.monotonic() + min(max(request.patience_s, 0.0), MAX_PATIENCE_S)
        with self._federation.changed:
            found = task(self._federation, silo)
            while found.id == request.known_task and time.monotonic() < until and context.is_active():
                self._federation.changed.wait(min(1.0, until - time.monotonic()))
                self._federation.hear(silo)
                self._federation.roster.check(silo, wire.caller(context, "silo").serial)
                found = task(self._federation, silo)
        found.renew = self._federation.roster.stale(silo)
        found.audit = outbox.told(self._federation.database)
        context.set_compression(grpc.Compression.Gzip)
        return self._counted(silo, request, found)

    def Fetch(  # noqa: N802
        self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.FetchReply]:
        silo = self._silo(context)
        self._cuttable(silo, context)
        wanted = wire.manifests_from(request.offer.manifests)
        public = any(each.public for each in wanted)
        if public:
            self._federation.pool.check(silo, wanted)
        else:
            self._federation.check_transfers(silo, wanted)
        standing = wire.standing_from(request.standing)
        if len(standing) != len(wanted):
            raise ProtocolError(f"{len(standing)} standings for {len(wanted)} transfers")
        self._traffic.keep()
        afford(self._federation, silo, "down", wanted, standing)
        pool, versions = self._federation.pool, self._federation.versions
        sender = Sender(wanted, partial(pool.open, silo) if public else versions.open)
        self._federation.hear(silo).phase = "fetching"
        number = 0 if self._federation.round is None else self._federation.round.round
        with contextlib.closing(sender), self._gate.pass_through(lambda: self._alive(silo, context)) as passage:
            try:
                for batch in batches(sender.parts(standing)):
                    if not self._alive(silo, context):
                        return
                    reply = wire.parts_to(batch, transfer_pb2.FetchReply)
                    began = time.monotonic()
                    yield reply
                    took = time.monotonic() - began
                    self._federation.hear(silo)
                    passage.waited(took)
                    for part, size in zip(batch, wire.part_bytes(reply), strict=True):
                        self._traffic.sent(number, silo, sender.transfers[part.offer], part, size, took / len(batch))
            except StoreError:  # a chunk is damaged on disk, which no opening shows
                (pool if public else versions).discard([sender.reading] if sender.reading else [])
                raise

    def Submit(  # noqa: N802
        self, requests: Iterator[transfer_pb2.SubmitRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.SubmitReply]:
        silo = self._silo(context)
        self._cuttable(silo, context)
        first = next(requests, None)
        if first is None or not first.HasField("offer") or first.parts:
            raise ProtocolError("an upload begins with its offer")
        number = first.offer.round
        receiver = self._intake.begin(silo, number, wire.manifests_from(first.offer.manifests))
        self._traffic.keep()
        afford(self._federation, silo, "up", receiver.manifests, receiver.standing())
        # The silo sends nothing before it has the standing, so it is here that it waits for its turn.
        with self._gate.pass_through(lambda: self._alive(silo, context)) as passage:
            yield transfer_pb2.SubmitReply(standing=wire.standing_to(receiver.standing()))
            yield from self._take_all(silo, number, receiver, requests, passage)

    def _take_all(
        self,
        silo: str,
        number: int,
        receiver: Receiver,
        requests: Iterator[transfer_pb2.SubmitRequest],
        passage: Passage,
    ) -> Iterator[transfer_pb2.SubmitReply]:
        """Keep the parts of an upload; yields the acknowledgement of each commit."""
        began = time.monotonic()
        for message in requests:
            passage.waited(time.monotonic() - began)
            parts = wire.parts_from(message)
            for part, size in zip(parts, wire.part_bytes(message), strict=True):
                if isinstance(part, Commit):
                    self._traffic.keep()
                fresh = self._intake.take(silo, number, receiver, part)
                now = time.monotonic()
                self._traffic.add(
                    Entry(
                        number,
                        silo,
                        receiver.manifests[part.offer].segment,
                        "up",
                        wire=size,
                        retransmitted=0 if fresh or not isinstance(part, Chunk) else len(part.payload),
                        seconds=now - began,
                    )
                )
                began = now
            done = [transfer_pb2.Commit(**vars(part)) for part in parts if isinstance(part, Commit)]
            if done:
                yield transfer_pb2.SubmitReply(committed=done)

    def Report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportReply:  # noqa: N802
        silo = self._silo(context)
        if len(request.metrics) > MAX_METRICS:
            raise ProtocolError(f"{len(request.metrics)} metrics; at most {MAX_METRICS}")
        metrics = {plain(name, 64): value for name, value in request.metrics.items()}
        wanted = self._federation.report(
            silo, request.round, plain(request.phase, 40), request.step, request.steps, metrics
        )
        reason = "" if wanted else self._federation.decision.reason
        reply = pb.ReportReply(abandon=not wanted, reason=reason, renew=self._federation.roster.stale(silo))
        return self._counted(silo, request, reply)

    def Measure(self, request: pb.MeasureRequest, context: grpc.ServicerContext) -> pb.MeasureReply:  # noqa: N802
        silo = self._silo(context)
        testimony.keep(self._federation, silo, request.round, wire.measured_from(request.numbers), request.grid)
        return self._counted(silo, request, pb.MeasureReply())

    def Contribute(  # noqa: N802
        self, requests: Iterator[pb.ContributeRequest], context: grpc.ServicerContext
    ) -> pb.ContributeReply:
        silo = self._silo(context)
        self._cuttable(silo, context)
        first = next(requests, None)
        if first is None or not first.HasField("offer"):
            raise ProtocolError("statistics begin with their offer")

        def pieces() -> Iterator[bytes]:
            for message in requests:
                if not message.piece:
                    raise ProtocolError("a piece of statistics was due, and came empty")
                self._federation.hear(silo)
                self._counted(silo, message, pb.ContributeReply())
                yield message.piece

        samples = self._federation.roster.get(silo).samples
        self._federation.statistics.receive(silo, samples, first.offer.size, first.offer.digest, pieces())
        if silo in self._federation.evicted:  # while it was looked at
            self._federation.statistics.forget(silo)
        return self._counted(silo, first, pb.ContributeReply())

    def _cuttable(self, silo: str, context: grpc.ServicerContext) -> None:
        """Let an eviction end this call, wherever it waits."""
        streams = self._federation.hear(silo).streams
        streams.add(context.cancel)
        context.add_callback(lambda: streams.discard(context.cancel))

    def _alive(self, silo: str, context: grpc.ServicerContext) -> bool:
        """Whether the silo still listens; a sign of life, not of progress. Raises Revoked."""
        self._federation.hear(silo, progress=False)
        return bool(context.is_active())

    def _held(self, silo: str, items: Sequence[pb.Held]) -> Mapping[str, int]:
        """The published versions that a silo really holds. Raises ProtocolError for a segment that there is not."""
        if len(items) > MAX_HELD:
            raise ProtocolError(f"{len(items)} held segments; at most {MAX_HELD}")
        for item in items:
            if item.segment not in self._federation.current or item.version < 0:
                raise ProtocolError(f"{silo} holds {item.segment!r:.80} version {item.version}, which cannot be")
        return {
            item.segment: item.version
            for item in items
            if self._federation.genuine(silo, item.segment, item.version, item.digest)
        }

    def _silo(self, context: grpc.ServicerContext, joined: bool = True) -> str:
        """The caller's name. Raises IdentityError, and ProtocolError for one that must have joined before."""
        identity = wire.caller(context, "silo")
        silo = self._federation.roster.check(identity.name, identity.serial, identity.not_after)
        if joined and not silo.samples:
            raise ProtocolError(f"{identity.name} has not joined yet: it must say first how many images it has")
        self._traffic.owned(context.peer(), identity.name)
        return identity.name

    def _counted(self, silo: str, request: Message, reply: Reply) -> Reply:
        number = 0 if self._federation.round is None else self._federation.round.round
        sizes: tuple[tuple[Direction, int], ...] = (("up", request.ByteSize()), ("down", reply.ByteSize()))
        for direction, size in sizes:
            self._traffic.add(Entry(number, silo, OVERHEAD, direction, wire=wire.framed(size)))
        return reply
