from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core import errors, wire
from feddiff.core.errors import FedDiffError, FederatorUnavailable, IdentityError, ProtocolError, TooLarge
from feddiff.core.spool import Manifest
from feddiff.core.transfer import MAX_MANIFESTS, Chunk, Commit, Standing
from feddiff.v1 import federation_pb2, transfer_pb2

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedDiffError)]
SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
MANIFEST = Manifest("down.decoder.0.2-3", "decoder.0", 2, 3, "fp32", 12, 4)
UNKNOWN_FIELD = b"\xba\x3e\x05later"
"""Field 999, of a newer peer (length-delimited)."""


class Echo:
    """A service of all four shapes that answers with what it is sent, or raises what it is told."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str, FedDiffError]] = []
        self.raises: Exception | None = None
        server = grpc.server(
            futures.ThreadPoolExecutor(4),
            interceptors=[wire.ErrorInterceptor(lambda *refusal: self.refused.append(refusal))],
            options=wire.SERVER_OPTIONS,
        )
        handlers = {
            "unary_unary": grpc.unary_unary_rpc_method_handler(lambda one, _: self.join([one])),
            "stream_unary": grpc.stream_unary_rpc_method_handler(lambda many, _: self.join(many)),
            "unary_stream": grpc.unary_stream_rpc_method_handler(lambda one, _: self.each([one])),
            "stream_stream": grpc.stream_stream_rpc_method_handler(lambda many, _: self.each(many)),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("feddiff.Echo", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.server = server
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", wire.CLIENT_OPTIONS)

    def join(self, parts: Any) -> bytes:
        joined = b"".join(parts)
        if self.raises:
            raise self.raises
        return joined

    def each(self, parts: Any) -> Iterator[bytes]:
        yield from parts
        if self.raises:
            raise self.raises

    def ask(self, shape: str, messages: list[bytes], got: list[bytes] | None = None) -> list[bytes]:
        """The answers; those before an error are also in ``got``. Raises what a silo's client raises."""
        method: Any = getattr(self.channel, shape)(f"/feddiff.Echo/{shape}")
        request = iter(messages) if shape.startswith("stream") else messages[0]
        got = [] if got is None else got
        try:
            answer = method(request, timeout=20)
            for message in answer if shape.endswith("stream") else [answer]:
                got.append(message)
        except grpc.RpcError as error:
            raise wire.raised(error) from None
        return got


@pytest.fixture(scope="module")
def running() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.channel.close()
    echo.server.stop(None).wait()


@pytest.fixture
def echo(running: Echo) -> Echo:
    running.raises, running.refused = None, []
    return running


@pytest.mark.parametrize("shape", SHAPES)
def test_without_an_error_the_interceptor_is_not_there(echo: Echo, shape: str) -> None:
    messages = [b"one", b"two"] if shape.startswith("stream") else [b"one"]
    expected = messages if shape.endswith("stream") else [b"".join(messages)]
    assert echo.ask(shape, messages) == expected
    assert echo.refused == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_error_arrives_as_its_own_class(echo: Echo, shape: str, kind: type[FedDiffError]) -> None:
    echo.raises = kind("clinic-a: version 3, but 4 was due")
    with pytest.raises(FedDiffError) as caught:
        echo.ask(shape, [b"x"])
    if issubclass(
        kind, errors.StoreError
    ):  # a disk is its owner's affair: the other end only waits, and learns no path
        assert type(caught.value) is errors.FederatorUnavailable
        assert "clinic-a" not in str(caught.value)
    else:
        assert type(caught.value) is kind
        assert str(caught.value) == "clinic-a: version 3, but 4 was due"
    [(method, peer, error)] = echo.refused  # told before the disguise
    assert (method, error) == (shape, echo.raises)
    assert peer.startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.IdentityError, grpc.StatusCode.PERMISSION_DENIED),
        (errors.Revoked, grpc.StatusCode.PERMISSION_DENIED),
        (errors.ProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RoundClosed, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.OffsetMismatch, grpc.StatusCode.ABORTED),
        (errors.NotFinite, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.FederatorUnavailable, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_others_see_a_fitting_status(echo: Echo, kind: type[FedDiffError], status: grpc.StatusCode) -> None:
    echo.raises = kind("facts")
    with pytest.raises(grpc.RpcError) as caught:
        echo.channel.unary_unary("/feddiff.Echo/unary_unary")(b"x", timeout=20)
    assert (caught.value.code(), caught.value.details()) == (status, "facts")


@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
def test_what_was_sent_before_the_error_arrives(echo: Echo, shape: str) -> None:
    echo.raises = errors.RoundClosed("round 3 is over")
    messages = [b"one", b"two"] if shape.startswith("stream") else [b"one"]
    got: list[bytes] = []
    with pytest.raises(errors.RoundClosed):
        echo.ask(shape, messages, got)
    assert got == messages


@pytest.mark.parametrize("facts", ["", "Köln, 100 % \n – naïve", "x" * 1000])
def test_facts_arrive_as_they_were(echo: Echo, facts: str) -> None:
    echo.raises = ProtocolError(facts)
    with pytest.raises(ProtocolError) as caught:
        echo.ask("unary_unary", [b"x"])
    assert str(caught.value) == facts


def test_facts_are_bounded(echo: Echo) -> None:
    echo.raises = ProtocolError("y" * 100_000)
    with pytest.raises(ProtocolError, match=r"^y{1000}$"):
        echo.ask("unary_unary", [b"x"])


def test_a_subclass_that_the_other_end_does_not_know_is_still_refused(echo: Echo) -> None:
    class OfTomorrow(ProtocolError):
        """A newer peer's error."""

    echo.raises = OfTomorrow("whatever")
    with pytest.raises(FedDiffError, match="whatever"):
        echo.ask("unary_unary", [b"x"])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bug_at_the_other_end_is_an_absence_and_not_a_refusal(echo: Echo, shape: str) -> None:
    echo.raises = ZeroDivisionError("oops")
    with pytest.raises(FederatorUnavailable):
        echo.ask(shape, [b"x"])
    assert echo.refused == []


def test_nobody_there() -> None:
    with grpc.insecure_channel("127.0.0.1:1", wire.CLIENT_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/feddiff.Echo/unary_unary")(b"x", timeout=5)
        assert type(wire.raised(caught.value)) is FederatorUnavailable


def test_a_method_that_the_other_end_does_not_have(echo: Echo) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        echo.channel.unary_unary("/feddiff.Echo/later")(b"x", timeout=5)
    assert type(wire.raised(caught.value)) is ProtocolError


def test_messages_are_bounded_at_both_ends(echo: Echo) -> None:
    assert len(echo.ask("unary_unary", [bytes(wire.MAX_MESSAGE)])[0]) == wire.MAX_MESSAGE
    with pytest.raises(TooLarge):
        echo.ask("unary_unary", [bytes(wire.MAX_MESSAGE + 1)])
    with pytest.raises(TooLarge):
        echo.ask("stream_unary", [bytes(wire.MAX_MESSAGE - 1), bytes(2)])


def test_a_manifest_crosses_unchanged() -> None:
    largest = Manifest("a" * 128, "b" * 128, -1, (1 << 63) - 1, "bf16", 1 << 44, 1 << 20)
    sent = [wire.manifest_to(manifest) for manifest in (MANIFEST, largest)]
    assert wire.manifests_from(type(each).FromString(each.SerializeToString()) for each in sent) == [MANIFEST, largest]


@pytest.mark.parametrize(
    ("field", "value", "refusal"),
    [
        ("transfer", "../../etc/passwd", ProtocolError),
        ("transfer", "", ProtocolError),
        ("transfer", "a" * 129, ProtocolError),
        ("segment", "a/b", ProtocolError),
        ("codec", "gzip", ProtocolError),
        ("base_version", -(1 << 63), ProtocolError),
        ("base_version", 3, ProtocolError),
        ("elements", 0, TooLarge),
        ("elements", (1 << 64) - 1, TooLarge),
        ("chunk_elements", 0, TooLarge),
        ("chunk_elements", (1 << 32) - 1, TooLarge),
    ],
)
def test_a_manifest_from_the_wire_is_checked(field: str, value: Any, refusal: type[Exception]) -> None:
    message = wire.manifest_to(MANIFEST)
    setattr(message, field, value)
    with pytest.raises(refusal):
        wire.manifests_from([message])


def test_an_empty_manifest_is_none() -> None:
    with pytest.raises(ProtocolError):
        wire.manifests_from([transfer_pb2.Manifest()])


def test_an_offer_is_bounded() -> None:
    messages = [wire.manifest_to(replace(MANIFEST, transfer=f"t{number}")) for number in range(MAX_MANIFESTS + 1)]
    assert len(wire.manifests_from(messages[1:])) == MAX_MANIFESTS
    with pytest.raises(TooLarge):
        wire.manifests_from(messages)


@given(st.lists(st.builds(Standing, st.integers(0, 1 << 24), st.booleans(), st.binary(max_size=32)), max_size=5))
def test_standings_cross_unchanged(standing: list[Standing]) -> None:
    text = wire.standing_to(standing).SerializeToString()
    assert wire.standing_from(transfer_pb2.Standing.FromString(text)) == standing


numbers = st.integers(0, (1 << 32) - 1)
parts = st.builds(Chunk, numbers, numbers, st.binary(max_size=50), st.binary(max_size=16)) | st.builds(
    Commit, numbers, st.binary(max_size=32)
)


@given(st.lists(parts, min_size=1, max_size=4))
def test_parts_cross_unchanged_both_ways(several: list[Chunk | Commit]) -> None:
    for carrier in (transfer_pb2.SubmitRequest, transfer_pb2.FetchReply):
        assert wire.parts_from(carrier.FromString(wire.parts_to(several, carrier).SerializeToString())) == several


@given(st.lists(parts, min_size=1, max_size=4))
def test_every_byte_of_a_message_counts_for_one_of_its_parts(several: list[Chunk | Commit]) -> None:
    message = wire.parts_to(several, transfer_pb2.FetchReply)
    sizes = wire.part_bytes(message)
    assert sum(sizes) == wire.framed(message.ByteSize())
    assert len(sizes) == len(several)
    assert min(sizes) >= 0


def test_a_message_of_countless_parts_is_refused() -> None:
    parts = [Commit(0, b"")] * (wire.MAX_PARTS + 1)
    assert len(wire.parts_from(wire.parts_to(parts[1:], transfer_pb2.SubmitRequest))) == wire.MAX_PARTS
    with pytest.raises(TooLarge):
        wire.parts_from(wire.parts_to(parts, transfer_pb2.SubmitRequest))


@given(parts)
def test_what_a_newer_peer_adds_is_passed_over(part: Chunk | Commit) -> None:
    text = wire.parts_to([part], transfer_pb2.FetchReply).SerializeToString() + UNKNOWN_FIELD
    assert wire.parts_from(transfer_pb2.FetchReply.FromString(text)) == [part]


def test_unknown_fields_of_a_manifest_and_a_task_are_passed_over() -> None:
    manifest = wire.manifest_to(MANIFEST).SerializeToString() + UNKNOWN_FIELD
    assert wire.manifests_from([transfer_pb2.Manifest.FromString(manifest)]) == [MANIFEST]
    task = federation_pb2.Task(id="wait", wait=federation_pb2.Wait()).SerializeToString() + UNKNOWN_FIELD
    assert federation_pb2.Task.FromString(task).WhichOneof("kind") == "wait"


@pytest.mark.parametrize(
    "message",
    [
        transfer_pb2.SubmitRequest(),
        transfer_pb2.SubmitRequest(offer=transfer_pb2.Offer()),
        transfer_pb2.FetchReply(),
        transfer_pb2.FetchReply(parts=[transfer_pb2.Part()]),
        transfer_pb2.FetchReply.FromString(UNKNOWN_FIELD),
    ],
)
def test_a_message_without_a_part_is_refused(message: Any) -> None:
    with pytest.raises(ProtocolError):
        wire.parts_from(message)


class Anonymous:
    """A call without a client certificate, as gRPC shows it."""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


def test_a_caller_without_a_certificate_is_refused() -> None:
    with pytest.raises(IdentityError, match="certificate"):
        wire.caller(Anonymous(), "silo")
