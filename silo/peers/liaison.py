"""A silo's questions to the federator about the others, and its connections to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from feddiff.core import peer_wire
from feddiff.core.errors import FedDiffError
from feddiff.core.identity import silo_host
from feddiff.core.peers import Declared, Duty, Result
from feddiff.core.transfer import Sender
from feddiff.silo.client import PATIENCE_S, Client
from feddiff.silo.peers.tallies import Tallies
from feddiff.silo.renewal import Renewal
from feddiff.v1 import peer_pb2 as pb
from feddiff.v1 import peer_pb2_grpc

ANSWER_S = 30.0


def to_peer(silo: str, address: str, folder: Path, renewal: Renewal) -> Client:
    """A connection to another silo: both show certificates of the federation, the other end one of this name."""
    return Client(address, folder, renewal, peer_pb2_grpc.PeersStub, silo_host(silo))


def reach(silo: str, address: str, folder: Path, timeout_s: float = 10.0) -> None:
    """Whether a silo answers at an address, with a certificate of its name. Raises FederatorUnavailable if not."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    client = Client(address, folder, None, health_pb2_grpc.HealthStub, silo_host(silo))
    try:
        client.ask("Check", health_pb2.HealthCheckRequest(), timeout_s)
    finally:
        client.close()


class Liaison:
    """The ``Exchange`` service, asked with the certificate of a state folder. One caller at a time, except ``stop``."""

    def __init__(self, address: str, folder: Path, renewal: Renewal) -> None:
        self._client = Client(address, folder, renewal, peer_pb2_grpc.ExchangeStub)

    def duty(self, known: str, patience_s: float = PATIENCE_S) -> Duty:
        """What to do for others; waits while that is still ``known``. Raises ProtocolError, FederatorUnavailable."""
        request = pb.DutyRequest(known=known, patience_s=patience_s)
        return peer_wire.duty_from(self._client.ask("GetDuty", request, patience_s + ANSWER_S))

    def declare(self, round: int, revision: int, updates: Sequence[Declared]) -> None:
        """All of this silo's update is with its owners. Raises RoundClosed."""
        self._client.ask(
            "Declare", pb.Declaration(round=round, revision=revision, updates=peer_wire.declared_to(updates))
        )

    def folded(self, round: int, result: Result) -> None:
        self._client.ask("Fold", pb.Folded(round=round, **vars(result)))

    def not_folded(self, round: int, transfer: str, blamed: str, reason: str) -> None:
        """``blamed``: whose update is why; empty if none is."""
        self._client.ask("Fold", pb.Folded(round=round, transfer=transfer, silo=blamed, reason=reason[:1000]))

    def judge(self, round: int, duty: str, owner: str, finding: str, unreachable: bool) -> None:
        request = pb.Judgement(round=round, duty=duty, owner=owner, finding=finding[:1000], unreachable=unreachable)
        self._client.ask("Judge", request)

    def complain(self, round: int, silo: str, reason: str) -> None:
        self._client.ask("Complain", pb.Complaint(round=round, silo=silo, reason=reason[:1000]))

    def tell(self, tallies: Tallies) -> None:
        """What was counted; kept for the next time if the federator cannot be told."""
        for round, rows in tallies.take().items():
            try:
                self._client.ask("Tally", pb.Tallies(round=round, rows=peer_wire.tallies_to(rows)))
            except FedDiffError:
                tallies.give_back(round, rows)
                raise

    def keep(self, round: int, sender: Sender) -> None:
        """Send what the federator wants for its checkpoint."""
        self._client.submit(round, sender, lambda _: None)

    def stop(self) -> None:
        self._client.stop()

    def close(self) -> None:
        self._client.close()
