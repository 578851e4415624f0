"""When a silo's certificate is to be renewed, and whether what comes back may replace it.

At two thirds of its life, or when the federation says that its CAs have changed. The client (silo/client.py) asks for
one over a new key, between two calls and with the present one; what fails is logged and tried again later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from feddiff.core import pki, trust
from feddiff.core.errors import FedDiffError, IdentityError
from feddiff.core.identity import Identity, load_certificate
from feddiff.silo import credentials
from feddiff.silo.credentials import Credentials

RETRY_S = 600.0
"""Between two tries; a fiftieth of the certificate's life if that is shorter."""

log = logging.getLogger("feddiff.silo")


def _now() -> datetime:
    return datetime.now(UTC)


class Renewal:
    """A silo's credentials, for as long as its process lives; shared by all of its connections.

    ``lock`` is for whoever asks for a renewal: one at a time."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = _now) -> None:
        self._folder, self._clock = folder, clock
        self.lock = threading.Lock()
        self.asked = False
        """Whether the federation wants a renewal now."""
        self._not_before = 0.0
        self._adopt(credentials.load(folder))

    def _adopt(self, found: Credentials) -> None:
        self.credentials, self.identity = found, Identity.from_certificate(found.certificate)
        self._due_at = pki.renewal_due(found.certificate)

    def check_dates(self) -> None:
        """Raises CertificateExpired."""
        trust.check_dates(load_certificate(self.credentials.certificate), self._clock())

    @property
    def due(self) -> bool:
        return (self.asked or self._clock() >= self._due_at) and time.monotonic() >= self._not_before

    def replace(self, key: bytes, certificate: bytes, authorities: bytes) -> None:
        """Keep what the federator answered, from now on and durably. Raises IdentityError for what is not ours."""
        identity = trust.check_signed_by_any(certificate, authorities, self._clock())
        if (identity.role, identity.name) != (self.identity.role, self.identity.name):
            raise IdentityError(f"the federator issued a certificate for {identity.role} {identity.name}")
        trust.check_key_matches(certificate, key)
        fresh = Credentials(key, certificate, authorities)
        credentials.store(self._folder, fresh)
        self._adopt(fresh)
        self.asked = False
        log.info("the certificate is renewed: good until %s UTC", f"{identity.not_after:%Y-%m-%d %H:%M}")

    def failed(self, error: FedDiffError) -> None:
        """Try again later."""
        life = (self.identity.not_after - self._due_at).total_seconds() * 3
        self._not_before = time.monotonic() + min(RETRY_S, life / 50)
        left = (self.identity.not_after - self._clock()).total_seconds() / 86400
        log.warning("the certificate could not be renewed (%s); it is good for %.3g more days", error, left)
