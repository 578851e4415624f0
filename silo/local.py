"""A silo's state folder: who it is, the versions it holds, its last training, what is on the way in and out.

    identity.json key.pem certificate.pem authority.pem (silo/credentials.py) rules.json version.json
    held/decoder.0@3.safetensors          published versions, the federator's very bits
    trained/round-3.safetensors           the whole model after the local training (personal segments live here)
    checkpoint.safetensors                inside a round's training
    lost/decoder.0@3.safetensors          what encoding this segment in round 3 lost, if the codec loses anything
    inbox/ outbox/                        transfers
    measured.json measured.png features/  the quality of the last trained model, and what it is measured with
    pool/DIGEST.images                    public images that the federator gave
    decoded/slices.db                     what scanners' files were decoded to (silo/cache.py); may be deleted

Each file appears by one rename, so a kill at any moment leaves the state before or after, never between.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from feddiff.core import state
from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError, NotFinite, ProtocolError, StoreError
from feddiff.core.feedback import Feedback
from feddiff.core.feedback import encode as feedback_encode
from feddiff.core.gather import gather
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum, committed
from feddiff.core.store import WeightsReader, WeightsWriter, save, write_atomic
from feddiff.silo import credentials
from feddiff.silo.pooled import Pooled
from feddiff.silo.readings import Readings
from feddiff.silo.session import Held, Progress, RoundWork
from feddiff.silo.trained import Trained

DECODED = "decoded"


class Local:
    """The folder of one silo; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained, self.readings, self.pooled = Trained(folder), Readings(folder), Pooled(folder)
        try:
            ours = not folder.exists() or any((folder / name).exists() for name in ("lock", "key.pem", "identity.json"))
            if not ours and any(folder.iterdir()):
                raise ConfigError(f"{folder} holds other files; give an empty or a new folder with --state")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("held", "trained", "inbox", "outbox", "lost"):
                (folder / name).mkdir(exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state.mark(folder)
            credentials.settle(folder)
        except BlockingIOError:
            raise StoreError(f"{folder} is in use by another feddiff-silo") from None
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}; give another folder with --state") from None

    def close(self) -> None:
        os.close(self._lock)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def rules(self) -> FederationConfig | None:
        """The federation's rules as they were first received."""
        path = self.folder / "rules.json"
        return parse(path.read_bytes()) if path.exists() else None

    def adopt(self, text: bytes) -> FederationConfig:
        """Keep the federation's rules. Raises ConfigError if they are not the ones of before."""
        config, known = parse(text), self.rules()
        if known is not None and known.digest != config.digest:
            raise ConfigError(
                f"the federator's rules have changed (digest {known.digest[:12]}, now {config.digest[:12]});"
                f" to take part in another federation give another --state than {self.folder}"
            )
        if known is None:
            write_atomic(self.folder / "rules.json", config.canonical())
        return config

    def progress(self) -> Progress:
        """What is safe on this disk."""
        return Progress(self.held(), self.trained.round, self.readings.round, self.pooled.digest)

    def held(self) -> dict[str, Held]:
        """The newest held version of each segment."""
        found = {}
        for segment, version in newest(self.folder).items():
            with WeightsReader(self._held(segment, version)) as reader:
                found[segment] = Held(version, reader.digest)
        return found

    def _held(self, segment: str, version: int) -> Path:
        return held_file(self.folder, segment, version)

    # -- in

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    def apply(self, manifest: Manifest) -> None:
        """Turn a received transfer into a held version, then forget what it replaces."""
        place = manifest.path(self.inbox)
        received = Transfer(place)
        codec = CODECS[manifest.codec]
        base: WeightsReader | None = None
        sizes = {manifest.segment: manifest.elements}
        try:
            if not manifest.absolute:
                base = WeightsReader(self._held(manifest.segment, manifest.base_version))
            with WeightsWriter(self._held(manifest.segment, manifest.version), sizes) as writer:
                for index, payload, _ in received.chunks():
                    start, count = index * manifest.chunk_elements, manifest.count(index)
                    previous = base.read(manifest.segment, start, count) if base else None
                    writer.write(manifest.segment, start, codec.decode(payload, count, previous))
                writer.commit()
        except FedDiffError:
            place.unlink(missing_ok=True)  # damaged: it must come again, not fail again after every restart
            raise
        finally:
            received.close()
            if base:
                base.close()
        place.unlink()
        if manifest.absolute:  # not a continuation of what this silo's losses were relative to
            for old in self._losses(manifest.segment):
                old.unlink()
        for old in (self.folder / "held").glob(f"{manifest.segment}@*.safetensors"):
            if old != self._held(manifest.segment, manifest.version):
                old.unlink()

    def assemble(self, manifests: Sequence[Manifest]) -> None:
        """Turn received ranges of one segment's version into a held version. The one before stays, to average from."""
        ordered = sorted(manifests, key=lambda each: each.start)
        last, places = ordered[-1], [each.path(self.inbox) for each in ordered]
        base = None if last.absolute else self._held(last.segment, last.base_version)
        size, target = last.start + last.elements, self._held(last.segment, last.version)
        try:
            if not gather(places, last.segment, size, target, base):
                raise ProtocolError(f"the ranges of {last.segment} version {last.version} leave gaps")
        except FedDiffError:
            for place in places:
                place.unlink(missing_ok=True)
            raise
        for place in places:
            place.unlink()
        for old in self._losses(last.segment) if last.absolute else ():
            old.unlink()
        kept = (target, self._held(last.segment, last.version - 1))
        for path in (self.folder / "held").glob(f"{last.segment}@*.safetensors"):
            if path not in kept:
                path.unlink()

    def keep_initial(self, vectors: Mapping[str, F32], digest: str) -> bool:
        """Hold weights made here as version 0, if they are the federator's bit for bit. By segment, in layout order."""
        found = hashlib.sha256()
        for vector in vectors.values():
            found.update(vector.data)
        if found.hexdigest() != digest:
            return False
        for segment, vector in vectors.items():
            save(self._held(segment, 0), {segment: vector})
        return True

    # -- training

    def start(self, work: RoundWork) -> dict[str, F32]:
        """The weights that a round's training starts from, by segment: published ones, and the silo's own."""
        held = self.held()
        own = self.trained.open() if self.trained.round is not None else None
        found: dict[str, F32] = {}
        try:
            for segment, newest in held.items():
                if own is not None and segment not in work.start and segment in own.names:
                    found[segment] = own.read(segment)
                else:
                    with WeightsReader(self._held(segment, work.start.get(segment, newest).version)) as reader:
                        found[segment] = reader.read(segment)
        finally:
            if own is not None:
                own.close()
        return found

    # -- out

    def encode(self, work: RoundWork, manifest: Manifest, feedback: bool) -> None:
        """Put one trained segment into the outbox, with what the encoding before lost. Raises NotFinite, by name."""
        codec, segment = CODECS[manifest.codec], manifest.segment
        # What a lossy codec lost is not lost for a lossless one that follows.
        carried = self._lost_before(segment, work.round) is not None or not codec.lossless
        carries = feedback and carried and not manifest.absolute
        with ExitStack() as files:
            # With feedback the loss of every chunk is needed, also of those that were encoded before a crash.
            spool = files.enter_context(closing(Spool(manifest.path(self.folder / "outbox"), manifest, fresh=carries)))
            reader = files.enter_context(self.trained.open())
            base = lost = None
            if not manifest.absolute:
                base = files.enter_context(WeightsReader(self._held(segment, manifest.base_version)))
            if carries:
                before, after = self._lost_before(segment, work.round), self._lost(segment, work.round)
                lost = files.enter_context(closing(Feedback(before, after, segment, manifest.elements)))
            try:
                for index in range(spool.chunks, manifest.chunks):
                    start, count = index * manifest.chunk_elements, manifest.count(index)
                    values = reader.read(segment, start, count)
                    previous = base.read(segment, start, count) if base else None
                    payload, _ = feedback_encode(codec, values, previous, start, lost)
                    spool.append(index, payload, checksum(payload))
            except NotFinite as error:
                raise NotFinite(f"{segment} after round {work.round}: {error}") from None
            if lost is not None:
                lost.commit()
            spool.commit(spool.digest())
        for old in self._losses(segment):
            if old not in (self._lost(segment, work.round), self._lost_before(segment, work.round)):
                old.unlink()

    def _lost(self, segment: str, round: int) -> Path:
        return self.folder / "lost" / f"{segment}@{round}.safetensors"

    def _losses(self, segment: str) -> list[Path]:
        return list((self.folder / "lost").glob(f"{segment}@*.safetensors"))

    def _lost_before(self, segment: str, round: int) -> Path | None:
        """What the last encoding of a segment before this round lost."""
        rounds = [int(path.stem.rpartition("@")[2]) for path in self._losses(segment)]
        earlier = [each for each in rounds if each < round]
        return self._lost(segment, max(earlier)) if earlier else None

    def outgoing(self, work: RoundWork, manifest: Manifest, feedback: bool) -> Transfer:
        """The outbox's transfer, encoded if it is not there. Raises NotFinite, StoreError."""
        if not committed(self.folder / "outbox", manifest):
            self.encode(work, manifest, feedback)
        return Transfer(manifest.path(self.folder / "outbox"))

    def discard(self, manifests: tuple[Manifest, ...]) -> None:
        """Throw transfers out of the outbox; they will be encoded again from the trained model."""
        for manifest in manifests:
            manifest.path(self.folder / "outbox").unlink(missing_ok=True)

    def tidy(self, work: RoundWork) -> None:
        """Delete transfers of other rounds. Other silos may want those of this round again."""
        public = () if work.pool is None or work.pool.digest == self.pooled.digest else (work.pool.manifest,)
        wanted = {m.transfer for m in (*work.up, *work.down, *public)}
        for box in ("inbox", "outbox"):
            for path in (self.folder / box).glob("*.transfer*"):
                name = path.name.removesuffix(".part").removesuffix(".transfer")
                if name not in wanted and not name.startswith(f"up.{work.round}."):
                    path.unlink()


def newest(folder: Path) -> dict[str, int]:
    """The newest published version of each segment that a state folder holds."""
    found: dict[str, int] = {}
    for path in (folder / "held").glob("*@*.safetensors"):
        segment, _, number = path.stem.rpartition("@")
        found[segment] = max(int(number), found.get(segment, -1))
    return found


def held_file(folder: Path, segment: str, version: int) -> Path:
    """Where a state folder holds a published version."""
    return folder / "held" / f"{segment}@{version}.safetensors"


def read_identity(folder: Path) -> tuple[str, str]:
    """(silo's name, digest of the invitation it enrolled with) of a state folder. Raises ConfigError."""
    try:
        found = json.loads((folder / "identity.json").read_text())
        return str(found["name"]), str(found.get("invitation", ""))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not enrolled; the federation's operator makes an invitation (`feddiff-federator invite`),"
            " then run this once with --join TOKEN"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder / 'identity.json'} cannot be read: {error}") from None
