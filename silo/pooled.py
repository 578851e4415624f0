"""Public images that this silo was given, in its state folder: ``pool/DIGEST.images``, of which it trains on all.

Between the transfers, which bring them into the inbox, and the learner, which mixes them with the silo's own. Nothing
is taken without the administrator's consent (``feddiff-silo --accept-pool``); withdrawn, the file is deleted.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError, StoreError, TransferError
from feddiff.core.store import write_atomic
from feddiff.silo.session import Task

if TYPE_CHECKING:
    from feddiff.core.images import Images
    from feddiff.core.pool import Portion

log = logging.getLogger("feddiff.silo")


class Pooled:
    """The folder of public images; holds those of one portion, or none."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "pool"

    @property
    def digest(self) -> str:
        """SHA-256 of the portion that is there, hexadecimal; "" if there is none."""
        return next((path.stem for path in sorted(self._folder.glob("*.images"))), "")

    def take(self, portion: Portion, inbox: Path, config: FederationConfig) -> None:
        """Keep what has arrived, in place of anything else. Raises ProtocolError for what was not offered."""
        from feddiff.core.pool import decode

        place = portion.manifest.path(inbox)
        try:
            data = decode(portion, inbox, config)
            self._folder.mkdir(exist_ok=True)
            self._keep_only(portion.digest)
            write_atomic(self._path(portion.digest), data)
            log.info("%d public images are here, to train on beside this silo's own", portion.count(config))
        except OSError as error:
            raise StoreError(f"{self._folder}: {error.strerror}") from None
        finally:
            place.unlink(missing_ok=True)  # damaged: it must come again, not fail again after every restart

    def images(self, portion: Portion, config: FederationConfig) -> Images:
        """What was taken. Raises TransferError if the disk has lost it: it is fetched again."""
        from feddiff.core.pool import from_bytes

        path = self._path(portion.digest)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == portion.digest:
                return from_bytes(data, config)
        except (OSError, DataError) as error:
            log.warning("%s: %s", path, error)
        path.unlink(missing_ok=True)
        raise TransferError(f"{path} is damaged; the public images come again")

    def forget(self) -> None:
        """Delete what was given."""
        self._keep_only("")

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.images"

    def _keep_only(self, digest: str) -> None:
        for path in self._folder.glob("*.images"):
            if path.stem != digest:
                path.unlink()


def agreed(config: FederationConfig, accept: bool) -> bool:
    """Whether this silo takes public images: they are offered, and its administrator consents. Says what follows."""
    if config.pool is None or not config.pool.alpha:
        if accept:
            log.warning("--accept-pool is not used: this federation's rules share no images")
        return False
    if not accept:
        log.warning(
            "the federator gives public images to every silo that accepts them; without --accept-pool, which is the"
            " consent, this silo trains on its own images alone"
        )
    return accept


def admitted(task: Task, config: FederationConfig, accepts: bool) -> Task:
    """The task as far as this silo takes part in it. Raises ProtocolError for an offer that the rules do not allow."""
    work = task.work
    if work is None or work.pool is None:
        return task
    if not accepts:
        return replace(task, work=replace(work, pool=None))
    work.pool.check(config)
    return task
