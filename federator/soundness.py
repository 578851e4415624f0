"""What the federator's doctor finds: certificates, database, published versions, silos and invitations.

Facts of a state folder come in, findings go out; federator/doctor.py gathers and orders them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feddiff.core import premises, trust
from feddiff.core.amounts import amount, duration
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, FedDiffError, IdentityError, StoreError
from feddiff.core.finding import Finding, ok, problem, refusal, warning
from feddiff.core.identity import load_certificate
from feddiff.core.segments import Layout
from feddiff.core.sharing import share
from feddiff.core.store import WeightsReader
from feddiff.core.volume import volume

CHUNK = 1 << 20
"""Values that are read at a time."""
LATE_S = 86400.0
"""An invitation that ends within this time deserves a word."""


def certificates(folder: Path, host: str, now: datetime) -> Iterator[Finding]:
    """The CA and the server's certificate: dates, keys, and the name that silos call."""
    try:
        authority, server = (folder / "ca.pem").read_bytes(), (folder / "server.pem").read_bytes()
        keys = (folder / "ca.key").read_bytes(), (folder / "server.key").read_bytes()
    except OSError as error:
        sentence = f"{error.filename}: {str(error.strerror).lower()}"
        yield problem(StoreError, "certificates", sentence, "put it back from the backup; `init` made it")
        return
    advice = "begin a new federation with `feddiff-federator init`, or restore a newer backup"
    whose = f"the CA {_print(authority)}"
    yield premises.certificate(authority, now, "authority", whose, advice, "feddiff-federator rotate-ca")
    renewed = "the daemon renews it: start it, and see in its log why it has not"
    yield premises.certificate(server, now, "certificate", "the server's certificate", renewed, renewed)
    try:
        trust.check_key_matches(authority, keys[0])
        trust.check_key_matches(server, keys[1])
        leaf, issuer = load_certificate(server), load_certificate(authority)
    except FedDiffError as error:
        yield refusal("certificates", error, "put certificates and keys of one backup together")
        return
    try:
        leaf.verify_directly_issued_by(issuer)
    except Exception:
        sentence = "the server's certificate is not signed by the CA in this folder: no silo will believe it"
        yield problem(IdentityError, "certificate", sentence, "put ca.pem and server.pem of one backup together")
    names = ", ".join(premises.hosts(leaf))
    if premises.answers_to(leaf, host):
        yield ok("host name", f"the server's certificate is for {names}; silos call {host}")
    else:
        yield problem(
            ConfigError,
            "host name",
            f"silos call {host}, and the server's certificate is for {names or 'no host'}: they will refuse it",
            "write the right HOST:PORT into the file `address`, or `init` anew with --also",
        )


def database(path: Path, config: FederationConfig) -> Iterator[Finding]:
    """Whether it is whole, and whether it is of these rules."""
    if not path.exists():
        yield ok("database", "there is none yet; the first invitation makes it")
        return
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            known = "facts" in tables and connection.execute("SELECT value FROM facts WHERE key = 'config'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        said, known = [str(error)], None
    if said != ["ok"]:
        advice = "stop the daemon and restore federation.db from the backup (docs/operations.md)"
        yield problem(StoreError, "database", f"federation.db is damaged: {'; '.join(said)}", advice)
        return
    yield ok("database", f"federation.db is whole ({amount(path.stat().st_size)})")
    if known and known[0] != config.digest:
        sentence = (
            f"the rules have changed since the federation began (digest {known[0][:12]}, now {config.digest[:12]})"
        )
        yield problem(ConfigError, "rules", sentence, "restore federation.toml, or begin anew in an empty folder")


def words(config: FederationConfig, layout: Layout) -> Iterator[Finding]:
    """What the rules mean."""
    try:
        moves, sharing = volume(config, layout), share(layout, config.plan, config.personal, config.frozen)
    except FedDiffError as error:
        yield refusal("rules", error)
        return
    rounds, silos = config.rounds, config.rounds.sampled or config.rounds.participants
    up, down = (config.codec.up, config.codec.down) if config.budget is None else ("the plan's", "the plan's")
    kept = f"; {sharing}" if str(sharing) else ""
    yield ok(
        "rules",
        f"{config.name}: plan {config.plan}, {rounds.count} rounds of {silos} silos, with {rounds.needed} updates"
        f" at least; a model of {layout.size / 1e6:.3g} million parameters{kept}",
    )
    whole = rounds.count * moves.round + moves.first
    yield ok(
        "traffic",
        f"each silo moves at most {amount(moves.down)} down ({down}) and {amount(moves.up)} up ({up}) in a round,"
        f" {amount(whole)} in all; this machine's line carries {amount(silos * moves.round)} a round",
        round_bytes=silos * moves.round,
        silo_bytes=whole,
    )


def versions(folder: Path) -> Finding:
    """Whether each published version on disk still is what was published: every byte is read."""
    damaged, count, size = [], 0, 0
    for path in sorted((folder / "weights").glob("*@*.safetensors")):
        try:
            with WeightsReader(path) as reader:
                digest = hashlib.sha256()
                for name in reader.names:
                    for start in range(0, reader.size(name), CHUNK):
                        digest.update(reader.read(name, start, min(CHUNK, reader.size(name) - start)).data)
                if reader.digest not in ("", digest.hexdigest()):
                    damaged.append(path.name)
            count, size = count + 1, size + path.stat().st_size
        except StoreError:
            if path.exists():  # else a running daemon has pruned it meanwhile
                damaged.append(path.name)
    if damaged:
        advice = "restore them from the backup; if only old versions are named, delete them"
        return problem(StoreError, "versions", f"damaged on disk: {', '.join(damaged[:8])}", advice)
    return ok("versions", f"{count} published files, {amount(size)}, all as they were published")


def silos(status: Mapping[str, Any], config: FederationConfig) -> Iterator[Finding]:
    """Who is enrolled and who is here. ``status``: what ``status --json`` tells."""
    live = status["phase"] != "stopped"
    yield ok("federation", f"{status['phase']}, round {status['round']} of {status['rounds']}: {status['reason']}")
    enrolled = [each for each in status["silos"] if each["enrolled"]]
    away = [each for each in enrolled if not each["reachable"]]
    told = ", ".join(f"{each['name']}{_state(each) if live else ''}" for each in enrolled) or "none"
    if len(enrolled) < config.rounds.participants and status["phase"] != "finished":
        yield warning(
            "silos",
            f"enrolled: {told}; the first round waits for {config.rounds.participants}",
            "feddiff-federator invite NAME, for each that is missing",
        )
    elif live and away and status["phase"] != "finished":
        yield warning("silos", f"enrolled: {told}", "ask those that are silent to run `feddiff-silo doctor`")
    else:
        yield ok("silos", f"enrolled: {told}")
    for each in status["silos"]:
        if not each["enrolled"]:
            advice = "an invitation lets it in again"
            yield warning("silos", f"{each['name']} was evicted: {each['note']}", advice)


def invitations(found: Sequence[tuple[str, float, bool]], now: float) -> Iterator[Finding]:
    """Those that nobody has used yet: (silo, when it ends, whether it is spent)."""
    for name, ends, spent in found:
        if spent:
            continue
        until = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC"
        again = f"feddiff-federator invite {name}"
        if ends <= now:
            yield warning("invitations", f"that of {name} ended on {until} without being used", again)
        elif ends - now < LATE_S:
            yield warning("invitations", f"that of {name} ends in {duration(ends - now)}, not used yet", again)
        else:
            yield ok("invitations", f"that of {name} is open until {until}")


def _state(silo: Mapping[str, Any]) -> str:
    if silo["training"]:
        return " (training)"
    if silo["reachable"]:
        return " (here)"
    return " (not heard of)" if silo["silent_s"] is None else f" (silent for {duration(silo['silent_s'])})"


def _print(pem: bytes) -> str:
    try:
        return trust.fingerprint(pem).hex()[:16]
    except IdentityError:
        return "of this folder"


def plain(status: str) -> dict[str, Any]:
    """The object of ``status --json``."""
    return dict(json.loads(status))
