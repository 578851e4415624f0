"""What a silo shows and trusts at every handshake: its key, its certificate, the federation's CAs. On disk, as one.

    key.pem certificate.pem authority.pem    what counts
    renewed.pem                              all three, while they are being replaced

The three change together: ``renewed.pem`` appears by one rename and is what counts as long as it is there, so a kill
between the files leaves either the old ones or the new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feddiff.core import trust
from feddiff.core.errors import IdentityError, StoreError
from feddiff.core.store import sync_folder, write_atomic

PENDING = "renewed.pem"
_KEY_ENDS = b"-----END PRIVATE KEY-----\n"
_CERTIFICATE_ENDS = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Credentials:
    """All PEM. ``authorities``: every CA that is trusted, one after another."""

    key: bytes
    certificate: bytes
    authorities: bytes


def store(folder: Path, credentials: Credentials) -> None:
    """Replace what counts, at once. Raises StoreError."""
    key, certificate = credentials.key.strip() + b"\n", credentials.certificate.strip() + b"\n"
    write_atomic(folder / PENDING, key + certificate + credentials.authorities, mode=0o600)
    settle(folder)


def settle(folder: Path) -> None:
    """Finish what a kill interrupted; by whoever holds the folder's lock. Raises StoreError."""
    found = _pending(folder)
    if found is None:
        return
    write_atomic(folder / "key.pem", found.key, mode=0o600)
    write_atomic(folder / "certificate.pem", found.certificate)
    write_atomic(folder / "authority.pem", found.authorities)
    (folder / PENDING).unlink()
    sync_folder(folder)


def load(folder: Path) -> Credentials:
    """What counts. Changes nothing. Raises StoreError, IdentityError for files that do not belong together."""
    for _ in range(3):  # a daemon may be replacing them just now
        found = _pending(folder) or Credentials(*(_read(folder / f"{name}.pem") for name in _FILES))
        try:
            trust.check_key_matches(found.certificate, found.key)
            break
        except IdentityError:
            wrong = found
    else:
        trust.check_key_matches(wrong.certificate, wrong.key)
    return found


_FILES = ("key", "certificate", "authority")


def _pending(folder: Path) -> Credentials | None:
    try:
        text = (folder / PENDING).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{folder / PENDING}: {error.strerror}") from None
    key, ended, rest = text.partition(_KEY_ENDS)
    certificate, ended_too, authorities = rest.partition(_CERTIFICATE_ENDS)
    if not (ended and ended_too and authorities):
        raise StoreError(f"{folder / PENDING} is not what this software wrote; delete it")
    return Credentials(key + ended, certificate + ended_too, authorities)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
