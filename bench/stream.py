"""The reference: the bytes of a round over bare gRPC streams with mutual TLS, and nothing else.

A server and a client process for each silo, with production's messages and options: every client takes the whole model
as float32 and sends one of the same size. No disk, no checksum, no codec, no averaging: what gRPC takes by itself.

    server: python -m feddiff.bench.stream server FOLDER ADDRESS BYTES MESSAGE ROUNDS SILOS
    client: python -m feddiff.bench.stream client FOLDER ADDRESS BYTES MESSAGE ROUNDS NAME
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc

from feddiff.bench.loopback import free_port
from feddiff.bench.network import Place
from feddiff.bench.processes import Processes
from feddiff.bench.row import FEDERATOR, Row, observed
from feddiff.core import pki, wire
from feddiff.core.store import write_atomic
from feddiff.core.transfer import Chunk
from feddiff.v1 import federation_pb2_grpc, transfer_pb2

MESSAGES = (1 << 18, 1 << 20)
"""Payloads of a message that the reference is tried with; the faster one counts."""
PATIENCE_S = 900.0
ROW = "gRPC stream"
"""How its rows' names begin."""


def measure(parameters: int, message: int, rounds: int, places: Sequence[Place], folder: Path) -> Row:
    """One run with payloads of ``message`` bytes. Raises FedDiffError if it does not finish."""
    names = [f"silo-{number:02}" for number in range(1, len(places))]
    _certify(folder, places[0].address, names)
    address, size = f"{places[0].address}:{free_port()}", 4 * parameters
    row = Row(f"{ROW}, {message >> 10} KiB", len(names), parameters)
    with Processes(folder) as processes:

        def start(name: str, place: Place, role: str, who: str) -> None:
            asked = (role, str(folder), address, str(size), str(message), str(rounds), who)
            processes.start(name, [*place.prefix, sys.executable, "-m", "feddiff.bench.stream", *asked])

        start(FEDERATOR, places[0], "server", str(len(names)))
        processes.wait_for(FEDERATOR, "ready")
        ready = time.time()
        for name, place in zip(names, places[1:], strict=True):
            start(name, place, "client", name)
        for name in (FEDERATOR, *names):
            processes.wait(name, PATIENCE_S)
    told = [json.loads(line) for line in processes.log(FEDERATOR).read_text().splitlines()]
    begins, ends = ([each["at"] for each in told if each["event"] == event] for event in ("begin", "end"))
    payloads = [min(message, size - at) for at in range(0, size, message)]
    down = sum(wire.framed(_reply(index, bytes(each)).ByteSize()) for index, each in enumerate(payloads))
    up = sum(wire.framed(_request(index, bytes(each)).ByteSize()) for index, each in enumerate(payloads))
    return replace(
        observed(row, processes, begins[0], ends, ready), down_mb=down * len(names) / 1e6, up_mb=up * len(names) / 1e6
    )


def _certify(folder: Path, address: str, names: Sequence[str]) -> None:
    now = datetime.now(UTC)
    authority, authority_key = pki.create_authority("stream", now)
    key = pki.make_key()
    certificate = pki.issue_federator(authority, authority_key, key, [address], now)
    files = {"authority": authority, "server.key": key, "server.pem": certificate}
    for name in names:
        key = pki.make_key()
        request = pki.request_certificate(key, name)
        files[f"{name}.key"] = key
        files[f"{name}.pem"] = pki.issue_client(authority, authority_key, request, "silo", name, now)
    for file, content in files.items():
        write_atomic(folder / file, content)


def _reply(index: int, payload: bytes) -> transfer_pb2.FetchReply:
    return wire.parts_to([Chunk(0, index, payload, b"")], transfer_pb2.FetchReply)


def _request(index: int, payload: bytes) -> transfer_pb2.SubmitRequest:
    return wire.parts_to([Chunk(0, index, payload, b"")], transfer_pb2.SubmitRequest)


def _payload(message: transfer_pb2.FetchReply | transfer_pb2.SubmitRequest) -> int:
    return sum(len(part.chunk.payload) for part in message.parts)


def _tell(event: str) -> None:
    print(json.dumps({"event": event, "at": time.time()}), flush=True)


class Stream(federation_pb2_grpc.FederationServicer):
    """Hands out a model and takes one; a round begins when all silos ask and ends when all have sent theirs."""

    def __init__(self, model: bytes, message: int, rounds: int, silos: int) -> None:
        self._model, self._message, self._left = model, message, rounds
        self._asked = threading.Barrier(silos, lambda: _tell("begin"))
        self._sent = threading.Barrier(silos, self._end)
        self.finished = threading.Event()

    def _end(self) -> None:
        _tell("end")
        self._left -= 1
        if not self._left:
            self.finished.set()

    def Fetch(  # noqa: N802
        self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.FetchReply]:
        self._asked.wait()
        for index, at in enumerate(range(0, len(self._model), self._message)):
            yield _reply(index, self._model[at : at + self._message])

    def Submit(  # noqa: N802
        self, requests: Iterator[transfer_pb2.SubmitRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.SubmitReply]:
        if sum(_payload(each) for each in requests) == len(self._model):
            self._sent.wait()
            yield transfer_pb2.SubmitReply(committed=[transfer_pb2.Commit()])


def _serve(folder: Path, address: str, model: bytes, message: int, rounds: int, silos: int) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2 * silos), options=wire.SERVER_OPTIONS)
    identity = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
    authority = (folder / "authority").read_bytes()
    server.add_secure_port(address, grpc.ssl_server_credentials([identity], authority, require_client_auth=True))
    stream = Stream(model, message, rounds, silos)
    federation_pb2_grpc.add_FederationServicer_to_server(stream, server)
    server.start()
    _tell("ready")
    stream.finished.wait()
    server.stop(grace=10).wait()


def _call(folder: Path, address: str, model: bytes, message: int, rounds: int, name: str) -> None:
    files = (folder / "authority", folder / f"{name}.key", folder / f"{name}.pem")
    credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    with grpc.secure_channel(address, credentials, wire.CLIENT_OPTIONS) as channel:
        stub = federation_pb2_grpc.FederationStub(channel)
        for _ in range(rounds):
            took = sum(_payload(reply) for reply in stub.Fetch(transfer_pb2.FetchRequest()))
            if took != len(model):
                raise SystemExit(f"{took} bytes came, not {len(model)}")
            pieces = enumerate(range(0, len(model), message))
            list(stub.Submit(_request(index, model[at : at + message]) for index, at in pieces))


def main() -> None:
    role, folder, address, size, message, rounds, who = sys.argv[1:]
    model = (bytes(range(256)) * (int(size) // 256 + 1))[: int(size)]
    if role == "server":
        _serve(Path(folder), address, model, int(message), int(rounds), int(who))
    else:
        _call(Path(folder), address, model, int(message), int(rounds), who)


if __name__ == "__main__":
    main()
