"""A silo among others: its port, its duties, its deliveries. What the daemon of a silo knows of all of silo/peers.

Made from the options of the silo's administrator, who alone decides whether it listens; begun when the federation's
rules are known and say that silos average for each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.identity import parse_address
from feddiff.core.spool import Manifest, committed
from feddiff.core.transfer import Chunk, Commit
from feddiff.core.trust import check_serves
from feddiff.silo.local import Local
from feddiff.silo.peers.delivery import Away, Delivery, Told
from feddiff.silo.peers.errands import Errands
from feddiff.silo.peers.liaison import Liaison, to_peer
from feddiff.silo.peers.owner import Owner
from feddiff.silo.peers.server import serve
from feddiff.silo.peers.tallies import Tallies
from feddiff.silo.renewal import Renewal
from feddiff.silo.session import RoundWork

WILD = ("0.0.0.0", "::", "")
log = logging.getLogger("feddiff.silo")


class Circle:
    """Of one silo. Nothing of it runs before ``begin``."""

    def __init__(
        self,
        name: str,
        local: Local,
        federator: str,
        listen: str = "",
        advertise: str = "",
        accept: bool = False,
        renewal: Renewal | None = None,
    ) -> None:
        """``listen``: the port for other silos; empty: none. ``advertise``: where they find it, if that is elsewhere.

        ``accept``: consent to send to other silos and fetch from them, which listening implies. ``renewal``: of the
        silo's connection to the federator, whose certificate this shows to others. Raises ConfigError.
        """
        self.name, self._local, self._federator, self._listen = name, local, federator, listen
        self._accepts = accept or bool(listen)
        self.advertise = advertised(listen, advertise)
        self._renewal, self._begun = renewal, False

    def begin(self, config: FederationConfig) -> None:
        """Take part as the rules say. Raises ConfigError if the administrator's options do not go with them."""
        if self._begun or not config.peers:
            return
        told = f'in this federation silos send to each other (topology = "{config.topology}")'
        if config.topology == "peer" and not self._listen:
            raise ConfigError(f"{told}: start with --listen HOST:PORT, where they reach this one")
        if not self._accepts:
            raise ConfigError(
                f"{told}: start with --listen HOST:PORT, or with --accept-peers to send without listening"
            )
        folder = self._local.folder
        renewal = self._renewal or Renewal(folder)
        self.owner, self._tallies = Owner(self.name, folder, config), Tallies(self.name)
        self.delivery = Delivery(
            self.owner, self._tallies, lambda silo, address: to_peer(silo, address, folder, renewal)
        )
        self._liaison = Liaison(self._federator, folder, renewal)
        errands = (Liaison(self._federator, folder, renewal), self.owner, self.delivery, self._tallies, folder, config)
        self._errands = Errands(*errands)
        self._server = None
        if self._listen:
            check_serves(renewal.credentials.certificate, self.name)
            self._server = serve(self._listen, renewal, self.owner, self._tallies)
            log.info("listening for other silos at %s, which they reach as %s", self._listen, self.advertise)
        self._begun = True

    def joined(self) -> None:
        """The federator knows this silo."""
        if self._begun and not self._errands.running:
            self._errands.start()

    def deliver(self, work: RoundWork, ready: Callable[[Manifest], Path], told: Told) -> None:
        """Send an update to the owners of its ranges, and tell the federator. Raises Away, RoundError."""
        dealings = work.dealings
        assert dealings is not None
        try:
            declared = self.delivery.submit(work.round, work.up, dealings, ready, told)
        except Away as error:
            self._complain(work.round, error)
            raise
        self._liaison.declare(work.round, dealings.revision, declared)

    def gather(self, work: RoundWork, manifests: Sequence[Manifest], told: Told) -> None:
        """Bring ranges of versions, and hold the versions that they make. Raises Away, StoreError, TransferError."""
        local, dealings = self._local, work.dealings
        assert dealings is not None
        left: dict[str, set[Manifest]] = {each.segment: set() for each in manifests}
        for each in manifests:
            if not committed(local.inbox, each):
                left[each.segment].add(each)
        lock, made = threading.Lock(), []

        with ThreadPoolExecutor(1, "decode") as decoder:

            def whole(segment: str) -> None:
                pieces = [each for each in manifests if each.segment == segment]
                made.append(decoder.submit(local.assemble, pieces))

            def heard(part: Chunk | Commit, manifest: Manifest) -> None:
                told(part, manifest)
                if isinstance(part, Commit):
                    with lock:
                        left[manifest.segment].discard(manifest)
                        complete = not left[manifest.segment]
                    if complete:
                        whole(manifest.segment)

            for segment in [segment for segment, missing in left.items() if not missing]:
                whole(segment)
            try:
                self.delivery.fetch(work.round, manifests, dealings, local.inbox, heard)
            except Away as error:
                self._complain(work.round, error)
                raise
        for future in made:
            future.result()
        held = local.held()
        for segment in left:
            if segment in work.start and held[segment].is_not(work.start[segment]):
                raise StoreError(f"{segment} came out as other bits than most silos hold; is the disk sound?")

    def tell(self) -> None:
        """Let the federator know what was counted so far."""
        if self._begun:
            self._liaison.tell(self._tallies)

    def _complain(self, round: int, error: Away) -> None:
        for silo, reason in error.silos.items():
            self._liaison.complain(round, silo, reason)

    def stop(self) -> None:
        """End whatever is under way. Safe from any thread and signal handler."""
        if self._begun:
            self.delivery.stop()
            self._errands.stop()
            self._liaison.stop()

    def close(self) -> None:
        """Stop for good, and tell what was counted last, if the federator still listens."""
        if not self._begun:
            return
        self._begun = False
        self._errands.stop()
        self._errands.join()
        with contextlib.suppress(FedDiffError):
            self._liaison.tell(self._tallies)
        self.delivery.stop()
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
        self._liaison.close()


def advertised(listen: str, advertise: str) -> str:
    """Where other silos find one that listens. Raises ConfigError, saying what is missing."""
    if not listen:
        if advertise:
            raise ConfigError("--advertise says where a silo is reached that listens; give --listen, too")
        return ""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {listen}: HOST:PORT was expected, e.g. [::]:50052")
    if not advertise:
        if host.strip("[]") in WILD:
            raise ConfigError(f"--listen {listen} says no address; say with --advertise HOST:PORT where silos reach it")
        advertise = listen
    parse_address(advertise)
    return advertise
