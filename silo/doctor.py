"""``feddiff-silo doctor``: what keeps this silo from taking part, before or while it does.

    state ─► identity ─► rules ─► images ─► the way ─► who answers ─► demands ─► model ─► line ─► time of a round

Gathers facts in that order and lets pure functions judge them; what cannot be known yet is left out or said. It takes
no lock and spends no invitation; all it changes is the federator's ledger, by the few megabytes that measure the line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from feddiff.core import machine, pki, premises, trust
from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.finding import Finding, ok, problem, refusal, warning
from feddiff.core.identity import Invitation, load_certificate
from feddiff.core.volume import silo_disk, volume
from feddiff.silo import credentials, reach, rehearsal, stock, workload
from feddiff.silo.local import DECODED, read_identity
from feddiff.silo.probe import Answer, Line, Probe
from feddiff.silo.route import Route, travel
from feddiff.silo.source import Source
from feddiff.silo.trained import Trained

UPKEEP = "the daemon renews it while it runs: start it, and see in its log why it has not"
RENEW = "ask the federation's operator for a new invitation, and run the command that comes with it"


@dataclass
class Patient:
    """A silo as its administrator describes it on the command line, and what becomes known of it on the way."""

    state: Path
    address: str = ""
    """Of the federator; empty: that of the state folder or the invitation."""
    source: Source | None = None
    invitation: Invitation | None = None
    extractor: Path | None = None
    accept_pool: bool = False
    processes: int | None = None
    now: Callable[[], float] = time.time
    config: FederationConfig | None = field(default=None, init=False)
    answer: Answer | None = field(default=None, init=False)
    enrolled: bool = field(default=False, init=False)
    key: bytes = field(default=b"", init=False, repr=False)
    certificate: bytes = field(default=b"", init=False)
    authorities: bytes = field(default=b"", init=False)
    known: list[x509.Certificate] = field(default_factory=list, init=False)
    """The federation's CAs."""

    @property
    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)


def examine(patient: Patient) -> Iterator[Finding]:
    """Everything, in order; each finding comes as soon as it is known."""
    here, folder = machine.look(), machine.inspect(patient.state, ("key.pem",))
    yield from premises.folder(folder, os.geteuid())
    if folder.in_use:
        yield ok("daemon", "feddiff-silo is at work in this folder; nothing here disturbs it")
    yield from _identity(patient)
    route: Route | None = None
    if patient.address:
        try:
            route = travel(patient.address, patient.key + patient.certificate)
        except ConfigError as error:
            yield refusal("address", error, "give the federator's address with --federator")
    else:
        advice = "give --federator HOST:PORT"
        yield warning("address", "it is not known where the federator is: nothing of the network was tried", advice)
    if route is not None:
        yield from reach.way(route)
        yield from _federator(patient, route)
    yield premises.clock(here, patient.answer.ahead_s if patient.answer else None, "the federator's")
    yield from _rules(patient)
    config, images = patient.config, 0
    if patient.source is not None:
        # What is decoded here the daemon need not decode again; without the rules it would be of another size.
        cache = patient.state / DECODED if folder.exists and not folder.in_use and config is not None else None
        found = stock.take(patient.source, config, cache)
        images = 0 if isinstance(found, FedDiffError) else found.total
        yield from stock.judge(found, config)
    else:
        yield warning("images", "no images were looked at", "give --data FOLDER")
    last = _last(patient.state)
    worth = images > 0 or patient.source is None  # without images there is nothing that the steps would tell
    steps = config is not None and worth and not folder.in_use and not last.get("seconds")
    tried = rehearsal.rehearse(config.canonical() if config else b"", steps)
    if config is not None:
        yield from workload.demands(config, patient.extractor, patient.accept_pool, patient.processes, len(tried.gpus))
        cut = workload.layout(tried, patient.answer.layout_digest if patient.answer else "")
        yield from [cut] if cut else []
    yield from workload.device(config, here, tried, images)
    model = tried.layout if config is not None else None
    yield premises.disk(folder, silo_disk(config, model) if config is not None and model is not None else None)
    line: Line | None = None
    if patient.answer is not None and patient.enrolled:
        try:
            with _asking(patient) as probe:
                line = probe.line()
            yield reach.line(line)
        except FedDiffError as error:
            yield warning("line", f"its rate was not measured: {error}", "try again later")
    if config is not None and model is not None:
        why = "the daemon is at work, whose first round will tell" if folder.in_use else ""
        yield workload.time_of_round(config, volume(config, model), line, tried, images, last, why)


def _identity(patient: Patient) -> Iterator[Finding]:
    """Enrolled or not, and the certificate."""
    state, invitation = patient.state, patient.invitation
    if not (state / "identity.json").exists():
        if invitation is None:
            yield warning(
                "enrolment",
                f"this silo is not enrolled: there is no identity in {state}",
                "the federation's operator invites it: `feddiff-federator invite NAME`; or give another --state",
            )
            return
        patient.address = patient.address or invitation.address
        patient.certificate, patient.key = pki.invitation_certificate(invitation.name, invitation.secret)
        yield ok("enrolment", f"not enrolled yet; the invitation is for {invitation.name} at {invitation.address}")
        return
    try:
        name, _ = read_identity(state)
        where = json.loads((state / "identity.json").read_text())
        mine = credentials.load(state)
        patient.certificate, patient.key, patient.authorities = mine.certificate, mine.key, mine.authorities
        patient.known = [load_certificate(each) for each in trust.split(mine.authorities)]
    except FedDiffError as error:
        yield refusal("enrolment", error, RENEW)
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it cannot be read"
        sentence = f"the certificates in {state} are not all there: {str(why).lower()}"
        yield problem(ConfigError, "enrolment", sentence, f"run the doctor as the daemon's user; if it is so: {RENEW}")
        return
    patient.enrolled, patient.address = True, patient.address or str(where.get("federator", ""))
    yield ok("enrolment", f"{name} is enrolled in {where.get('federation', 'a federation')}")
    whose = f"the certificate of {name}"
    yield premises.certificate(patient.certificate, patient.clock, "certificate", whose, RENEW, UPKEEP)


def _federator(patient: Patient, route: Route) -> Iterator[Finding]:
    """TLS, whose certificate is shown, and what the federator says of itself."""
    expected = patient.invitation.authority if patient.invitation and not patient.enrolled else None
    found = list(reach.handshake(route, patient.known, None if patient.enrolled else expected, patient.clock))
    asking = bool(route.shown and patient.certificate) and not any(each.level == "problem" for each in found)
    if not asking:
        yield from found
        return
    try:
        with _asking(patient, route.shown[0]) as probe:
            answer = probe.look(patient.now())
        told = [load_certificate(each) for each in trust.split(answer.authority)]
    except FedDiffError as error:
        yield from found
        yield reach.silence(error, patient.enrolled)
        return
    if expected is not None:
        found = list(reach.handshake(route, told, expected, patient.clock))
    yield from found
    if any(each.level == "problem" for each in found):
        return
    patient.answer = answer
    trusted = patient.known or told
    leaf = load_certificate(route.shown[0])
    signer = next(each for each in trusted if reach.signed_by(leaf, [each]))
    basis = "as the invitation says" if expected is not None else "as installed here"
    yield ok("authority", f"CA fingerprint {signer.fingerprint(hashes.SHA256()).hex()[:16]}, {basis}")
    if answer.until:
        ends = datetime.fromtimestamp(answer.until, UTC)
        yield ok("invitation", f"{answer.federation} knows it; it can be used until {ends:%Y-%m-%d %H:%M} UTC")
    yield from reach.answer(answer)


def _rules(patient: Patient) -> Iterator[Finding]:
    """The federation's rules: as the federator tells them, or as they were first received."""
    kept = patient.state / "rules.json"
    try:
        known = parse(kept.read_bytes()) if kept.exists() else None
        config = parse(patient.answer.rules) if patient.answer is not None else known
    except FedDiffError as error:
        yield refusal("rules", error, "install the federator's version of feddiff here")
        return
    except OSError as error:
        yield problem(ConfigError, "rules", f"{kept}: {error.strerror}", "run the doctor as the daemon's user")
        return
    patient.config = config
    if config is None:
        yield warning("rules", "the federation's rules are not known here yet", "enrol, or give --join TOKEN to ask")
    elif known is not None and known.digest != config.digest:
        sentence = f"the federator's rules have changed (digest {known.digest[:12]}, now {config.digest[:12]})"
        yield problem(ConfigError, "rules", sentence, "for another federation give another --state")
    else:
        source = "" if patient.answer is not None else ", as they were when it joined"
        words = f"{config.name}: plan {config.plan}, {config.rounds.count} rounds{source} (digest {config.digest[:12]})"
        yield ok("rules", words)


def _asking(patient: Patient, shown: bytes = b"") -> Probe:
    """A connection to ask by. Not enrolled, the server's own certificate is the root, as when enrolling."""
    return Probe(patient.address, patient.authorities if patient.enrolled else shown, patient.key, patient.certificate)


def _last(state: Path) -> dict[str, float]:
    """Metrics of the silo's last training; empty if there was none."""
    try:
        return Trained(state).metrics()
    except (FedDiffError, OSError, ValueError, KeyError):
        return {}
