"""The ``Operator`` service: status and orders, on a socket that only the federator's user can open."""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path

import grpc

from feddiff.core.store import write_atomic
from feddiff.federator import outbox, upkeep
from feddiff.federator.federation import Federation
from feddiff.federator.operators import CONSOLE
from feddiff.federator.orders import Orders
from feddiff.federator.standing import standings
from feddiff.v1 import operator_pb2 as pb
from feddiff.v1 import operator_pb2_grpc

ADDRESS_FILE = "operator.address"
_LONGEST_SOCKET = 100  # sun_path holds 108 bytes (unix(7))


def choose_address(folder: Path) -> str:
    """A socket path in the state folder, or in a private temporary one where that is too long; noted in a file."""
    path = folder.resolve() / "operator.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        path = Path(tempfile.mkdtemp(prefix="feddiff-")) / "operator.sock"
    path.unlink(missing_ok=True)
    address = f"unix:{path}"
    write_atomic(folder / ADDRESS_FILE, address.encode())
    return address


class OperatorService(operator_pb2_grpc.OperatorServicer):
    """Serves the person who runs the federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation, self._orders = federation, Orders(federation)

    def GetStatus(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return status(self._federation, live=True)

    def Pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._given("pause")

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._given("resume")

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._given("stop")

    def Evict(self, request: pb.EvictRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._given("evict", request.silo, request.reason)

    def Reinstate(self, request: pb.ReinstateRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._given("reinstate", request.silo)

    def _given(self, what: str, silo: str = "", reason: str = "") -> pb.StatusReply:
        self._orders.give(CONSOLE, what, silo, reason)
        if not silo:
            time.sleep(0.2)  # the daemon decides anew, so that the answer shows what the order did
        return status(self._federation, live=True)


def status(federation: Federation, live: bool) -> pb.StatusReply:
    """Four truths for each silo, and what the federation waits for. ``live``: told by the running daemon."""
    now, outlook = time.monotonic(), upkeep.outlook(federation.folder, federation.roster)
    with federation.changed:
        current = federation.round
        silos = []
        for each in standings(federation, now):
            loss = federation.journal.newest(each.name, "loss")
            down, up = (federation.links.rate(each.name, way) for way in ("down", "up"))
            silos.append(
                pb.SiloStatus(
                    name=each.name,
                    enrolled=each.enrolled,
                    reachable=each.reachable,
                    planned=each.planned,
                    training=each.training,
                    phase=each.phase,
                    step=each.step,
                    steps=each.steps,
                    loss=math.nan if loss is None else loss,
                    samples=each.silo.samples,
                    silent_s=each.silent_s,
                    committed=each.committed,
                    up=each.up,
                    note=each.note,
                    plan=each.assignment.reason if each.assignment else "",
                    down_mbit=down.mbit_s if down else 0.0,
                    up_mbit=up.mbit_s if up else 0.0,
                    certificate_days=federation.roster.certificates.days(each.name, each.silo.serial),
                )
            )
        reason = federation.decision.reason if live else "the federator is not running"
        phase = "finished" if federation.finished else federation.phase if live else "stopped"
        return pb.StatusReply(
            federation=federation.config.name,
            phase=phase,
            round=current.round if current else 0,
            rounds=federation.config.rounds.count,
            reason=reason,
            silos=silos,
            wire_down=federation.ledger.wire("down"),
            wire_up=federation.ledger.wire("up"),
            config_digest=federation.config.digest,
            policy=federation.config.plan,
            plan=current.plan.reason if current else "",
            audit=outbox.told(federation.database),
            **vars(outlook),
        )
