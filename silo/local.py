"""A silo's state folder: who it is, the versions it holds, its last training, what is on the way in and out.

    identity.json key.pem certificate.pem authority.pem rules.json
    held/decoder.0@3.safetensors          published versions, the federator's very bits
    trained/round-3.safetensors           the whole model after the local training (personal segments live here)
    checkpoint.safetensors                inside a round's training
    inbox/ outbox/                        transfers

Each file appears by one rename, so a kill at any moment leaves the state before or after, never between.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError, NotFinite, StoreError
from feddiff.core.segments import F32
from feddiff.core.spool import Manifest, Spool, Transfer, checksum, committed
from feddiff.core.store import WeightsReader, WeightsWriter, write_atomic
from feddiff.silo.session import Progress, RoundWork
from feddiff.silo.trained import Trained


class Local:
    """The folder of one silo; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained = Trained(folder)
        try:
            for name in ("held", "trained", "inbox", "outbox"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        outbox = {path.name.removesuffix(".transfer") for path in (self.folder / "outbox").glob("*.transfer")}
        return Progress(self.held(), self.trained.round, outbox)

    def held(self) -> dict[str, int]:
        """The newest held version of each segment."""
        found: dict[str, int] = {}
        for path in (self.folder / "held").glob("*@*.safetensors"):
            segment, _, version = path.stem.rpartition("@")
            found[segment] = max(int(version), found.get(segment, -1))
        return found

    def _held(self, segment: str, version: int) -> Path:
        return self.folder / "held" / f"{segment}@{version}.safetensors"

    # -- in

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    def apply(self, manifest: Manifest) -> None:
        """Turn a received transfer into a held version, then forget what it replaces."""
        place = manifest.path(self.inbox)
        received = Transfer(place)
        codec = CODECS[manifest.codec]
        base = None if manifest.absolute else WeightsReader(self._held(manifest.segment, manifest.base_version))
        sizes = {manifest.segment: manifest.elements}
        try:
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
        for old in (self.folder / "held").glob(f"{manifest.segment}@*.safetensors"):
            if int(old.stem.rpartition("@")[2]) < manifest.version:
                old.unlink()

    # -- training

    def start(self, work: RoundWork) -> dict[str, F32]:
        """The weights that a round's training starts from, by segment: published ones, and the silo's own."""
        held = self.held()
        own = self.trained.open() if self.trained.round is not None else None
        found: dict[str, F32] = {}
        try:
            for segment, version in held.items():
                if own is not None and segment not in work.start and segment in own.names:
                    found[segment] = own.read(segment)
                else:
                    with WeightsReader(self._held(segment, work.start.get(segment, version))) as reader:
                        found[segment] = reader.read(segment)
        finally:
            if own is not None:
                own.close()
        return found

    # -- out

    def encode(self, work: RoundWork, manifest: Manifest) -> None:
        """Put one trained segment into the outbox. Raises NotFinite with its name."""
        codec = CODECS[manifest.codec]
        base = None if manifest.absolute else WeightsReader(self._held(manifest.segment, manifest.base_version))
        place = manifest.path(self.folder / "outbox")
        spool = Spool(place, manifest)
        try:
            with self.trained.open() as reader:
                for index in range(spool.chunks, manifest.chunks):
                    start, count = index * manifest.chunk_elements, manifest.count(index)
                    values = reader.read(manifest.segment, start, count)
                    previous = base.read(manifest.segment, start, count) if base else None
                    payload = codec.encode(values, previous)
                    spool.append(index, payload, checksum(payload))
            spool.commit(spool.digest())
        except NotFinite as error:
            raise NotFinite(f"{manifest.segment} after round {work.round}: {error}") from None
        finally:
            spool.close()
            if base:
                base.close()

    def outgoing(self, manifests: tuple[Manifest, ...]) -> list[Transfer]:
        """The outbox's transfers; one that is not what its manifest says is thrown away. Raises StoreError."""
        found = []
        for manifest in manifests:
            if not committed(self.folder / "outbox", manifest):
                raise StoreError(f"{manifest.transfer} is damaged on disk")
            found.append(Transfer(manifest.path(self.folder / "outbox")))
        return found

    def discard(self, manifests: tuple[Manifest, ...]) -> None:
        """Throw transfers out of the outbox; they will be encoded again from the trained model."""
        for manifest in manifests:
            manifest.path(self.folder / "outbox").unlink(missing_ok=True)

    def tidy(self, work: RoundWork) -> None:
        """Delete transfers of other rounds."""
        wanted = {m.transfer for m in (*work.up, *work.down)}
        for box in ("inbox", "outbox"):
            for path in (self.folder / box).iterdir():
                if path.name.removesuffix(".part").removesuffix(".transfer") not in wanted:
                    path.unlink()


def read_identity(folder: Path) -> tuple[str, str]:
    """(silo's name, federator's address) of an enrolled state folder. Raises ConfigError."""
    try:
        found = json.loads((folder / "identity.json").read_text())
        return str(found["name"]), str(found["federator"])
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not enrolled; the federation's operator makes an invitation (`feddiff-federator invite`),"
            " then run this once with --join TOKEN"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder / 'identity.json'} cannot be read: {error}") from None
