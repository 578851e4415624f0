"""A silo's own part among others: its update goes to the owners of its ranges, and new versions come from them.

All owners at a time, a connection each, so that a silo's line is full whoever is slow. What an owner has is not sent
again: after any interruption the same call goes on where it stood (core/transfer.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from feddiff.core.errors import FedDiffError, FederatorUnavailable, PeerUnavailable, RoundError
from feddiff.core.peers import Dealings, Declared, Tallied, kind_of
from feddiff.core.ranges import Cut, Encoded, checksums, range_of
from feddiff.core.spool import Manifest, Transfer, committed
from feddiff.core.transfer import Chunk, Commit, Receiver, Sender
from feddiff.silo.client import Client
from feddiff.silo.peers.owner import Owner
from feddiff.silo.peers.tallies import Tallies

PATIENCE_S = 20.0
"""How long an owner may not know yet that it is one."""
AGAIN_S = 0.3
Connect = Callable[[str, str], Client]
"""(silo, address): a connection to it."""
Told = Callable[[Chunk | Commit, Manifest], None]
log = logging.getLogger("feddiff.silo")


class Away(PeerUnavailable):
    """Another silo does not answer."""

    def __init__(self, silos: Mapping[str, str]) -> None:
        """``silos``: why, by name."""
        super().__init__("; ".join(f"{silo}: {reason}" for silo, reason in sorted(silos.items())))
        self.silos = dict(silos)


class Delivery:
    """Of one silo. Safe from several threads."""

    def __init__(self, owner: Owner, tallies: Tallies, connect: Connect) -> None:
        self._owner, self._tallies, self._connect = owner, tallies, connect
        self._stopped = threading.Event()
        self._clients: dict[tuple[str, str], Client] = {}
        self._busy: set[Client] = set()
        self._lock = threading.RLock()  # ``stop`` may interrupt whoever holds it

    def stop(self) -> None:
        """End whatever is under way. Safe from any thread and signal handler."""
        self._stopped.set()
        with self._lock:
            busy, idle = list(self._busy), list(self._clients.values())
            self._clients.clear()
        for client in busy:
            client.stop()
        for client in idle:
            client.close()

    def submit(
        self, round: int, up: Sequence[Manifest], dealings: Dealings, ready: Callable[[Manifest], Path], told: Told
    ) -> list[Declared]:
        """Send each owner its ranges of these transfers; returns what the federator is to be told.

        ``ready`` waits until a transfer is encoded, and says where it lies. Raises Away for owners that cannot be
        reached, whatever ``ready`` raises, and RoundError.
        """
        plans: dict[str, list[tuple[Manifest, Manifest]]] = {}
        for whole in up:
            for each, owner in sorted(dealings.owners.items()):
                if each.segment == whole.segment:
                    plans.setdefault(owner, []).append((each.of(whole), whole))
        self._all(
            {owner: partial(self._send, round, owner, plan, dealings, ready, told) for owner, plan in plans.items()}
        )
        declared = []
        for whole in up:
            with contextlib.closing(Transfer(ready(whole))) as transfer:
                declared.append(Declared(whole, checksums(transfer), transfer.payload_bytes))
        return declared

    def _send(
        self,
        round: int,
        owner: str,
        plan: Sequence[tuple[Manifest, Manifest]],
        dealings: Dealings,
        ready: Callable[[Manifest], Path],
        told: Told,
    ) -> None:
        whole = dict(plan)
        manifests = [manifest for manifest, _ in plan]

        def open(manifest: Manifest) -> Encoded:
            return Cut(Transfer(ready(whole[manifest])), range_of(manifest))

        began = time.monotonic()

        def count(part: Chunk | Commit) -> None:
            nonlocal began
            manifest, now = manifests[part.offer], time.monotonic()
            values, size = (manifest.elements, 0) if isinstance(part, Commit) else (0, len(part.payload))
            row = Tallied(self._owner.name, owner, manifest.segment, "update", values, size, 0, now - began)
            self._tallies.add(round, row)
            began = now
            told(part, manifest)

        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                with contextlib.closing(Sender(manifests, open)) as sender:
                    if owner == self._owner.name:
                        receiver = self._owner.begin(owner, round, manifests)
                        for part in sender.parts(receiver.standing()):
                            self._owner.take(owner, receiver, part)
                            count(part)
                    else:
                        with self._connected(owner, dealings) as client:
                            client.submit(round, sender, count)
                return
            except RoundError:  # it has yet to hear of its ranges, or knows more than this silo
                if time.monotonic() > until or self._stopped.wait(AGAIN_S):
                    raise

    def fetch(self, round: int, wanted: Sequence[Manifest], dealings: Dealings, inbox: Path, told: Told) -> None:
        """Bring ranges of new versions into a folder. Raises as ``submit``."""
        plans: dict[str, list[Manifest]] = {}
        for each in wanted:
            if not committed(inbox, each):
                plans.setdefault(dealings.sources[each.transfer].silo, []).append(each)
        self._all({silo: partial(self.take, round, silo, mine, dealings, inbox, told) for silo, mine in plans.items()})

    def take(
        self, round: int, silo: str, manifests: Sequence[Manifest], dealings: Dealings, folder: Path, told: Told
    ) -> None:
        """Bring transfers of one silo into a folder, and compare them with the digests that are known."""
        receiver = Receiver(folder, manifests, durable=False)

        def count(part: Chunk | Commit) -> None:
            manifest = manifests[part.offer]
            kind = kind_of(manifest)
            values, size = (manifest.elements, 0) if isinstance(part, Commit) else (0, len(part.payload))
            segment, values = (manifest.segment, values) if kind == "result" else ("", 0)
            self._tallies.add(round, Tallied(silo, self._owner.name, segment, kind, values, size))
            if isinstance(part, Commit):
                self._check(silo, part, manifest, dealings, folder)
            told(part, manifest)

        with contextlib.closing(receiver):
            if silo == self._owner.name:
                with contextlib.closing(Sender(manifests, lambda each: self._owner.open(silo, each))) as sender:
                    for part in sender.parts(receiver.standing()):
                        _ = receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
                        told(part, manifests[part.offer])
            else:
                with self._connected(silo, dealings) as client:
                    client.fetch(round, receiver, count)

    def _check(self, silo: str, part: Commit, manifest: Manifest, dealings: Dealings, folder: Path) -> None:
        """Compare what a silo gave with what it told the federator of, if it is that."""
        source = dealings.sources.get(manifest.transfer)
        if source is not None and source.digest and source.digest != part.digest:
            manifest.path(folder).unlink(missing_ok=True)
            raise Away({silo: f"it gave another {manifest.transfer} than it told the federator of"})

    @contextlib.contextmanager
    def _connected(self, silo: str, dealings: Dealings) -> Iterator[Client]:
        """A connection, which is kept for the next time."""
        address = dealings.addresses.get(silo, "")
        if not address:
            raise Away({silo: "it does not listen"})
        with self._lock:
            client = self._clients.pop((silo, address), None)
        try:
            client = client or self._connect(silo, address)
            with self._lock:
                self._busy.add(client)
            if self._stopped.is_set():
                client.stop()
            yield client
        except FederatorUnavailable as error:
            raise Away({silo: str(error)}) from None
        else:
            with self._lock:  # kept for the next time, unless another call was faster
                self._busy.discard(client)
                if (silo, address) not in self._clients and not self._stopped.is_set():
                    self._clients[silo, address], client = client, None
        finally:
            if client is not None:
                with self._lock:
                    self._busy.discard(client)
                client.close()

    def _all(self, calls: Mapping[str, Callable[[], None]]) -> None:
        """One thread for each; all come to their end. Raises what a person must act on first, then who is away."""
        if not calls:
            return
        with ThreadPoolExecutor(len(calls), "deal") as pool:
            futures: dict[str, Future[None]] = {name: pool.submit(call) for name, call in calls.items()}
        errors = [error for error in (each.exception() for each in futures.values()) if error is not None]
        away = {silo: why for error in errors if isinstance(error, Away) for silo, why in error.silos.items()}
        for error in errors:
            if not isinstance(error, FedDiffError):
                raise error
        if away:
            raise Away(away)
        if errors:
            raise errors[0]
