"""The federator's pool: the set G drawn from its public images, and each silo's portion of it.

    pool/shared.images          the set G (core/pool.py), drawn once, when the first round would open
    pool/warmup.safetensors     the model trained on it (federator/warmup.py)
    pool/pool.SILO.DIGEST.transfer      a silo's portion, encoded when it is first asked for

What G is stands in the journal, and it never changes from then on. Who gets a portion of it has said that it accepts
one (``feddiff-silo --accept-pool``); the portion counts among the images of that silo, for it trains on them.

``python -m feddiff.federator.pool FOLDER/pool IMAGES COUNT --parent PID`` draws G: reading the folder of images may
take more memory than the daemon is to have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import mmap
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core import console
from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import DataError, NotSelected, StoreError
from feddiff.core.spool import Manifest, Transfer
from feddiff.federator.journal import Journal

if TYPE_CHECKING:
    from feddiff.core.images import Images
    from feddiff.core.pool import Portion

RULES = "rules.json"
_FACT = "pool"

log = logging.getLogger("feddiff.federator")


@dataclass(frozen=True)
class Chosen:
    """What the set G is. ``images``: of the ``silos`` together, when it was drawn."""

    count: int
    digest: str
    images: int
    silos: int

    def __str__(self) -> str:
        return f"{self.count} public images for the {self.images} of {self.silos} silos, digest {self.digest[:12]}"


class Pool:
    """The pool of one federation; empty if its rules have none."""

    def __init__(self, folder: Path, config: FederationConfig, journal: Journal) -> None:
        self.folder, self._config, self._journal = folder / "pool", config, journal
        self._lock = threading.Lock()
        self._portions: dict[str, Portion] = {}
        self._chosen: Chosen | None = None
        self._opened: Images | None = None

    @property
    def chosen(self) -> Chosen | None:
        """The set G, if it is drawn."""
        if self._chosen is None and self._config.pool is not None:
            known = self._journal.fact(_FACT)
            self._chosen = Chosen(**json.loads(known)) if known else None
        return self._chosen

    def choose(self, images: int, silos: int) -> Chosen:
        """Make what was drawn the set G, for good. Raises StoreError."""
        from feddiff.core.pool import SHARED, image_bytes

        place = self.folder / SHARED
        try:
            with place.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            count = place.stat().st_size // image_bytes(self._config)
        except OSError as error:
            raise StoreError(f"{place}: {error.strerror}") from None
        made = Chosen(count, digest, images, silos)
        self._journal.note(_FACT, json.dumps(asdict(made)))
        return made

    def consent(self, silo: str, accepts: bool) -> None:
        """Note whether a silo takes public images. It says so whenever it joins."""
        if self._config.pool is not None:
            self._journal.note(f"{_FACT} {silo}", "accepted" if accepts else "")
            log.info("%s %s public images", silo, "accepts" if accepts else "does not accept")

    def given(self, silo: str) -> int:
        """Images of G that a silo trains on beside its own."""
        from feddiff.core.pool import part

        rules, shared = self._config.pool, self.chosen
        if rules is None or shared is None or not self._journal.fact(f"{_FACT} {silo}"):
            return 0
        return part(rules.alpha, shared.count)

    def portion(self, silo: str) -> Portion | None:
        """What a silo is offered; None if it is none. Raises StoreError if G is not what it was."""
        if not self.given(silo):
            return None
        with self._lock:
            if silo not in self._portions:
                self._portions[silo] = self._cut(silo)[0]
            return self._portions[silo]

    def _cut(self, silo: str) -> tuple[Portion, bytes]:
        """A silo's portion, and its bytes."""
        from feddiff.core.pool import chosen, draw, portion, to_bytes

        shared = self._shared()
        places = draw(self._config.seed, silo, len(shared.pixels), self.given(silo))
        cut = to_bytes(chosen(shared, places))
        return portion(silo, cut), cut

    def _shared(self) -> Images:
        """The set G, on disk: mapped, not loaded. Raises StoreError if it is not what was drawn."""
        from feddiff.core.pool import SHARED, from_bytes

        place = self.folder / SHARED
        if self._opened is None:
            try:
                with place.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if self.chosen is None or digest != self.chosen.digest:
                    raise DataError("it is another set than was drawn; restore it from a backup")
                self._opened = from_bytes(data, self._config)
            except (OSError, ValueError, DataError) as error:
                raise StoreError(f"{place}: {error}") from None
        return self._opened

    def check(self, silo: str, wanted: Sequence[Manifest]) -> None:
        """Raises NotSelected for anything but the portion that the silo's task names."""
        offered = self.portion(silo)
        for each in wanted:
            if offered is None or each != offered.manifest:
                raise NotSelected(f"{silo} fetches {each.transfer}, which its task does not name")

    def open(self, silo: str, manifest: Manifest) -> Transfer:
        """The transfer of a silo's portion, encoded if it is not there. Raises StoreError."""
        from feddiff.core.pool import encode

        with self._lock:
            place = manifest.path(self.folder)
            if not place.exists():
                encode(*self._cut(silo), self.folder)
            try:
                return Transfer(place)
            except StoreError:
                place.unlink(missing_ok=True)
                raise

    def discard(self, damaged: Sequence[Manifest]) -> None:
        """Delete transfers: they are encoded anew."""
        for manifest in damaged:
            manifest.path(self.folder).unlink(missing_ok=True)


def collect(folder: Path, images: Path, count: int) -> None:
    """Draw G from a folder of images. Raises DataError if there are too few, or too many for silos to take."""
    from feddiff.core.images import read_images
    from feddiff.core.pool import MAX_BYTES, SHARED, chosen, draw, image_bytes, to_bytes
    from feddiff.core.store import write_atomic

    config = parse((folder / RULES).read_bytes())
    most = MAX_BYTES // image_bytes(config)
    if count > most:
        raise DataError(f"the shared set would be {count} images; at most {most} of this size are shared")
    found = read_images(images, config)
    if len(found.pixels) < count:
        raise DataError(f"the shared set is to be {count} images, by pool.beta; {images} holds {len(found.pixels)}")
    write_atomic(folder / SHARED, to_bytes(chosen(found, draw(config.seed, "", len(found.pixels), count))))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pool", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    console.tie(options.parent)

    def run() -> int:
        collect(options.folder, options.images, options.count)
        return 0

    return console.run("pool", run)


if __name__ == "__main__":
    sys.exit(main())
