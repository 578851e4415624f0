"""What comes down to a silo: weights, which become the versions that it holds, and public images, if it accepts any.

Between the daemon, which knows when, and the client, the inbox and the folders that it all ends in. Each transfer goes
on from what is safe on the disk, and is put to use as soon as it is whole, while the next ones arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from feddiff.core.config import FederationConfig
from feddiff.core.errors import StoreError
from feddiff.core.spool import Manifest, committed
from feddiff.core.transfer import Chunk, Commit, Receiver
from feddiff.silo.client import Client
from feddiff.silo.display import Display
from feddiff.silo.local import Local
from feddiff.silo.peers.circle import Circle
from feddiff.silo.session import RoundWork

if TYPE_CHECKING:
    from feddiff.core.pool import Portion


class Arrivals:
    """Of one silo."""

    def __init__(self, local: Local, client: Client, display: Display, circle: Circle | None = None) -> None:
        """``circle``: this silo among others, where silos average for each other."""
        self._local, self._client, self._display, self._circle = local, client, display, circle

    def fetch(self, work: RoundWork, manifests: Sequence[Manifest]) -> None:
        """Bring the held versions to where the round starts from: of the federator, and what it has not, of others."""
        sources = {} if work.dealings is None else work.dealings.sources
        of_others = [each for each in manifests if each.transfer in sources and sources[each.transfer].silo]
        if len(of_others) < len(manifests):
            self._fetch(work, [each for each in manifests if each not in of_others])
        if of_others and self._circle is not None:
            self._display.begin(f"round {work.round} fetching", sum(each.elements for each in of_others))
            try:
                self._circle.gather(work, of_others, self.advance)
            finally:
                self._display.end()

    def advance(self, part: Chunk | Commit, manifest: Manifest) -> None:
        """Show a part that has gone or come."""
        if isinstance(part, Chunk):
            self._display.advance(manifest.count(part.index))

    def _fetch(self, work: RoundWork, manifests: Sequence[Manifest]) -> None:
        local = self._local
        wanted: list[Manifest] = []
        for manifest in manifests:
            # What had arrived before a crash; a delta only if all before it had.
            if committed(local.inbox, manifest) and manifest.segment not in {each.segment for each in wanted}:
                local.apply(manifest)
            else:
                wanted.append(manifest)
        if wanted:
            self._receive(work.round, wanted, local.apply)
        for segment, held in local.held().items():
            if segment in work.start and held.is_not(work.start[segment]):
                raise StoreError(f"{segment} came out as other bits than the federator published; is the disk sound?")

    def accept(self, round: int, portion: Portion, config: FederationConfig) -> None:
        """Bring the public images that are offered."""
        local = self._local
        if committed(local.inbox, portion.manifest):
            local.pooled.take(portion, local.inbox, config)
        else:
            self._receive(round, [portion.manifest], lambda _: local.pooled.take(portion, local.inbox, config))

    def _receive(self, round: int, wanted: Sequence[Manifest], apply: Callable[[Manifest], None]) -> None:
        """Fetch these; each transfer is applied while the next ones arrive."""
        receiver = Receiver(self._local.inbox, wanted)
        applied: list[Future[None]] = []
        self._display.begin(f"round {round} fetching", sum(each.elements for each in wanted))
        with ThreadPoolExecutor(1, "decode") as decoder:  # one thread: the deltas of a segment follow each other

            def told(part: Chunk | Commit) -> None:
                manifest = wanted[part.offer]
                if isinstance(part, Chunk):
                    self._display.advance(manifest.count(part.index))
                else:
                    applied.append(decoder.submit(apply, manifest))

            try:
                self._client.fetch(round, receiver, told)
            finally:
                receiver.close()
                self._display.end()
        for each in applied:
            each.result()
