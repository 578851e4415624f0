"""The ``Operator`` service: status and orders, on a socket that only the federator's user can open."""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path

import grpc

from feddiff.core.store import write_atomic
from feddiff.federator import upkeep
from feddiff.federator.federation import Federation
from feddiff.federator.lookout import left_out
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
        self._federation = federation

    def GetStatus(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return status(self._federation, live=True)

    def Pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._note("paused", "yes")

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._note("paused", "no")

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._note("stopping", "yes")

    def Evict(self, request: pb.EvictRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        self._federation.evict(request.silo, request.reason[:200] or "by the operator")
        return status(self._federation, live=True)

    def Reinstate(self, request: pb.ReinstateRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        self._federation.reinstate(request.silo)
        return status(self._federation, live=True)

    def _note(self, key: str, value: str) -> pb.StatusReply:
        with self._federation.changed:
            self._federation.journal.note(key, value)
            self._federation.changed.notify_all()
        time.sleep(0.2)  # the daemon decides anew, so that the answer shows what the order did
        return status(self._federation, live=True)


def status(federation: Federation, live: bool) -> pb.StatusReply:
    """Four truths for each silo, and what the federation waits for. ``live``: told by the running daemon."""
    now, outlook = time.monotonic(), upkeep.outlook(federation.folder, federation.roster)
    with federation.changed:
        current = federation.round
        collecting = current is not None and current.closed_at is None
        reachable = federation.reachable(now)
        assigned = {each.silo: each for each in current.plan.assignments} if current else {}
        planned = {name: each.up for name, each in assigned.items()} if collecting else {}
        rejections = federation.journal.rejections(current.round) if current else {}
        silos = []
        for silo in federation.roster.silos():
            known = federation.presence.get(silo.name)
            loss = federation.journal.newest(silo.name, "loss")
            down, up = (federation.links.rate(silo.name, way) for way in ("down", "up"))
            filtered = federation.verdicts.note(silo.name, federation.upcoming)
            sampled_out = "not sampled" if silo.name in reachable and left_out(federation, silo.name) else ""
            silos.append(
                pb.SiloStatus(
                    name=silo.name,
                    enrolled=silo.evicted is None,
                    reachable=silo.name in reachable,
                    planned=silo.name in planned and silo.name not in rejections,
                    training=known is not None and known.phase == "training" and silo.name in reachable,
                    phase=known.phase if known else "",
                    step=known.step if known else 0,
                    steps=known.steps if known else 0,
                    loss=math.nan if loss is None else loss,
                    samples=silo.samples,
                    silent_s=now - known.heard_at if known else math.nan,
                    committed=silo.name in federation.committed,
                    up=planned.get(silo.name, ()),
                    note=silo.evicted or rejections.get(silo.name, "") or filtered or sampled_out,
                    plan=assigned[silo.name].reason if silo.name in assigned else "",
                    down_mbit=down.mbit_s if down else 0.0,
                    up_mbit=up.mbit_s if up else 0.0,
                    certificate_days=federation.roster.certificates.days(silo.name, silo.serial),
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
            **vars(outlook),
        )
