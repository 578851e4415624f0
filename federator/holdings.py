"""Who holds which version where silos average for each other, with which bits, and how another silo comes by it.

The federator has no weights to give then. The owners of a version's ranges give what they made, as deltas; who is
further behind, or finds an owner away, gets a snapshot of ranges from those who hold the version.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core.errors import StoreError
from feddiff.core.gather import gather
from feddiff.core.manifests import publication
from feddiff.core.peers import Source
from feddiff.core.ranges import Range
from feddiff.core.spool import Manifest, Transfer
from feddiff.core.store import WeightsReader
from feddiff.federator.ownership import deal

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

FACT = "digests"


@dataclass(frozen=True)
class Made:
    """A range of a version as its owner made it."""

    range: Range
    manifest: Manifest
    digest: bytes
    owner: str


class Holdings:
    """Of one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._made: dict[str, tuple[int, list[Made]]] = {}
        self._told: dict[tuple[str, int], dict[str, str]] = {}
        """(segment, version) → silo → SHA-256 of the bits that it says it holds."""
        for segment, (version, digest) in json.loads(federation.journal.fact(FACT) or "{}").items():
            federation.versions.pin(segment, int(version), str(digest))

    def made(self, segment: str, version: int, pieces: list[Made]) -> None:
        """A version's ranges are with their owners."""
        self._made[segment] = (version, sorted(pieces, key=lambda each: each.range))
        for known in [key for key in self._told if key[0] == segment and key[1] < version - 1]:
            del self._told[known]

    def told(self, silo: str, segment: str, version: int, digest: str) -> None:
        """A silo says that it holds a version that is not current yet."""
        self._told.setdefault((segment, version), {})[silo] = digest

    def digest(self, segment: str, version: int) -> str:
        """What most of those hold who hold this version; the first by name of as many. Empty if nobody does."""
        told = Counter(sorted(self._told.get((segment, version), {}).values()))
        return told.most_common(1)[0][0] if told else ""

    def pin(self, versions: Mapping[str, int]) -> None:
        """From now on these versions are the bits that most hold."""
        pinned = json.loads(self._federation.journal.fact(FACT) or "{}")
        for segment, version in versions.items():
            digest = self.digest(segment, version)
            pinned[segment] = [version, digest]
            self._federation.versions.pin(segment, version, digest)
        self._federation.journal.note(FACT, json.dumps(pinned))

    def holders(self, segment: str, version: int) -> set[str]:
        """Silos that say they hold exactly this version."""
        return {silo for silo, known in self._federation.presence.items() if known.held.get(segment) == version}

    def routes(
        self, silo: str, held: Mapping[str, int], targets: Mapping[str, int], there: Collection[str]
    ) -> tuple[list[Manifest], dict[str, Source], list[str]]:
        """What takes a silo to these versions and where it comes from; and segments that nobody who is there holds.

        ``there``: silos that it can reach. Without a source: the federator has it.
        """
        found: list[Manifest] = []
        sources: dict[str, Source] = {}
        missing: list[str] = []
        for segment in self._federation.layout.names:
            target = targets.get(segment, held.get(segment))
            if target is None or held.get(segment) == target:
                continue
            version, pieces = self._made.get(segment, (-1, []))
            usable = version == target and all(each.owner in there or each.owner == silo for each in pieces)
            if usable and all(each.manifest.absolute or held.get(segment) == target - 1 for each in pieces):
                found += [each.manifest for each in pieces]
                sources |= {each.manifest.transfer: Source(each.owner, each.digest) for each in pieces}
            elif self._federation.versions.weights(segment, target).exists():
                found += self._federation.versions.routes(held, {segment: target})
            elif from_ := self._snapshot(segment, target, self.holders(segment, target) & set(there) - {silo}):
                found += [manifest for manifest, _ in from_]
                sources |= {manifest.transfer: Source(owner) for manifest, owner in from_}
            else:
                missing.append(segment)
        return found, sources, missing

    def _snapshot(self, segment: str, version: int, holders: Collection[str]) -> list[tuple[Manifest, str]]:
        if not holders:
            return []
        whole = self.whole(segment, version)
        dealt = deal([Range(segment, 0, whole.chunks)], dict.fromkeys(holders, 1.0))
        return [(each.of(whole), owner) for each, owner in dealt.items()]

    def whole(self, segment: str, version: int) -> Manifest:
        """The snapshot of a version."""
        size = self._federation.layout[segment].size
        return publication(self._federation.config.codec, segment, size, -1, version)

    def keeps(self, versions: Mapping[str, int], there: Collection[str]) -> dict[str, list[Manifest]]:
        """Who is to send what, so that the federator has the weights of these versions."""
        wanted: dict[str, list[Manifest]] = {}
        for segment, version in versions.items():
            if not self._federation.versions.weights(segment, version).exists():
                for manifest, owner in self._snapshot(segment, version, self.holders(segment, version) & set(there)):
                    wanted.setdefault(owner, []).append(manifest)
        return wanted

    def assemble(self) -> bool:
        """Make weights files of what silos have sent for a checkpoint; whether any is new. Raises StoreError."""
        federation, found = self._federation, False
        folder = federation.folder / "spool" / "kept"
        pieces: dict[tuple[str, int], dict[int, Path]] = {}
        for place in sorted(folder.glob("*/down.*.transfer")):
            with closing(Transfer(place)) as transfer:
                key = (transfer.manifest.segment, transfer.manifest.version)
                pieces.setdefault(key, {})[transfer.manifest.start] = place
        for (segment, version), places in pieces.items():
            target, size = federation.versions.weights(segment, version), federation.layout[segment].size
            if not target.exists() and gather([places[start] for start in sorted(places)], segment, size, target):
                found = True
                with WeightsReader(target) as reader:
                    sound = reader.digest == self.digest(segment, version)
                if not sound:
                    target.unlink()
                for place in places.values():
                    place.unlink()
                if not sound:
                    raise StoreError(
                        f"{segment} version {version} came for the checkpoint with other bits; asked again"
                    )
        return found
