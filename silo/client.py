"""The silo's only gRPC client: questions to the federator, answers as nouns of the core, errors as their classes."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from feddiff.core import peer_wire, pki, wire
from feddiff.core.errors import FedDiffError, FederatorUnavailable, ProtocolError, Revoked
from feddiff.core.transfer import Chunk, Commit, Receiver, Sender, Standing, batches
from feddiff.silo.heads import Heads
from feddiff.silo.readings import Reading
from feddiff.silo.renewal import Renewal
from feddiff.silo.session import Held, RoundWork, Task
from feddiff.v1 import enrollment_pb2, enrollment_pb2_grpc, federation_pb2_grpc, transfer_pb2
from feddiff.v1 import federation_pb2 as pb

PATIENCE_S = 25.0
REPORT_S = 5.0
"""A report is told from inside the training, which must not wait for a federator that hangs."""
RENEWAL_S = 10.0
"""Asked for inside the training, too; what fails is tried again later."""
ANSWER_S = 30.0
"""How long a small question may take. Streams have no such limit: keepalive tells a dead link from a slow one."""
GRID_S = 120.0
"""And one with a grid of samples."""


@dataclass(frozen=True)
class Welcome:
    """The federation's rules, as canonical JSON, the digests of its initial weights and of this silo's statistics."""

    rules: bytes
    initial_digest: str
    statistics: str


class Client:
    """A silo's connection. One caller at a time, except ``stop``."""

    def __init__(
        self, address: str, folder: Path, renewal: Renewal | None = None, service: Any = None, host: str = ""
    ) -> None:
        """``renewal``: of another connection of the same silo, with which this one shares what it shows. ``service``:
        the stub's class, of another service. ``host``: the name that the certificate of another silo must have."""
        self._address, self._service, self._host = address, service or federation_pb2_grpc.FederationStub, host
        self.renewal, self._heads = renewal or Renewal(folder), Heads(folder)
        self.check_dates()
        self._running: Any = None
        self._stopped = threading.Event()
        self.sent = self.received = 0
        """Bytes of chunks, as they are compressed."""
        self.answered_at: float | None = None
        """When the federator last answered, of ``time.monotonic``."""
        self._connect()

    def _connect(self) -> None:
        mine = self._shown = self.renewal.credentials
        credentials = grpc.ssl_channel_credentials(mine.authorities, mine.key, mine.certificate)
        named = [("grpc.ssl_target_name_override", self._host)] if self._host else []
        self._channel = grpc.secure_channel(self._address, credentials, [*wire.CLIENT_OPTIONS, *named])
        self._stub = self._service(self._channel)

    def check_dates(self) -> None:
        """Raises CertificateExpired: what a federator would only answer with a closed socket."""
        self.renewal.check_dates()

    def _renew(self) -> None:
        """Between two calls: renew the certificate if it is time, and go on with the newest."""
        if not self._host and self.renewal.due and self.renewal.lock.acquire(blocking=False):
            key = pki.make_key()
            request = enrollment_pb2.RenewRequest(request=pki.request_certificate(key, self.renewal.identity.name))
            try:
                reply = self._call(enrollment_pb2_grpc.EnrollmentStub(self._channel).Renew, request, RENEWAL_S)
                self.renewal.replace(key, reply.certificate, reply.authorities)
            except FedDiffError as error:
                if not self._stopped.is_set():
                    self.renewal.failed(error)
            finally:
                self.renewal.lock.release()
        if self._shown is not self.renewal.credentials:
            self._channel.close()
            self._connect()

    def _raised(self, error: grpc.RpcError) -> FedDiffError:
        found = wire.raised(error)
        if isinstance(found, Revoked) and self._shown is not self.renewal.credentials:
            return FederatorUnavailable("this call came with a certificate that another has replaced just now")
        return found

    def join(
        self,
        samples: int,
        labels: Mapping[str, int],
        held: Mapping[str, Held],
        device: str,
        layout_digest: str,
        accepts_pool: bool = False,
        advertise: str = "",
    ) -> Welcome:
        """Introduce the silo; returns the federation's rules. With 0 samples it only asks for the rules."""
        request = pb.JoinRequest(
            protocol=wire.PROTOCOL,
            software=wire.SOFTWARE,
            samples=samples,
            labels=labels,
            held=_held(held),
            device=device,
            layout_digest=layout_digest,
            accepts_pool=accepts_pool,
            advertise=advertise,
        )
        reply = self._ask("Join", request, ANSWER_S)
        return Welcome(reply.config, reply.initial_digest, reply.statistics)

    def task(self, known: str, held: Mapping[str, Held]) -> Task:
        """What to do; waits up to ``PATIENCE_S`` while it is still ``known``.

        Raises ProtocolError for a task that contradicts itself: personal segments are never handed out."""
        request = pb.TaskRequest(known_task=known, patience_s=PATIENCE_S, held=_held(held))
        reply = self._ask("GetTask", request, PATIENCE_S + ANSWER_S)
        self.renewal.asked |= reply.renew
        self._heads.keep(reply.audit)
        if reply.WhichOneof("kind") != "round":
            return Task(reply.id, reply.reason, finished=reply.WhichOneof("kind") == "finished")
        wanted = {each.segment for each in reply.round.up} & set(reply.round.personal)
        if wanted:
            raise ProtocolError(f"the federator asks for {', '.join(sorted(wanted))}, which the plan says never leaves")
        down = wire.manifests_from(reply.round.down)
        work = RoundWork(
            reply.round.round,
            tuple(down),
            tuple(wire.manifests_from(reply.round.up)),
            {each.segment: Held(each.version, each.digest) for each in reply.round.start},
            tuple(reply.round.personal),
            reply.round.seed,
            wire.portion_from(reply.round.pool) if reply.round.HasField("pool") else None,
            peer_wire.dealings_from(reply.round, down),
        )
        if public := [each.transfer for each in (*work.down, *work.up) if each.public]:
            raise ProtocolError(f"the federator counts {public[0]}, public images, among the weights")
        return Task(reply.id, reply.reason, work)

    def fetch(self, round: int, receiver: Receiver, told: Callable[[Chunk | Commit], None]) -> None:
        """Receive what a receiver lacks. ``told`` hears of each part that is safe."""
        request = transfer_pb2.FetchRequest(
            offer=_offer(round, receiver), standing=wire.standing_to(receiver.standing())
        )
        for message in self._stream("Fetch", request):
            for part in wire.parts_from(message):
                if isinstance(part, Chunk):
                    self.received += len(part.payload)
                    receiver.chunk(part)
                else:
                    receiver.commit(part)
                told(part)

    def submit(self, round: int, sender: Sender, told: Callable[[Chunk | Commit], None]) -> None:
        """Send what the other end lacks of these transfers, and have each acknowledged; ``told`` hears of each part.

        Raises StoreError for a transfer that is damaged on this disk, and whatever the other end raises."""
        standing: queue.SimpleQueue[list[Standing] | None] = queue.SimpleQueue()

        failed: list[FedDiffError | OSError] = []

        def requests() -> Iterator[transfer_pb2.SubmitRequest]:
            yield transfer_pb2.SubmitRequest(offer=_offer(round, sender))
            at = standing.get()
            try:
                for batch in batches(sender.parts(at)) if at is not None else ():
                    if self._stopped.is_set():
                        return
                    yield wire.parts_to(batch, transfer_pb2.SubmitRequest)
                    for part in batch:
                        self.sent += len(part.payload) if isinstance(part, Chunk) else 0
                        told(part)
            except (FedDiffError, OSError) as error:  # this is gRPC's thread: hand it to the caller's
                failed.append(error)

        open_commits = set(range(len(sender.manifests)))
        try:
            for reply in self._stream("Submit", requests()):
                if reply.HasField("standing"):
                    at = wire.standing_from(reply.standing)
                    open_commits -= {number for number, each in enumerate(at) if each.committed}
                    standing.put(at)
                open_commits -= {each.offer for each in reply.committed}
        finally:
            standing.put(None)  # the generator may still be waiting, in gRPC's own thread
        if failed:
            raise failed[0]
        if open_commits:
            raise ProtocolError(f"the federator left {len(open_commits)} transfers unacknowledged")

    def report(
        self,
        round: int,
        phase: str,
        step: int = 0,
        steps: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Tell progress; False if the round no longer wants this silo's update."""
        request = pb.ReportRequest(round=round, phase=phase, step=step, steps=steps, metrics=dict(metrics or {}))
        reply = self._ask("Report", request, REPORT_S)
        self.renewal.asked |= reply.renew
        return not reply.abandon

    def measure(self, round: int, reading: Reading) -> None:
        """Tell how good the silo's own model of a round is."""
        request = pb.MeasureRequest(round=round, numbers=wire.measured_to(reading.numbers), grid=reading.grid)
        self._ask("Measure", request, GRID_S)

    def contribute(self, data: bytes) -> None:
        """Send the moments of the features of the silo's images."""

        def requests() -> Iterator[pb.ContributeRequest]:
            offer = pb.ContributeRequest.Offer(size=len(data), digest=hashlib.sha256(data).hexdigest())
            yield pb.ContributeRequest(offer=offer)
            for start in range(0, len(data), wire.PIECE_BYTES):
                yield pb.ContributeRequest(piece=data[start : start + wire.PIECE_BYTES])

        self._ask("Contribute", requests(), None)

    def ask(self, method: str, request: Any, timeout: float = ANSWER_S) -> Any:
        """One question of the service, by its name."""
        return self._ask(method, request, timeout)

    def stop(self) -> None:
        """End whatever is under way; it raises FederatorUnavailable. Safe from any thread and signal handler."""
        self._stopped.set()
        running = self._running
        if running is not None:
            running.cancel()

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: str, request: Any, timeout: float | None) -> Any:
        self._renew()
        return self._call(getattr(self._stub, method), request, timeout)

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        self._check_stopped()
        # Names of segments and transfers repeat themselves; weights, which do not, go by streams.
        self._running = call = method.future(request, timeout=timeout, compression=grpc.Compression.Gzip)
        self._cancel_if_stopped(call)
        try:
            reply = call.result()
            self.answered_at = time.monotonic()
            return reply
        except grpc.RpcError as error:
            raise self._raised(error) from None
        except grpc.FutureCancelledError:
            raise FederatorUnavailable("this silo is stopping") from None
        finally:
            self._running = None

    def _stream(self, method: str, request: Any) -> Iterator[Any]:
        self._renew()
        self._check_stopped()
        self._running = call = getattr(self._stub, method)(request)
        self._cancel_if_stopped(call)
        try:
            for reply in call:
                self.answered_at = time.monotonic()
                yield reply
        except grpc.RpcError as error:
            raise self._raised(error) from None
        finally:
            self._running = None
            call.cancel()

    def _cancel_if_stopped(self, call: Any) -> None:
        """``stop`` may have come while the call began, and found nothing yet to cancel."""
        if self._stopped.is_set():
            call.cancel()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise FederatorUnavailable("this silo is stopping")


def _held(held: Mapping[str, Held]) -> list[pb.Held]:
    return [pb.Held(segment=name, version=each.version, digest=each.digest) for name, each in sorted(held.items())]


def _offer(round: int, holder: Receiver | Sender) -> transfer_pb2.Offer:
    return transfer_pb2.Offer(round=round, manifests=[wire.manifest_to(each) for each in holder.manifests])
