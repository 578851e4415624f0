"""Moving segments: an offer of manifests, chunks, commits. Knows files and order; not sockets, and not who is who.

    sender                                   receiver
    offer (manifests)              ──►       standing: chunks that are safe, transfers that are committed
    chunks from there on, commit   ──►       committed (digest)

Both ends may die at any point; the next attempt begins with the receiver's standing, so what is safe is not sent again.
The idea of a content store with ``commit(digest)`` and resume by offset is containerd's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from feddiff.core.errors import DigestMismatch, ProtocolError, TooLarge
from feddiff.core.ranges import Encoded
from feddiff.core.spool import Manifest, Spool, committed

MAX_MANIFESTS = 4096
BATCH_BYTES = 256 << 10
"""Parts of together this size travel in one message: small ones cost as much time each as large ones."""
PART_BYTES = 64
"""What a part counts for besides its payload, so that a message has a bounded number of them."""


@dataclass(frozen=True)
class Standing:
    """How far a receiver is with one transfer."""

    chunks: int = 0
    committed: bool = False
    digest: bytes = b""


@dataclass(frozen=True)
class Chunk:
    """One piece of transfer number ``offer`` of an offer."""

    offer: int
    index: int
    payload: bytes
    checksum: bytes


@dataclass(frozen=True)
class Commit:
    """The end of one transfer."""

    offer: int
    digest: bytes


class Sender:
    """One end of an offer: yields what the other end still lacks.

    ``open`` is asked for a transfer when its turn comes, so that it may still be in the making while others travel.
    """

    def __init__(self, manifests: Sequence[Manifest], open: Callable[[Manifest], Encoded]) -> None:
        self.manifests, self._open = tuple(manifests), open
        self.transfers: dict[int, Encoded] = {}
        """Those whose turn has come, by their number in the offer."""
        self.reading: Manifest | None = None
        """The one whose turn it is: what an error in ``parts`` is about."""

    def close(self) -> None:
        for transfer in self.transfers.values():
            transfer.close()

    def parts(self, standing: Sequence[Standing]) -> Iterator[Chunk | Commit]:
        """Chunks from where the receiver stands, each transfer ended by its commit.

        A transfer that the receiver has committed is passed over. Raises ProtocolError, DigestMismatch, and whatever
        ``open`` raises.
        """
        if len(standing) != len(self.manifests):
            raise ProtocolError(f"{len(standing)} standings answer an offer of {len(self.manifests)} transfers")
        for offer, (manifest, at) in enumerate(zip(self.manifests, standing, strict=True)):
            self.reading = manifest
            transfer = self.transfers[offer] = self._open(manifest)
            if at.committed:
                if at.digest != transfer.digest:
                    raise DigestMismatch(f"{manifest.transfer}: the other end committed something else")
                continue
            if at.chunks > manifest.chunks:
                raise ProtocolError(f"{manifest.transfer}: the other end has {at.chunks} chunks of it")
            for index, payload, check in transfer.chunks(at.chunks):
                yield Chunk(offer, index, payload, check)
            yield Commit(offer, transfer.digest)


def batches(parts: Iterable[Chunk | Commit]) -> Iterator[list[Chunk | Commit]]:
    """The same parts in the same order, as many together as fit into ``BATCH_BYTES``, at least one."""
    batch: list[Chunk | Commit] = []
    size = 0
    for part in parts:
        length = PART_BYTES + (len(part.payload) if isinstance(part, Chunk) else 0)
        if batch and size + length > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += length
    if batch:
        yield batch


class Receiver:
    """The other end: takes parts in any number of attempts and keeps them in a folder."""

    def __init__(self, folder: Path, manifests: Sequence[Manifest], durable: bool = True) -> None:
        """``durable``: what is committed must outlast a power cut, for nobody will send it again."""
        self._durable = durable
        if len(manifests) > MAX_MANIFESTS:
            raise TooLarge(f"{len(manifests)} transfers in one offer; at most {MAX_MANIFESTS}")
        if len({manifest.transfer for manifest in manifests}) < len(manifests):
            raise ProtocolError("an offer names one transfer twice")  # two spools would write one file
        self.folder, self.manifests = folder, tuple(manifests)
        self._spools: dict[int, Spool] = {}

    def standing(self) -> list[Standing]:
        """Where each transfer stands."""
        return [self._standing(offer) for offer in range(len(self.manifests))]

    def _standing(self, offer: int) -> Standing:
        done = committed(self.folder, self.manifests[offer])
        return Standing(self.manifests[offer].chunks, True, done) if done else Standing(self._spool(offer).chunks)

    def chunk(self, part: Chunk) -> bool:
        """Keep a chunk; False if it was there already. Raises TransferError."""
        if part.offer < len(self.manifests) and committed(self.folder, self.manifests[part.offer]):
            return False
        return self._spool(part.offer).append(part.index, part.payload, part.checksum)

    def commit(self, part: Commit) -> bool:
        """Make a transfer count; False if it did already, with the same digest. Raises TransferError."""
        if part.offer >= len(self.manifests):
            raise ProtocolError(f"commit of transfer {part.offer} in an offer of {len(self.manifests)}")
        done = committed(self.folder, self.manifests[part.offer])
        if done:
            if done != part.digest:
                raise DigestMismatch(f"{self.manifests[part.offer].transfer} is committed with another digest")
            return False
        try:
            self._spool(part.offer).commit(part.digest)
        except DigestMismatch:
            # Every chunk matched its own checksum, so the two ends hold different transfers: start over.
            self._spools.pop(part.offer).close()
            self.manifests[part.offer].path(self.folder).with_suffix(".transfer.part").unlink(missing_ok=True)
            raise
        del self._spools[part.offer]
        return True

    def _spool(self, offer: int) -> Spool:
        if offer >= len(self.manifests):
            raise ProtocolError(f"a part of transfer {offer} in an offer of {len(self.manifests)}")
        if offer not in self._spools:
            manifest = self.manifests[offer]
            self._spools[offer] = Spool(manifest.path(self.folder), manifest, durable=self._durable)
        return self._spools[offer]

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()
