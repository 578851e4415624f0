"""Updates on their way in: one open upload for each silo, every part checked against the round.

Between the service and the journal: an update is in when every segment that the plan wants of a silo is committed,
on disk and in the journal.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

from feddiff.core.errors import NotSelected, ProtocolError, RoundClosed, TransferError
from feddiff.core.spool import Manifest, Transfer
from feddiff.core.transfer import Chunk, Commit, Receiver
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import Entry


class Intake:
    """Takes updates for a federation. At any time a silo has one upload; a newer one ends it."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._open: dict[str, Receiver] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def begin(self, silo: str, round: int, offered: Sequence[Manifest]) -> Receiver:
        """Answer an offer. Raises RoundClosed, NotSelected, ProtocolError."""
        federation = self._federation
        with federation.changed:
            federation.hear(silo)
            self._check_open(silo, round)
            expected = federation.uploads(silo)
            if list(offered) != expected:
                raise ProtocolError(f"{silo} offers other transfers than its task names")
        with self._locks[silo]:
            # The stream of before may not know yet that it is dead; two must never write one file.
            if silo in self._open:
                self._open[silo].close()
            self._open[silo] = receiver = Receiver(federation.spool(round), expected)
            standing = receiver.standing()
        for offer, at in enumerate(standing):
            if at.committed:
                # A crash may have come between the file and its row, and the silo will not commit again what is here.
                self._commit(silo, round, receiver, Commit(offer, at.digest))
        return receiver

    def take(self, silo: str, round: int, receiver: Receiver, part: Chunk | Commit) -> bool:
        """Keep a part of an upload; False if it was there already. Raises RoundError, TransferError, Revoked."""
        self._federation.hear(silo).phase = "submitting"
        with self._locks[silo]:
            if self._open.get(silo) is not receiver:
                raise TransferError(f"{silo} has opened another upload since")
            if isinstance(part, Chunk):
                self._check_round(silo, round)
                return receiver.chunk(part)
            self._check_open(silo, round)
            receiver.commit(part)
        return self._commit(silo, round, receiver, part)

    def _commit(self, silo: str, round: int, receiver: Receiver, part: Commit) -> bool:
        federation, manifest = self._federation, receiver.manifests[part.offer]
        stored = Transfer(manifest.path(receiver.folder))
        stored.close()
        cost = Entry(
            round,
            silo,
            manifest.segment,
            "up",
            parameters=manifest.parameters,
            raw=manifest.raw,
            encoded=stored.payload_bytes,
        )
        return federation.committed_segment(silo, round, manifest.segment, part.digest, cost)

    def _check_round(self, silo: str, round: int) -> None:
        """The part of the check that every chunk can afford: it asks no database."""
        if self._federation.open_round() != round:
            raise RoundClosed(f"round {round} is over; the update of {silo} came too late")

    def _check_open(self, silo: str, round: int) -> None:
        federation = self._federation
        self._check_round(silo, round)
        if federation.assignment(silo) is None:
            raise NotSelected(f"{silo} has no part in round {round}")
        rejected = federation.journal.rejections(round)
        if silo in rejected:
            raise RoundClosed(f"round {round} goes on without {silo}: {rejected[silo]}")
