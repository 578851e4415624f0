"""``feddiff-federator doctor``: what keeps the federation from running, before or while it does.

    rules ─► folder ─► certificates ─► port ─► database ─► what the rules mean ─► files they want ─► versions ─► silos

Gathers facts in that order; federator/soundness.py and core/premises.py judge them. It takes no lock, gives no orders
and changes nothing: a running daemon does not notice.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from feddiff.core import machine, premises
from feddiff.core.config import FederationConfig, load
from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.finding import Finding, ok, refusal, warning
from feddiff.core.segments import Layout
from feddiff.core.volume import federator_disk, training_memory
from feddiff.federator import desk, gauging, site, soundness, warmup
from feddiff.federator.database import Database
from feddiff.federator.roster import Roster

DAEMON_BYTES = 300 << 20
"""What the daemon takes, whatever the model; a model is only ever in the memory of its children."""
SECRETS = ("ca.key", "server.key")
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Patient:
    """A federator as ``serve`` would be called."""

    config: Path
    listen: str = ""
    """Empty: all addresses, the port given to init."""
    extractor: Path | None = None
    reference: Path | None = None
    pool: Path | None = None
    now: Callable[[], float] = time.time


def examine(patient: Patient) -> Iterator[Finding]:
    """Everything, in order; each finding comes as soon as it is known."""
    folder = patient.config.resolve().parent
    here, found = machine.look(), machine.inspect(folder, SECRETS)
    config: FederationConfig | None = None
    try:
        config = load(patient.config)
        host, port = site.address(folder)
    except FedDiffError as error:
        yield refusal("rules" if config is None else "folder", error)
        return
    yield from premises.folder(found, os.geteuid())
    if found.in_use:
        yield ok("daemon", "the federator is running in this folder; nothing here disturbs it")
    yield from soundness.certificates(folder, host, datetime.fromtimestamp(patient.now(), UTC))
    yield _port(patient.listen or f"[::]:{port}", found.in_use)
    yield _name(host)
    yield premises.clock(here, None, "anybody's")
    whole = list(soundness.database(folder / "federation.db", config))
    yield from whole
    try:
        layout = _layout(folder, config)
    except FedDiffError as error:
        yield refusal("model", error, "correct [model] in the rules")
        return
    yield from soundness.words(config, layout)
    yield from _files(patient, config)
    heavy = config.quality is not None or (config.pool is not None and config.pool.warmup > 0)
    need = DAEMON_BYTES + (training_memory(config, layout) if heavy else 0)
    yield premises.memory(here, need, "the daemon" + (" and its child, which holds the model" if heavy else ""))
    if any(each.level == "problem" for each in whole):
        yield premises.disk(found, federator_disk(config, layout, config.rounds.participants))
        return
    if (folder / "federation.db").exists():
        database = Database(folder / "federation.db")
        invitations = Roster(database).invitations()
        database.close()
    else:
        invitations = []
    begun = (folder / "layout.json").exists() and (folder / "federation.db").exists()
    status = soundness.plain(desk.status(patient.config, as_json=True)) if begun else {}
    members = max(config.rounds.participants, sum(each["enrolled"] for each in status.get("silos", ())))
    yield premises.disk(found, federator_disk(config, layout, members))
    if begun:
        yield soundness.versions(folder)
        yield from soundness.silos(status, config)
    else:
        yield ok("federation", "it has not begun: `feddiff-federator serve` begins it")
    yield from soundness.invitations(invitations, patient.now())


def _port(listen: str, running: bool) -> Finding:
    """Whether the daemon can have its port, or answers there already."""
    where, _, number = listen.rpartition(":")
    if not running:
        try:
            site.check_free(listen)
        except ConfigError as error:
            advice = "end what listens there (ss -ltnp shows it), or serve with another --listen"
            return refusal("port", error, advice)
        return ok("port", f"{listen} is free for the daemon; whether silos get through to it only they can tell")
    host = {"[::]": "::1", "0.0.0.0": "127.0.0.1", "": "127.0.0.1"}.get(where, where.strip("[]"))
    try:  # no further than this: a handshake without a silo's certificate would be in its log
        socket.create_connection((host, int(number)), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        sentence = f"the daemon runs, but nothing answers at {listen}: {getattr(error, 'strerror', None) or error}"
        return warning("port", sentence, "it may listen elsewhere: give the doctor serve's --listen")
    return ok("port", f"the daemon answers at {listen}; whether silos get through to it only they can tell")


def _name(host: str) -> Finding:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (socket.gaierror, UnicodeError) as error:
        sentence = f"no address is known here for {host}, under which silos call: {getattr(error, 'strerror', error)}"
        return warning(
            "name", sentence, "it must be known at the silos: check the DNS, or `init` with another --address"
        )
    return ok("name", f"silos call {host}, which is {', '.join(sorted(found)[:4])}")


def _layout(folder: Path, config: FederationConfig) -> Layout:
    """As it was made when the federation began, or as it will be."""
    if (folder / "layout.json").exists():
        try:
            return Layout.from_json((folder / "layout.json").read_text())
        except OSError as error:
            raise StoreError(f"{folder / 'layout.json'}: {error.strerror}") from None
    from feddiff.core import network

    return network.of(config).layout(config)


def _files(patient: Patient, config: FederationConfig) -> Iterator[Finding]:
    """What ``serve`` must be given with these rules."""
    given = (patient.extractor, patient.reference, patient.pool)
    try:
        gauging.check(config, patient.extractor, patient.reference)
        warmup.check(config, patient.pool)
    except ConfigError as error:
        if any(given):
            yield refusal("files", error)
        else:
            yield warning("files", str(error), "give the doctor what serve is given, so that it can look at it")
        return
    if any(given):
        told = [f"{name} {path}" for name, path in zip(("extractor", "reference", "pool"), given, strict=True) if path]
        yield ok("files", f"as the rules want them: {', '.join(told)}")
    if config.initial == "file":
        yield _initial(patient.config.resolve().parent)


def _initial(folder: Path) -> Finding:
    """Rules that begin with a published model."""
    if (folder / "layout.json").exists():
        return ok("files", "the published model that the rules begin with was taken in")
    return warning("files", "the rules begin with a published model", "give it to the first `serve` with --initial")
