"""The ranges that a silo averages for others: what it takes in, what it makes, what it gives out.

    peers/in/round-3/up.3.hospital-b.decoder.0.0-12.transfer    another silo's update of an owned range
    peers/made/down.decoder.0.2-3.0-12.MARK.transfer            the range of the new version: encoded once, read by all
    peers/made/down.decoder.0.x-3.0-12.transfer                 of a version that it holds, for who was away
    peers/lost/decoder.0.0-12@3.safetensors                     what encoding it lost, if the codec loses anything

No sockets: ``server`` asks on behalf of other silos, ``errands`` says what is to be averaged. Every file can be made
again from those that the round began with, so a kill at any moment costs time only.
"""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig
from feddiff.core.errors import NotSelected, RoundClosed, TransferError
from feddiff.core.fold import Contribution
from feddiff.core.manifests import publication
from feddiff.core.peers import Duty, Folding, Result, owned
from feddiff.core.ranges import Cut, Encoded, checksums, range_of
from feddiff.core.spool import Manifest, Spool, Transfer, checksum, committed
from feddiff.core.store import WeightsReader
from feddiff.core.transfer import Chunk, Commit, Receiver
from feddiff.silo.local import held_file, newest
from feddiff.silo.peers.averaging import Watched, average, loses
from feddiff.silo.peers.losses import Losses


class Owner:
    """Of one silo. What it owns is what its last duty says."""

    def __init__(self, name: str, folder: Path, config: FederationConfig) -> None:
        """``folder``: the silo's state folder."""
        self.name, self._state, self._config = name, folder, config
        self.folder = folder / "peers"
        self._made = self.folder / "made"
        self._made.mkdir(parents=True, exist_ok=True)
        self._losses = Losses(self.folder / "lost", config.codec)
        self._duty = Duty()
        self._changed = threading.Lock()
        self._open: dict[str, Receiver] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def accept(self, duty: Duty) -> None:
        """From now on this is what it owns."""
        with self._changed:
            before, self._duty = self._duty.round, duty
        if duty.round and duty.round != before:
            for old in (self.folder / "in").glob("round-*"):
                if old != self._in(duty.round):
                    shutil.rmtree(old, ignore_errors=True)
            for accept in duty.accepts:
                self._losses.prune(accept.range.segment, accept.base)
                for path in self._made.glob(f"down.{accept.range.segment}.*.transfer"):
                    version = path.name.removeprefix(f"down.{accept.range.segment}.").split(".")[0].partition("-")[2]
                    if int(version) < accept.base:
                        path.unlink(missing_ok=True)
            for path in self._made.glob("lost.*"):
                path.unlink(missing_ok=True)

    @property
    def addresses(self) -> dict[str, str]:
        """Of the silos of the round, by name."""
        return dict(self._duty.addresses)

    def _in(self, round: int) -> Path:
        return self.folder / "in" / f"round-{round}"

    def _expected(self, silo: str, round: int) -> dict[str, Manifest]:
        with self._changed:
            duty = self._duty
        if duty.round != round:
            raise RoundClosed(f"{self.name} has heard of round {duty.round}, not of {round}")
        wanted = (owned(self._config.codec, round, silo, each) for each in duty.accepts if silo in each.senders)
        return {manifest.transfer: manifest for manifest in wanted}

    # -- in

    def begin(self, silo: str, round: int, offered: Sequence[Manifest]) -> Receiver:
        """Answer an offer. Raises RoundClosed, NotSelected."""
        expected = self._expected(silo, round)
        for each in offered:
            if expected.get(each.transfer) != each:
                raise NotSelected(f"{self.name} does not average {each.transfer}")
        with self._locks[silo]:
            # The stream of before may not know yet that it is dead; two must never write one file.
            if silo in self._open:
                self._open[silo].close()
            receiver = self._open[silo] = Receiver(self._in(round), offered, durable=False)
            return receiver

    def take(self, silo: str, receiver: Receiver, part: Chunk | Commit) -> bool:
        """Keep a part of an update; False if it was there already. Raises TransferError."""
        with self._locks[silo]:
            if self._open.get(silo) is not receiver:
                raise TransferError(f"{silo} has opened another upload since")
            return receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)

    # -- averaging

    def fold(self, folding: Folding, fetched: Path, told: Callable[[], None]) -> Result:
        """Average a range. ``fetched``: a folder of losses that other silos gave; ``told`` hears of every chunk.

        Raises BadUpdate; NotSelected if an update is not here, StoreError, and whatever ``told`` raises.
        """
        round, piece = self._duty.round, range_of(folding.result)
        accept = next((each for each in self._duty.accepts if each.range == piece), None)
        if accept is None:
            raise NotSelected(f"{self.name} does not own {piece} any more")
        with ExitStack() as files:
            contributions: list[Contribution] = []
            for each in folding.inputs:
                manifest = owned(self._config.codec, round, each.silo, accept)
                found = committed(self._in(round), manifest)
                if found and found != each.digest:
                    manifest.path(self._in(round)).unlink()
                if found != each.digest:
                    raise NotSelected(f"the update of {each.silo} that it has told of is not here")
                opened = files.enter_context(closing(Transfer(manifest.path(self._in(round)))))
                watched = Watched(opened, told) if not contributions else opened
                contributions.append(Contribution(each.silo, each.weight, watched))
            base = files.enter_context(WeightsReader(held_file(self._state, piece.segment, folding.base)))
            after = self._losses.file(piece, folding.base + 1)
            if not committed(self._made, folding.result) or loses(self._config, folding.result) > after.exists():
                before = self._losses.gather(piece, accept.elements, folding, self.name, fetched)
                average(self._config, folding.result, contributions, base, self._made, before, after)
        with closing(Transfer(folding.result.path(self._made))) as made:
            gone = self._losses.checksums(piece, accept.elements, folding.base + 1)
            return Result(made.manifest.transfer, checksums(made), gone, made.payload_bytes)

    # -- out

    def open(self, silo: str, manifest: Manifest) -> Encoded:
        """What another silo fetches. Raises NotSelected for what it may not have, StoreError."""
        place = manifest.path(self._made)
        with self._changed:
            duty = self._duty
        granted = manifest.transfer in duty.grants.get(silo, ())
        if manifest.transfer.startswith("up.") and granted:
            return self._input(duty, manifest)
        with self._making[manifest.transfer]:
            if not committed(self._made, manifest):
                if manifest.transfer.startswith("lost.") and granted:
                    self._losses.encode(manifest, self._size(manifest.segment), self._made)
                elif manifest.transfer.startswith("down.") and range_of(manifest).chunks and granted:
                    return self._cut(manifest)
                else:
                    self._snapshot(manifest)
        return Transfer(place)

    def _size(self, segment: str) -> int:
        """Values in a segment."""
        with WeightsReader(held_file(self._state, segment, newest(self._state)[segment])) as held:
            return held.size(segment)

    def _input(self, duty: Duty, manifest: Manifest) -> Encoded:
        """One chunk of what another silo sent."""
        for accept in duty.accepts:
            for sender in accept.senders:
                around = owned(self._config.codec, duty.round, sender, accept)
                if manifest.transfer.startswith(f"{around.transfer}."):
                    return self._checked(Cut(Transfer(around.path(self._in(duty.round))), range_of(manifest)), manifest)
        raise NotSelected(f"{self.name} has no {manifest.transfer}")

    def _cut(self, manifest: Manifest) -> Encoded:
        """One chunk of what it made."""
        around, _, _ = manifest.transfer.rpartition(".")
        return self._checked(Cut(Transfer(self._made / f"{around}.transfer"), range_of(manifest)), manifest)

    def _checked(self, cut: Cut, manifest: Manifest) -> Cut:
        if cut.manifest != manifest:
            cut.close()
            raise NotSelected(f"{self.name} has another {manifest.transfer}")
        return cut

    def _snapshot(self, manifest: Manifest) -> None:
        """Encode a range of a version that this silo holds."""
        held = held_file(self._state, manifest.segment, manifest.version)
        if not held.exists():
            raise NotSelected(f"{self.name} does not hold {manifest.segment} version {manifest.version}")
        with WeightsReader(held) as reader:
            size, codec = reader.size(manifest.segment), self._config.codec
            whole = publication(codec, manifest.segment, size, -1, manifest.version)
            if range_of(manifest).of(whole) != manifest:
                raise NotSelected(f"{self.name} has no {manifest.transfer}")
            with closing(Spool(manifest.path(self._made), manifest, fresh=True, durable=False)) as spool:
                for index in range(manifest.chunks):
                    start = manifest.start + index * manifest.chunk_elements
                    values = reader.read(manifest.segment, start, manifest.count(index))
                    payload = CODECS[manifest.codec].encode(values, None)
                    spool.append(index, payload, checksum(payload))
                spool.commit(spool.digest())
