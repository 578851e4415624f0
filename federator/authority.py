"""The federation's CA on disk, the one that replaces it for a while, and the server's certificate.

    ca.pem ca.key            the CA: its fingerprint is in invitations, it signs the server's certificate
    next/ca.pem ca.key until while it is replaced: the new CA, and when this ends at the latest
    next/halfway             when the new CA signs silos' certificates at the latest
    next/signs               it does
    taken/                   only during the moment in which the new one takes the old one's place
    server.pem server.key    renewed by the daemon
    lifetime                 how long certificates are good, e.g. 30d

While there are two, the federator takes certificates of both, and every silo that renews learns to trust both. When all
do, or half of the time is over, the new one signs what silos get (which may show it to each other), and when all have
that, or the time is up, the server's certificate changes over and the old CA is gone. So a silo that is away holds
nobody else up, and whoever is here has had the second half to get a certificate that still counts after it.
Nothing here is kept in memory alone: a command that changes these files is heard by the daemon that runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from feddiff.core import pki, trust
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.identity import load_certificate
from feddiff.core.store import sync_folder, write_atomic
from feddiff.federator.measure import seconds

DAY_S = 86400.0


@dataclass(frozen=True)
class Signer:
    """A CA: certificate and key, PEM."""

    certificate: bytes
    key: bytes


def _now() -> datetime:
    return datetime.now(UTC)


class Authority:
    """The certificates of a federator's folder. Raises StoreError for files that cannot be read."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = _now) -> None:
        self._folder, self._clock = folder, clock
        if (folder / "taken").exists():
            self._take()

    # -- what there is

    @property
    def current(self) -> Signer:
        """The CA of the server's certificate and of invitations."""
        taken = self._folder / "taken"
        return self._signer(taken if taken.exists() else self._folder)

    @property
    def next(self) -> Signer | None:
        """The CA that replaces it, if one does."""
        return self._signer(self._folder / "next") if (self._folder / "next").exists() else None

    @property
    def bundle(self) -> bytes:
        """All CAs whose certificates are taken, PEM; the current one first."""
        coming = self.next
        return self.current.certificate + (coming.certificate if coming else b"")

    @property
    def signer(self) -> Signer:
        """The CA that signs silos' certificates."""
        coming = self.next
        return coming if coming and self.signs else self.current

    @property
    def stage(self) -> str:
        """What a silo has of its newest certificate: stands for the CAs that it trusts and the one that signed."""
        return stage(self.bundle, self.signer.certificate)

    @property
    def server(self) -> tuple[bytes, bytes]:
        """The server's (key, certificate)."""
        return self._read("server.key"), self._read("server.pem")

    @property
    def lifetime_days(self) -> float:
        """How long certificates are good that are issued now. Raises ConfigError."""
        try:
            text = (self._folder / "lifetime").read_text().strip()
        except FileNotFoundError:
            return pki.DAYS
        return seconds(text, f"{self._folder / 'lifetime'}:") / DAY_S

    @property
    def server_days(self) -> float:
        """Until the server's certificate ends."""
        return self._days(self.server[1])

    @property
    def days(self) -> float:
        """Until the CA ends that is to stay."""
        return self._days((self.next or self.current).certificate)

    @property
    def until(self) -> float | None:
        """When the present replacement ends at the latest, of ``time.time``; None if there is none."""
        try:
            return float(self._read("next/until"))
        except StoreError:
            return None

    @property
    def halfway(self) -> float | None:
        """When the new CA begins to sign although not all silos trust it, of ``time.time``; None as ``until``."""
        try:
            return float(self._read("next/halfway"))
        except StoreError:
            return self.until  # begun by older software

    @property
    def signs(self) -> bool:
        """Whether the new CA signs silos' certificates."""
        return (self._folder / "next" / "signs").exists()

    # -- what is done with it

    def issue(self, csr: bytes, name: str, signer: Signer | None = None) -> bytes:
        """A silo's certificate. Raises IdentityError."""
        signer = signer or self.signer
        now, days = self._clock(), self.lifetime_days
        return pki.issue_client(signer.certificate, signer.key, csr, "silo", name, now, days)

    def check(self) -> None:
        """Raises CertificateExpired if the server's certificate is outside its dates, even after a renewal."""
        trust.check_dates(load_certificate(self.server[1]), self._clock())

    def renew_server(self) -> bool:
        """Renew the server's certificate if it is time, or if the CA has changed; whether it was."""
        if (self._folder / "taken").exists():
            self._take()
        (key, certificate), signer = self.server, self.current
        if self._clock() < pki.renewal_due(certificate) and trust.is_signed_by(certificate, signer.certificate):
            return False
        self._issue_server(signer, key, certificate)
        return True

    def replace(self, within_s: float) -> None:
        """Begin to replace the CA. Raises ConfigError if that is under way."""
        if (self._folder / "next").exists():
            raise ConfigError("the CA is being replaced already; `rotate-ca --finish` ends that")
        federation = trust.common_name(self.current.certificate)
        certificate, key = pki.create_authority(federation, self._clock())
        made = self._folder / "next.part"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        write_atomic(made / "ca.key", key, mode=0o600)
        write_atomic(made / "ca.pem", certificate)
        write_atomic(made / "halfway", f"{self._clock().timestamp() + within_s / 2:.0f}".encode())
        write_atomic(made / "until", f"{self._clock().timestamp() + within_s:.0f}".encode())
        made.rename(self._folder / "next")
        sync_folder(self._folder)

    def change_signer(self, until: float) -> None:
        """From now on the new CA signs silos' certificates, and the old one stays until this time at least."""
        if until > (self.until or 0.0):
            write_atomic(self._folder / "next" / "until", f"{until:.0f}".encode())
        write_atomic(self._folder / "next" / "signs", b"")

    def finish(self) -> None:
        """The new CA takes the old one's place, whose key is deleted. Raises ConfigError if there is none."""
        try:
            (self._folder / "next").rename(self._folder / "taken")
        except FileNotFoundError:
            raise ConfigError("the CA is not being replaced; `rotate-ca` begins that") from None
        sync_folder(self._folder)
        self._take()

    def _take(self) -> None:
        """The rest of ``finish``; may be killed and done again."""
        with contextlib.suppress(FileNotFoundError, StoreError):  # another process does the same
            signer = self._signer(self._folder / "taken")
            write_atomic(self._folder / "ca.key", signer.key, mode=0o600)
            write_atomic(self._folder / "ca.pem", signer.certificate)
            self._issue_server(signer, *self.server)
        shutil.rmtree(self._folder / "taken", ignore_errors=True)

    def _issue_server(self, signer: Signer, key: bytes, old: bytes) -> None:
        days, hosts = self.lifetime_days, pki.hosts(old)
        made = pki.issue_federator(signer.certificate, signer.key, key, hosts, self._clock(), days)
        write_atomic(self._folder / "server.pem", made)

    def _days(self, certificate: bytes) -> float:
        return (load_certificate(certificate).not_valid_after_utc - self._clock()).total_seconds() / DAY_S

    def _signer(self, folder: Path) -> Signer:
        where = folder.relative_to(self._folder)
        return Signer(self._read(str(where / "ca.pem")), self._read(str(where / "ca.key")))

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{self._folder / name}: {error.strerror}") from None


def stage(bundle: bytes, signer: bytes) -> str:
    """``Authority.stage`` for these CAs."""
    known = [trust.fingerprint(each) for each in (*trust.split(bundle), signer)]
    return hashlib.sha256(b"".join(known)).hexdigest()


def clock_time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) + " UTC"
