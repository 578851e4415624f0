"""Where the nouns of the core meet gRPC: options, bounds, errors and message conversion, the same at both ends.

Sizes: no message is larger than ``MAX_MESSAGE``; the largest chunk is 4 MiB and a bit. Keepalive is set as a pair: the
silo pings every 30 s, also between calls, and the federator allows pings down to every 10 s, so that neither end
takes the other's for abuse and a dead link is noticed in under a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import grpc

from feddiff.core import errors, state, transfer
from feddiff.core.identity import Identity, Role
from feddiff.core.quality import Measured
from feddiff.core.spool import Manifest
from feddiff.v1 import federation_pb2
from feddiff.v1 import transfer_pb2 as pb

if TYPE_CHECKING:
    from feddiff.core.pool import Portion

PROTOCOL = 2
"""Peers must speak the same number: it changes when an old peer could no longer be understood."""
SOFTWARE = state.SOFTWARE
MAX_MESSAGE = 6 << 20
MAX_PARTS = transfer.BATCH_BYTES // transfer.PART_BYTES
MAX_NUMBERS = 32
"""Measured numbers of one model after one round."""
MAX_GRID_BYTES = 1 << 20
MAX_GRID_SIDE = 4096
"""Pixels."""
PIECE_BYTES = 256 << 10
"""Of the moments of a silo's features."""
ERROR_KEY = "feddiff-error"

_COMMON = [
    # A fixed window: gRPC's own estimate takes a busy receiver for a long link and buffers up to 16 MB for each silo.
    # 4 MiB keep 300 Mbit/s busy over 100 ms (make bench-link).
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.http2.max_pings_without_data", 0),
]
CLIENT_OPTIONS = [
    *_COMMON,
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 30_000),
    ("grpc.use_local_subchannel_pool", 1),
]
SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # A silo that got no CPU for minutes sends the pings of all of them at once; 2, the default, would cut it off.
    ("grpc.http2.max_ping_strikes", 100),
    ("grpc.so_reuseport", 0),
    # Whoever connects and shows no certificate holds a file for no longer; 120 s is gRPC's own.
    ("grpc.server_handshake_timeout_ms", 30_000),
]

_STATUS: dict[type[errors.FedDiffError], grpc.StatusCode] = {
    errors.IdentityError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ProtocolError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TransferError: grpc.StatusCode.ABORTED,
    errors.RoundError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UpdateRejected: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FederatorUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.FedDiffError: grpc.StatusCode.INTERNAL,
}
_CLASSES = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.FedDiffError)
}


def framed(message_bytes: int) -> int:
    """Bytes on the wire of a message of this size, TCP and IP headers not counted.

    gRPC adds 5 bytes; HTTP/2 cuts into DATA frames of at most 16384 bytes with a header of 9 (RFC 9113 section 4.1);
    TLS 1.3 records of at most 16384 bytes add 22 (RFC 8446 section 5.2: header 5, type 1, tag 16).
    """
    body = message_bytes + 5
    body += 9 * -(-body // 16384)
    return body + 22 * -(-body // 16384)


def caller(context: grpc.ServicerContext, *roles: Role) -> Identity:
    """Who is calling, by the verified client certificate. Raises IdentityError if not of one of the roles."""
    pem = context.auth_context().get("x509_pem_cert")
    if not pem:
        raise errors.IdentityError("no client certificate")
    identity = Identity.from_certificate(pem[0])
    if identity.role not in roles:
        raise errors.IdentityError(f"{identity.role} {identity.name!r} may not call this")
    return identity


def add_health(server: grpc.Server) -> None:
    """The standard gRPC health service: everything that serves is healthy while it serves.

    Without ``Watch``: its streams, one thread each, would be open to whoever ever had an invitation.
    """
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
        def Check(  # noqa: N802
            self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
        ) -> health_pb2.HealthCheckResponse:
            if request.service not in ("", "feddiff.v1.Federation", "feddiff.v1.Enrollment"):
                context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers a FedDiffError with its status, its class in the trailing metadata and its one line."""

    def __init__(self, refused: Callable[[str, str, errors.FedDiffError], None]) -> None:
        """``refused`` is told (method, peer, error) for the log."""
        self._refused = refused

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        method = details.method.rsplit("/", 1)[-1]

        def fail(context: grpc.ServicerContext, error: errors.FedDiffError) -> NoReturn:
            self._refused(method, context.peer(), error)
            if isinstance(error, errors.StoreError):
                # Its disk is the federator's own affair: no silo may end over it, or learn of its paths.
                error = errors.FederatorUnavailable("it has trouble with its own disk; its log says more")
            context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
            code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
            context.abort(code, str(error)[:1000])
            raise AssertionError("abort does not return")

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return (handler.unary_unary or handler.stream_unary)(request, context)
            except errors.FedDiffError as error:
                fail(context, error)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from (handler.unary_stream or handler.stream_stream)(request, context)
            except errors.FedDiffError as error:
                fail(context, error)

        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
            return make(stream, **coders)
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else (grpc.unary_unary_rpc_method_handler)
        )
        return make(unary, **coders)


def raised(error: grpc.RpcError) -> errors.FedDiffError:
    """The error that the other end raised, as the same class here; FederatorUnavailable if none could be heard."""
    call = cast(grpc.Call, error)
    details = call.details() or ""
    trailing = dict(call.trailing_metadata() or ())
    kind = _CLASSES.get(str(trailing.get(ERROR_KEY)))
    if kind is not None:
        return kind(details)
    if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "oncurrent" not in details:
        return errors.TooLarge(details)
    if call.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT):
        return errors.ProtocolError(f"the federator does not understand this silo: {details}")
    if "CERTIFICATE_VERIFY_FAILED" in details:
        details = (
            "whoever answers there shows no certificate of this federation's CA, or one outside its dates;"
            f" `feddiff-silo doctor` says which CA it is of ({details[-200:]})"
        )
    elif "Socket closed" in details:
        details += "; it may refuse this certificate: its log says so, and `feddiff-silo doctor`"
    return errors.FederatorUnavailable(f"{call.code().name.lower()}: {details}")


def manifest_to(manifest: Manifest) -> pb.Manifest:
    return pb.Manifest(**vars(manifest))


def manifests_from(messages: Iterable[pb.Manifest]) -> list[Manifest]:
    """Bounded and checked. Raises ProtocolError, TooLarge."""
    found = [
        Manifest(m.transfer, m.segment, m.base_version, m.version, m.codec, m.elements, m.chunk_elements, m.start)
        for m in messages
    ]
    if len(found) > transfer.MAX_MANIFESTS:
        raise errors.TooLarge(f"{len(found)} transfers in one offer; at most {transfer.MAX_MANIFESTS}")
    return found


def portion_to(portion: Portion) -> federation_pb2.Portion:
    return federation_pb2.Portion(manifest=manifest_to(portion.manifest), digest=portion.digest)


def portion_from(message: federation_pb2.Portion) -> Portion:
    """What it is of is not checked. Raises ProtocolError, TooLarge."""
    from feddiff.core.pool import Portion

    return Portion(manifests_from([message.manifest])[0], message.digest)


def standing_to(items: Iterable[transfer.Standing]) -> pb.Standing:
    return pb.Standing(items=[pb.Standing.Item(**vars(item)) for item in items])


def standing_from(message: pb.Standing) -> list[transfer.Standing]:
    return [transfer.Standing(item.chunks, item.committed, item.digest) for item in message.items]


Carrier = TypeVar("Carrier", pb.SubmitRequest, pb.FetchReply)


def parts_to(parts: Iterable[transfer.Chunk | transfer.Commit], carrier: type[Carrier]) -> Carrier:
    """The message that carries these parts."""
    return carrier(
        parts=[
            pb.Part(commit=pb.Commit(offer=part.offer, digest=part.digest))
            if isinstance(part, transfer.Commit)
            else pb.Part(chunk=pb.Chunk(**vars(part)))
            for part in parts
        ]
    )


def parts_from(message: pb.SubmitRequest | pb.FetchReply) -> list[transfer.Chunk | transfer.Commit]:
    """Raises ProtocolError for a message that holds anything else, or nothing; TooLarge for too many."""
    if len(message.parts) > MAX_PARTS:
        raise errors.TooLarge(f"{len(message.parts)} parts in one message; at most {MAX_PARTS}")
    found: list[transfer.Chunk | transfer.Commit] = []
    for part in message.parts:
        kind = part.WhichOneof("part")
        if kind == "chunk":
            chunk = part.chunk
            found.append(transfer.Chunk(chunk.offer, chunk.index, chunk.payload, chunk.checksum))
        elif kind == "commit":
            found.append(transfer.Commit(part.commit.offer, part.commit.digest))
        else:
            raise errors.ProtocolError("a part is neither a chunk nor a commit")
    if not found:
        raise errors.ProtocolError("a message without a chunk or a commit came where one was due")
    return found


def measured_to(numbers: Iterable[Measured]) -> list[federation_pb2.Measured]:
    return [federation_pb2.Measured(**vars(each)) for each in numbers]


def measured_from(messages: Sequence[federation_pb2.Measured]) -> list[Measured]:
    """Bounded; what they say is not checked. Raises TooLarge."""
    if len(messages) > MAX_NUMBERS:
        raise errors.TooLarge(f"{len(messages)} measured numbers in one message; at most {MAX_NUMBERS}")
    return [
        Measured(
            m.metric,
            m.value,
            m.spread if m.HasField("spread") else None,
            m.samples,
            m.reference,
            m.against,
            m.extractor,
            m.digest,
            tuple(m.cautions),
        )
        for m in messages
    ]


def part_bytes(message: pb.SubmitRequest | pb.FetchReply) -> list[int]:
    """Bytes on the wire for each part of a message; its framing counts with the last."""
    sizes = [part.ByteSize() for part in message.parts]
    sizes[-1] += framed(message.ByteSize()) - sum(sizes)
    return sizes
