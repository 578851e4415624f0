"""A federator's folder before it serves: the CA, the server's certificate, the example config, invitations.

ca.pem  ca.key  server.pem  server.key  audit.key  federation.toml  address  lifetime    served: federation.db, weights
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from feddiff.core import config as rules
from feddiff.core import pki, trust
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.identity import Identity, Invitation, check_name, parse_address
from feddiff.core.presets import PRESETS
from feddiff.core.store import write_atomic
from feddiff.federator import notary
from feddiff.federator.authority import Authority
from feddiff.federator.measure import seconds
from feddiff.federator.operators import Operators
from feddiff.federator.roster import Roster

_EXAMPLE = """\
# One federation. Every silo gets these rules when it joins; they cannot change once it has begun.
name = "{name}"
preset = "{preset}"        # {presets}; or give your own [model]
plan = "full"              # full | usplit | ulatdec | udec: which UNet segments travel (docs/plans.md)
seed = 0

# [training]
# epochs = 2               # local epochs of a round (or: steps = 500); the preset has its own

[codec]
up = "fp32"                # fp32 | bf16 | fp16
down = "fp32"

[rounds]
count = 10
participants = 2           # the first round waits for this many silos
# sampled = 2              # each round takes so many of the silos that are here, by turns (default: all)
# quorum = 2               # a round needs this many updates (default: sampled, or participants)
grace = 300                # seconds for stragglers once the quorum is in
deadline = 900             # seconds without progress after which a silo is no longer waited for

# [quality]                # measure the models while they train (docs/quality.md)
# extractor = "…"          # SHA-256 of the TorchScript file that makes features: serve --extractor FILE
# every = 5                # rounds; the last one always
# samples = 1000
# reference = "held"       # held: images of your own, serve --reference FOLDER | federated: moments of all silos'
"""


def init(folder: Path, name: str, preset: str, address: str, also: list[str], lifetime: str = f"{pki.DAYS}d") -> str:
    """Make the folder. Returns what to do next. Raises ConfigError for a folder that is a federator's already."""
    check_name(name)
    host, port = parse_address(address)
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}; known: {', '.join(PRESETS)}")
    days = seconds(lifetime, "--lifetime") / 86400
    if (folder / "ca.key").exists():
        raise ConfigError(f"{folder} is a federator's folder already; choose another, or keep it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}") from None
    names = [host, *also]
    if host == "localhost" or _loopback(host):
        names += [each for each in ("localhost", "127.0.0.1", "::1") if each not in names]
    now = datetime.now(UTC)
    authority, authority_key = pki.create_authority(name, now)
    key = pki.make_key()
    server = pki.issue_federator(authority, authority_key, key, names, now, days)
    write_atomic(folder / "server.key", key, mode=0o600)
    write_atomic(folder / "server.pem", server)
    write_atomic(folder / "address", f"{address}\n".encode())
    write_atomic(folder / "lifetime", f"{lifetime}\n".encode())
    if not (folder / "federation.toml").exists():
        text = _EXAMPLE.format(name=name, preset=preset, presets=" | ".join(PRESETS))
        write_atomic(folder / "federation.toml", text.encode())
    signs = notary.found(folder)
    write_atomic(folder / "ca.pem", authority)
    write_atomic(folder / "ca.key", authority_key, mode=0o600)
    return (
        f"{folder} is ready for {name} at {host}:{port} (certificate names: {', '.join(names)})\n"
        f"its CA:  {trust.fingerprint(authority).hex()}\n"
        f"the key of its audit log:  {signs}\n"
        f"next:  edit {folder / 'federation.toml'}\n"
        f"       feddiff-federator invite hospital-a --config {folder / 'federation.toml'}\n"
        f"       feddiff-federator serve --config {folder / 'federation.toml'}"
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(folder: Path) -> tuple[str, int]:
    """Where silos reach this federator. Raises ConfigError if the folder was not made by ``init``."""
    if not (folder / "ca.pem").exists():
        raise ConfigError(f"{folder} is not a federator's folder; `feddiff-federator init {folder}` makes one")
    return parse_address((folder / "address").read_text().strip())


def joined(host: str, port: int) -> str:
    """An address as it is typed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def invite(config: Path, name: str, expires: str) -> str:
    """A new one-time token for a silo; an earlier one of that name no longer holds. Raises ConfigError."""
    check_name(name)
    rules.load(config)
    folder = config.resolve().parent
    host, port = address(folder)
    until = time.time() + seconds(expires, "--expires")
    secret = secrets.token_bytes(32)
    certificate, _ = pki.invitation_certificate(name, secret)
    with notary.attended(folder) as database:
        if any(each.name == name for each in Operators(database).all()):
            raise ConfigError(f"{name} is an operator's name; a silo needs another")
        Roster(database).invite(name, certificate, Identity.from_certificate(certificate).fingerprint, until)
    return Invitation(
        name, joined(host, port), trust.fingerprint(Authority(folder).current.certificate), secret
    ).token()


def operator(config: Path, name: str, expires: str) -> str:
    """A new token of an operator. Raises ConfigError for a name that is a silo's."""
    rules.load(config)
    folder = config.resolve().parent
    address(folder)
    with notary.attended(folder) as database:
        Roster(database).check_free(name)
        return Operators(database).issue(name, seconds(expires, "--expires") / 86400)


def invitation_text(token: str, name: str, expires: str) -> str:
    """What the operator sends to the institution."""
    where = Invitation.parse(token).address
    return (
        f"# at {name}, once, within {expires} (the token is secret; it works one time):\n"
        f"feddiff-silo --data FOLDER_OF_IMAGES --federator {where} --join {token}"
    )


def check_free(listen: str) -> None:
    """gRPC's own message for a port in use is two lines of C core; say it in one. Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {listen}: HOST:PORT was expected, e.g. [::]:50051")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"{listen} cannot be listened on: {str(getattr(error, 'strerror', error)).lower()}"
            ) from None
