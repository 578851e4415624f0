"""Published weights: a file for each version of each segment, and the encoded transfers that bring them to silos.

    weights/decoder.0@3.safetensors         version 3, the federator's very bits
    published/down.decoder.0.2-3.transfer   what takes a silo from 2 to 3: encoded once, read by all
    published/down.decoder.0.x-3.transfer   version 3 from nothing (a snapshot), made when a silo first needs it
    moments/decoder.0@3.safetensors         the outer optimizer's moments after that step, if it has any
    losses/decoder.0@3.safetensors          what encoding it lost, if the codec loses anything
    averages/decoder.0@3.safetensors        the moving average of the versions up to it, if the rules want one

Sits between ``fold`` and the service. Nothing here decides what is current: the journal does.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig
from feddiff.core.errors import StoreError
from feddiff.core.feedback import Feedback
from feddiff.core.fold import Contribution, fold
from feddiff.core.manifests import publication, update
from feddiff.core.outer import Outer
from feddiff.core.segments import Layout
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.store import WeightsReader, WeightsWriter
from feddiff.federator.average import average


def route(held: int | None, target: int, deltas: Mapping[int, int], snapshot: int) -> tuple[int, ...]:
    """Base versions of the transfers that take a silo from ``held`` to ``target``; -1 stands for the snapshot.

    ``deltas`` maps a version to the bytes of the transfer from it to the next; ``snapshot`` is the bytes of the whole.
    The chain of deltas is taken if it is there and no larger than the snapshot.
    """
    if held == target:
        return ()
    if held is not None and held < target and all(base in deltas for base in range(held, target)):
        chain = range(held, target)
        if sum(deltas[base] for base in chain) <= snapshot:
            return tuple(chain)
    return (-1,)


def bound(manifest: Manifest) -> int:
    """Payload bytes that a transfer cannot exceed."""
    size, last = CODECS[manifest.codec].bound, manifest.count(manifest.chunks - 1)
    return (manifest.chunks - 1) * size(manifest.chunk_elements) + size(last)


class Versions:
    """The two folders of published weights."""

    def __init__(self, folder: Path, layout: Layout, config: FederationConfig) -> None:
        self.layout, self.config = layout, config
        self._digests: dict[tuple[str, int], str] = {}
        self._encoded: dict[str, tuple[str, int]] = {}
        """Codec and payload bytes of published transfers, by name."""
        self._snapshot = threading.Lock()
        self._weights, self._published = folder / "weights", folder / "published"
        self._moments, self._losses, self._averages = folder / "moments", folder / "losses", folder / "averages"
        for each in (self._weights, self._published, self._moments, self._losses, self._averages):
            each.mkdir(parents=True, exist_ok=True)

    def weights(self, segment: str, version: int) -> Path:
        return self._weights / f"{segment}@{version}.safetensors"

    def digest(self, segment: str, version: int) -> str:
        """SHA-256 of a published version; empty if it is not kept any more."""
        place = self.weights(segment, version)
        if (segment, version) not in self._digests and place.exists():
            with WeightsReader(place) as reader:
                self._digests[segment, version] = reader.digest
        return self._digests.get((segment, version), "")

    def pin(self, segment: str, version: int, digest: str) -> None:
        """The digest of a version that silos made among themselves, and whose weights are not here."""
        self._digests[segment, version] = digest

    def model(self, segment: str, version: int) -> Path:
        """What is drawn, exported and measured: a version's moving average if the rules want one, else the version."""
        if not self.config.outer.ema or not version:
            return self.weights(segment, version)
        return self._averages / f"{segment}@{version}.safetensors"

    def _outer(self, segment: str, version: int) -> Path:
        return self._moments / f"{segment}@{version}.safetensors"

    def _lost(self, segment: str, version: int) -> Path:
        return self._losses / f"{segment}@{version}.safetensors"

    def manifest(self, segment: str, base: int, version: int, chosen: str = "") -> Manifest:
        """The downlink transfer from ``base`` (-1: from nothing) to ``version``; a delta encoded as ``chosen``.

        If that is empty, as it was published, or as the rules say if it was not.
        """
        if self.config.budget is None:
            chosen = ""
        elif base >= 0:  # the plan of the round chose
            chosen = chosen or self._published_as(f"down.{segment}.{base}-{version}")[0]
        return publication(self.config.codec, segment, self.layout[segment].size, base, version, chosen)

    def _published_as(self, transfer: str) -> tuple[str, int]:
        """Codec and payload bytes of a published transfer; empty if it is not there."""
        place = self._published / f"{transfer}.transfer"
        if transfer not in self._encoded and place.exists():
            with contextlib.suppress(StoreError), closing(Transfer(place)) as found:
                self._encoded[transfer] = (found.manifest.codec, found.payload_bytes)
        return self._encoded.get(transfer, ("", 0))

    def payload(self, manifest: Manifest) -> int:
        """Payload bytes of a published transfer; what they can be at most if it is not encoded yet."""
        return self._published_as(manifest.transfer)[1] or bound(manifest)

    def upload(self, round: int, silo: str, segment: str, base: int, chosen: str = "") -> Manifest:
        """The transfer by which a silo reports a segment that it started from version ``base``, encoded as ``chosen``.

        If that is empty, as the rules say.
        """
        return update(self.config.codec, round, silo, segment, self.layout[segment].size, base, chosen)

    def path(self, manifest: Manifest) -> Path:
        return manifest.path(self._published)

    def routes(self, held: Mapping[str, int], targets: Mapping[str, int]) -> list[Manifest]:
        """All downlink transfers that take a silo from what it holds to the targets, in order."""
        found = []
        for segment in self.layout.names:
            if segment not in targets:
                continue
            deltas = {}
            for base in range(max(held.get(segment, targets[segment]), 0), targets[segment]):
                delta = self.path(self.manifest(segment, base, base + 1))
                if self.config.codec.delta and delta.exists():
                    deltas[base] = delta.stat().st_size
            size = self._whole(segment, targets[segment])
            for base in route(held.get(segment), targets[segment], deltas, size):
                version = targets[segment] if base < 0 else base + 1
                found.append(self.manifest(segment, base, version))
        return found

    def open(self, manifest: Manifest) -> Transfer:
        """A published transfer; a snapshot is encoded for whoever comes first.

        Raises StoreError when its version is no longer kept.
        """
        with self._snapshot:
            if not self.path(manifest).exists() and manifest.absolute:
                self._encode(manifest)
        try:
            return Transfer(self.path(manifest))
        except StoreError:
            self.discard([manifest])
            raise

    def _encode(self, manifest: Manifest) -> None:
        """Make a snapshot's transfer."""
        codec = CODECS[manifest.codec]
        with WeightsReader(self.weights(manifest.segment, manifest.version)) as reader:
            spool = Spool(self.path(manifest), manifest)
            for index in range(spool.chunks, manifest.chunks):
                values = reader.read(manifest.segment, index * manifest.chunk_elements, manifest.count(index))
                payload = codec.encode(values, None)
                spool.append(index, payload, checksum(payload))
            spool.commit(spool.digest())

    def discard(self, damaged: Iterable[Manifest]) -> None:
        """Delete published transfers: without them the next route goes by a snapshot, which is encoded anew."""
        for manifest in damaged:
            self.path(manifest).unlink(missing_ok=True)
            self._encoded.pop(manifest.transfer, None)

    def publish(
        self, segment: str, base: int, version: int, contributions: list[Contribution], chosen: str = ""
    ) -> None:
        """Fold updates into the files of a new version. Repeated after a crash, it writes the same bytes again."""
        manifest = self.manifest(segment, base if self.config.codec.delta else -1, version, chosen)
        self._digests.pop((segment, version), None)
        self._encoded.pop(manifest.transfer, None)
        size, codec = manifest.elements, self.config.codec
        with ExitStack() as files:
            spool = files.enter_context(closing(Spool(self.path(manifest), manifest, fresh=True)))
            previous = files.enter_context(WeightsReader(self.weights(segment, base)))
            writer = files.enter_context(
                WeightsWriter(self.weights(segment, version), {segment: size}, {"version": str(version)})
            )
            outer = files.enter_context(
                closing(Outer(self.config.outer, self._outer(segment, base), self._outer(segment, version), size))
            )
            feedback = None
            carried = self._lost(segment, base).exists() or not CODECS[manifest.codec].lossless
            self._lost(segment, version).unlink(missing_ok=True)  # of an attempt that a rejection ended
            if codec.feedback and not manifest.absolute and carried:
                lost = Feedback(self._lost(segment, base), self._lost(segment, version), segment, size)
                feedback = files.enter_context(closing(lost))
            fold(contributions, previous, writer, spool, outer, feedback)
            outer.commit()
            if feedback is not None:
                feedback.commit()
            spool.commit(spool.digest())
            writer.commit()
        if self.config.outer.ema:
            before, after = self.model(segment, base), self.model(segment, version)
            published = self.weights(segment, version)
            average(segment, version, self.config.outer.ema, before, published, after, codec.chunk_elements)

    def publish_initial(self, segment: str, reader: WeightsReader) -> None:
        """Make version 0 of the initial weights: what a silo decodes of its snapshot."""
        manifest = self.manifest(segment, -1, 0)
        self._digests.pop((segment, 0), None)
        codec = CODECS[manifest.codec]
        with WeightsWriter(self.weights(segment, 0), {segment: manifest.elements}, {"version": "0"}) as writer:
            for index in range(manifest.chunks):
                start, count = index * manifest.chunk_elements, manifest.count(index)
                values = reader.read(segment, start, count)
                if not codec.lossless:
                    values = codec.decode(codec.encode(values, None), count, None)
                writer.write(segment, start, values)
            writer.commit()

    def initial_digest(self) -> str:
        """SHA-256 of version 0 of all segments in layout order, hexadecimal."""
        digest = hashlib.sha256()
        for segment in self.layout.segments:
            with WeightsReader(self.weights(segment.name, 0)) as reader:
                for start in range(0, segment.size, self.config.codec.chunk_elements):
                    count = min(self.config.codec.chunk_elements, segment.size - start)
                    digest.update(reader.read(segment.name, start, count).data)
        return digest.hexdigest()

    def keep(self, current: Mapping[str, int], folder: Path) -> None:
        """Hard links ``folder/SEGMENT.safetensors`` to the model of these versions: they outlive ``prune``."""
        for segment, version in current.items():
            (folder / f"{segment}.safetensors").hardlink_to(self.model(segment, version))

    def prune(self, current: Mapping[str, int]) -> None:
        """Delete versions older than ``keep_versions`` and the transfers to them; the current one always stays.

        Differences stay, back to where all together are larger than a snapshot: they are the cheaper way for a silo
        that was away, and under a budget maybe the only one.
        """
        chains = {path for segment, version in current.items() for path in self._chain(segment, version)}
        folders = (self._weights, self._moments, self._losses, self._averages)
        versioned = [path for each in folders for path in each.glob("*@*.safetensors")]
        for path in [*versioned, *self._published.glob("down.*.transfer")]:
            if path.suffix == ".safetensors":
                segment, _, number = path.stem.rpartition("@")
            else:
                segment, _, pair = path.stem.removeprefix("down.").rpartition(".")
                number = pair.rpartition("-")[2]
            if int(number) <= current.get(segment, 0) - self.config.keep_versions and path not in chains:
                path.unlink()
                self._encoded.pop(path.stem, None)

    def _chain(self, segment: str, version: int) -> Iterator[Path]:
        """The differences that lead to a version, the last one first, as far as they are no larger than a snapshot."""
        room = self._whole(segment, version)
        for base in reversed(range(version)):
            delta = self._published / f"down.{segment}.{base}-{base + 1}.transfer"
            if not delta.exists() or delta.stat().st_size > room:
                return
            room -= delta.stat().st_size
            yield delta

    def _whole(self, segment: str, version: int) -> int:
        """Bytes of a version's snapshot; raw, if it is not encoded yet."""
        snapshot = self.path(self.manifest(segment, -1, version))
        return snapshot.stat().st_size if snapshot.exists() else 4 * self.layout[segment].size
