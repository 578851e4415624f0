"""A silo's port for other silos: the ``Peers`` service. Open only where the silo's administrator turned it on.

Mutual TLS under the federation's CA; who calls must be a silo that the federator has named for the open round.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent import futures
from functools import partial

import grpc

from feddiff.core import tls, wire
from feddiff.core.errors import ConfigError, FedDiffError, NotSelected, ProtocolError, RoundError
from feddiff.core.peers import Tallied, kind_of
from feddiff.core.transfer import Commit, Sender, batches
from feddiff.silo.peers.owner import Owner
from feddiff.silo.peers.tallies import Tallies
from feddiff.silo.renewal import Renewal
from feddiff.v1 import peer_pb2_grpc, transfer_pb2

MAX_THREADS = 64
log = logging.getLogger("feddiff.silo")


class PeersService(peer_pb2_grpc.PeersServicer):
    """Serves other silos what the owner of the ranges takes and gives."""

    def __init__(self, owner: Owner, tallies: Tallies) -> None:
        self._owner, self._tallies = owner, tallies

    def Submit(  # noqa: N802
        self, requests: Iterator[transfer_pb2.SubmitRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.SubmitReply]:
        silo = self._silo(context)
        first = next(requests, None)
        if first is None or not first.HasField("offer") or first.parts:
            raise ProtocolError("an upload begins with its offer")
        number = first.offer.round
        receiver = self._owner.begin(silo, number, wire.manifests_from(first.offer.manifests))
        yield transfer_pb2.SubmitReply(standing=wire.standing_to(receiver.standing()))
        for message in requests:
            parts = wire.parts_from(message)
            for part, size in zip(parts, wire.part_bytes(message), strict=True):
                fresh = self._owner.take(silo, receiver, part)
                manifest = receiver.manifests[part.offer]
                whole = fresh and isinstance(part, Commit)
                encoded = len(part.payload) if fresh and not isinstance(part, Commit) else 0
                count = manifest.elements if whole else 0
                row = Tallied(silo, self._owner.name, manifest.segment, "update", count, encoded, size)
                self._tallies.add(number, row)
            done = [transfer_pb2.Commit(**vars(part)) for part in parts if isinstance(part, Commit)]
            if done:
                yield transfer_pb2.SubmitReply(committed=done)

    def Fetch(  # noqa: N802
        self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.FetchReply]:
        silo = self._silo(context)
        wanted = wire.manifests_from(request.offer.manifests)
        standing = wire.standing_from(request.standing)
        with contextlib.closing(Sender(wanted, partial(self._owner.open, silo))) as sender:
            for batch in batches(sender.parts(standing)):
                if not context.is_active():
                    return
                reply = wire.parts_to(batch, transfer_pb2.FetchReply)
                for part, size in zip(batch, wire.part_bytes(reply), strict=True):
                    manifest = wanted[part.offer]
                    kind = kind_of(manifest)
                    count = manifest.elements if isinstance(part, Commit) and kind == "result" else 0
                    encoded = 0 if isinstance(part, Commit) else len(part.payload)
                    segment = manifest.segment if kind == "result" else ""
                    row = Tallied(self._owner.name, silo, segment, kind, count, encoded, size)
                    self._tallies.add(request.offer.round, row)
                yield reply

    def _silo(self, context: grpc.ServicerContext) -> str:
        """The caller's name. Raises IdentityError, NotSelected."""
        name = wire.caller(context, "silo").name
        if name not in self._owner.addresses:
            raise NotSelected(f"{self._owner.name} does not know {name} in this round")
        return name


def serve(listen: str, renewal: Renewal, owner: Owner, tallies: Tallies) -> grpc.Server:
    """Listen for other silos with this silo's certificate, as it is renewed. Raises ConfigError."""

    def shown() -> tls.Shown:
        mine = renewal.credentials
        return (mine.key, mine.certificate), mine.authorities, ()

    server = grpc.server(
        futures.ThreadPoolExecutor(MAX_THREADS, "peer"),
        interceptors=[wire.ErrorInterceptor(_refused)],
        options=wire.SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_THREADS,
    )
    try:
        if not server.add_secure_port(listen, tls.server_credentials(shown)):
            raise RuntimeError
    except RuntimeError:
        raise ConfigError(f"--listen {listen}: cannot be listened on; is it free, and one of this machine's?") from None
    peer_pb2_grpc.add_PeersServicer_to_server(PeersService(owner, tallies), server)
    wire.add_health(server)
    server.start()
    return server


def _refused(method: str, peer: str, error: FedDiffError) -> None:
    # One that knows more of the round than this silo, or less, asks again at once.
    log.log(
        logging.DEBUG if isinstance(error, RoundError) else logging.WARNING,
        "%s refused to %s: %s",
        method,
        peer,
        error.sentence,
    )
