"""The contract on the wire, against a running federator: what peers of another make or mood may do to it."""

from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stage import Stage

from feddiff.core import wire
from feddiff.core.errors import ProtocolError, TooLarge
from feddiff.v1 import federation_pb2 as pb
from feddiff.v1 import federation_pb2_grpc, transfer_pb2

SERVICE = "/feddiff.v1.Federation"
UNKNOWN_FIELD = b"\x9a\x06\x03new"
"""Field 99, length-delimited: what a newer peer may send."""


def test_a_federation_survives_odd_peers(stage: Stage) -> None:
    """One silo is normal; the other one is this test."""
    server = stage.found(rounds=1).serve()
    state = stage.enrol("hospital-b")
    channel = stage.channel(state)
    stub = federation_pb2_grpc.FederationStub(channel)

    # The standard health service, over the same mutual TLS.
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "feddiff.v1.Federation", "feddiff.v1.Enrollment"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

    # Another protocol, another cut of the model.
    with pytest.raises(grpc.RpcError) as caught:
        stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL + 6, software="feddiff 9.9"), timeout=10)
    refusal = wire.raised(caught.value)
    assert isinstance(refusal, ProtocolError)
    assert f"protocol {wire.PROTOCOL} " in str(refusal)
    assert f"the silo {wire.PROTOCOL + 6} (feddiff 9.9)" in str(refusal)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Join(pb.JoinRequest(protocol=wire.PROTOCOL, samples=1, layout_digest="00" * 32), timeout=10)
    assert "other segments" in str(wire.raised(caught.value))

    # Without a number of images there is no weight to average with.
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetTask(pb.TaskRequest(), timeout=10)
    assert "has not joined" in str(wire.raised(caught.value))
    assert not stage.silo_status("hospital-b")["reachable"]

    # A message over the limit, one of garbage, a method that is not there.
    with pytest.raises(grpc.RpcError) as caught:
        stub.Report(pb.ReportRequest(phase="x" * (wire.MAX_MESSAGE + 1)), timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(wire.raised(caught.value), TooLarge)
    for method, code in (("Join", grpc.StatusCode.INTERNAL), ("Sing", grpc.StatusCode.UNIMPLEMENTED)):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"{SERVICE}/{method}")(b"\xff\xff\xff\xff", timeout=10)
        assert caught.value.code() is code
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Submit(iter([transfer_pb2.SubmitRequest()]), timeout=10))
    assert "has not joined" in str(wire.raised(caught.value))

    # Fields that this version does not know are passed over.
    join = pb.JoinRequest(protocol=wire.PROTOCOL, samples=4, layout_digest=stage.layout.digest)
    answer = channel.unary_unary(f"{SERVICE}/Join")(join.SerializeToString() + UNKNOWN_FIELD, timeout=10)
    assert pb.JoinReply.FromString(answer).config_digest == stage.status()["config_digest"]

    # The task is state: asked again, it is the same; held back only while the silo knows it.
    other = stage.hospital("hospital-a")
    other.gate[1] = threading.Event()
    other.start()
    stage.until("the round is open", lambda: other.training(1))
    tasks = [stub.GetTask(pb.TaskRequest(), timeout=10) for _ in range(3)]
    assert tasks[0].WhichOneof("kind") == "round"
    assert all((task.id, task.round) == (tasks[0].id, tasks[0].round) for task in tasks)
    assert stub.GetTask(pb.TaskRequest(known_task="round-0", patience_s=25), timeout=10).id == "round-1"
    assert stub.GetTask(pb.TaskRequest(known_task="round-1", patience_s=0.1), timeout=10).id == "round-1"
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetTask(pb.TaskRequest(held=[pb.Held(segment="lobby", version=0)]), timeout=10)
    assert "'lobby' version 0, which cannot be" in str(wire.raised(caught.value))
    # Bits that were never published are not believed: the task brings the segment anew.
    for foreign in (pb.Held(segment="decoder.0", version=7), pb.Held(segment="decoder.0", version=0, digest="0" * 64)):
        task = stub.GetTask(pb.TaskRequest(held=[foreign]), timeout=10)
        assert "decoder.0" in [manifest.segment for manifest in task.round.down]

    # After all that, the same silo behaves, and the federation ends as if nothing had been.
    silo = stage.noise("hospital-b", samples=4)
    other.gate[1].set()
    assert [silo.wait(), server.wait()] == [0, 0]
    assert stage.opened().journal.rounds()[0].silos == ("hospital-a", "hospital-b")
    assert server.told().count("Traceback") == 1, "gRPC's own, for the garbage"


def test_the_operator_steers(stage: Stage) -> None:
    server = stage.found(rounds=9, more="quorum = 1").serve()
    silos = [stage.hospital(name) for name in ("hospital-a", "hospital-b")]
    first, second = silos
    second.gate = {number: threading.Event() for number in (1, 2, 3)}
    for silo in silos:
        silo.start()
    stage.until("round 1 trains", lambda: second.training(1))
    (before,) = [each for each in stage.status()["silos"] if each["name"] == "hospital-b"]
    assert (before["enrolled"], before["planned"], before["training"], before["committed"]) == (True, True, True, False)

    stage.operate("pause")
    second.gate[1].set()
    stage.until("the pause", lambda: stage.status()["phase"] == "paused")
    status = stage.status()
    assert (status["round"], status["reason"]) == (1, "paused by the operator before round 2")
    assert stage.opened().journal.current() == dict.fromkeys(stage.layout.names, 1), "the open round went to its end"
    assert not first.training(2)

    assert "round 2" in stage.operate("resume")
    stage.until("round 2 trains", lambda: second.training(2))
    second.gate[2].set()
    stage.until("round 3 trains", lambda: second.training(3))
    stage.operate("stop")
    assert server.code is None, "the open round goes to its end"
    second.gate[3].set()
    assert server.wait() == 0
    stage.until("all hear that it is over", lambda: first.finished and second.finished)
    assert [each.silos for each in stage.opened().journal.rounds()] == [("hospital-a", "hospital-b")] * 3
    assert stage.opened().journal.fact("finished") == "stopped by the operator before round 4"
    assert stage.status()["phase"] == "finished"
