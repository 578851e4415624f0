"""Federated reference statistics: the moments of the features of each silo's images, ``statistics/SILO.moments``.

Between the service, which receives them piece by piece, and whoever measures the global model against all silos' images
(core/moments.py). A file is there only if it says what it must: this federation's extractor, as many images as the silo
joined with, sums that images can have. An evicted silo's goes with it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError, DigestMismatch, ProtocolError, StoreError, TooLarge
from feddiff.core.moments import MAX_MOMENTS_BYTES, Moments
from feddiff.core.store import write_atomic
from feddiff.core.wire import PIECE_BYTES
from feddiff.federator.journal import Journal

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Statistics:
    """The folder of contributed moments."""

    def __init__(self, folder: Path, config: FederationConfig, journal: Journal) -> None:
        self._folder, self._config, self._journal = folder / "statistics", config, journal
        self._checking = threading.Lock()

    def path(self, silo: str) -> Path:
        return self._folder / f"{silo}.moments"

    def known(self, silo: str, samples: int) -> str:
        """SHA-256 of what a silo has contributed, hexadecimal; "" if it has not.

        What it contributed of another number of images than ``samples``, which it has now, is forgotten.
        """
        digest, _, count = (self._journal.fact(f"statistics {silo}") or "").partition(" ")
        if not digest or not self.path(silo).exists():
            return ""
        if samples and int(count) != samples:
            self.forget(silo)
            return ""
        return digest

    def receive(self, silo: str, samples: int, size: int, digest: str, pieces: Iterable[bytes]) -> None:
        """Take the moments of ``samples`` images, ``size`` bytes of this SHA-256, in place of earlier ones.

        Unless they are what they must be, nothing is kept. Raises ProtocolError, TooLarge, DigestMismatch, StoreError.
        """
        quality = self._config.quality
        if quality is None or not self._config.wants_statistics:
            raise ProtocolError("this federation asks for no statistics")
        if not 1 <= size <= MAX_MOMENTS_BYTES or not _DIGEST.fullmatch(digest):
            raise TooLarge(f"moments of {size} bytes; at most {MAX_MOMENTS_BYTES}, with their SHA-256")
        try:
            self._folder.mkdir(exist_ok=True)
            # Without a name: what a crash or a silo leaves half done is gone.
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._take(file, silo, size, digest, pieces)
                with self._checking:  # one at a time: they take some hundred megabytes while they are looked at
                    file.seek(0)
                    data = file.read()
                    self._check(data, silo, samples, quality.extractor)
                    write_atomic(self.path(silo), data)
                    self._journal.note(f"statistics {silo}", f"{digest} {samples}")
        except OSError as error:
            raise StoreError(f"{self._folder}: {error.strerror}") from None

    @staticmethod
    def _take(file: IO[bytes], silo: str, size: int, digest: str, pieces: Iterable[bytes]) -> None:
        """Raises TooLarge, DigestMismatch for anything but the bytes that were offered."""
        hashed, arrived = hashlib.sha256(), 0
        for piece in pieces:
            arrived += len(piece)
            if len(piece) > PIECE_BYTES or arrived > size:
                raise TooLarge(f"{arrived} bytes of moments of {size}, the last {len(piece)} in one piece")
            hashed.update(piece)
            file.write(piece)
        if arrived != size or hashed.hexdigest() != digest:
            raise DigestMismatch(f"the moments that {silo} sends are not the {size} bytes that it offered")

    @staticmethod
    def _check(data: bytes, silo: str, samples: int, extractor: str) -> None:
        """Raises ProtocolError for moments of anything but this silo's images."""
        try:
            moments = Moments.from_bytes(data)
        except DataError as error:
            raise ProtocolError(f"{silo}: {error}") from None
        if moments.digest != extractor:
            raise ProtocolError(f"{silo} has used extractor {moments.digest[:12]}, not {extractor[:12]}")
        if moments.count != samples:
            raise ProtocolError(f"{silo} has moments of {moments.count} images and joined with {samples}")

    def forget(self, silo: str) -> None:
        """Delete what a silo has contributed."""
        self.path(silo).unlink(missing_ok=True)
