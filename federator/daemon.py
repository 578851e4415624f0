"""The federator as a running process: wiring, and the one loop that advances the rounds.

    view ──rounds.decide──► wait | open | fold | finish ──► view …

Everything that a round needs is on disk before it counts, so the loop may be killed between any two lines.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path

import grpc

from feddiff.core import notify, state, tls, wire
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.fold import BadUpdate
from feddiff.core.store import WeightsReader
from feddiff.federator import operator, outbox, site, warmup
from feddiff.federator.authority import Authority
from feddiff.federator.conclusion import conclude, under_way
from feddiff.federator.database import Database
from feddiff.federator.enroll import EnrollmentService
from feddiff.federator.federation import Federation
from feddiff.federator.gauging import Gauging, check
from feddiff.federator.initial import prepare
from feddiff.federator.intake import Intake
from feddiff.federator.journal import Journal, Round
from feddiff.federator.lookout import look, untold
from feddiff.federator.notary import Notary
from feddiff.federator.peering import ExchangeService
from feddiff.federator.probe import ProbeService
from feddiff.federator.publisher import Publisher
from feddiff.federator.rounds import Decision, decide
from feddiff.federator.service import FederationService
from feddiff.federator.traffic import Traffic
from feddiff.federator.upkeep import Upkeep
from feddiff.v1 import enrollment_pb2_grpc, federation_pb2_grpc, operator_pb2_grpc, peer_pb2_grpc, probe_pb2_grpc

MAX_THREADS = 256
FAREWELL_S = 90.0
"""How long a finished federator stays for silos that have yet to hear of it: longer than their longest back-off."""

log = logging.getLogger("feddiff.federator")


def open_federation(folder: Path, config: FederationConfig, initial: Path | None = None) -> Federation:
    """The federation of a state folder, made ready on first use. Raises ConfigError if the rules have changed.

    ``initial``: the published model to begin with, if the rules want one.
    """
    database = Database(folder / "federation.db")
    known = Journal(database).fact("config")
    layout = prepare(folder, config, initial, known is not None)
    federation = Federation(folder, config, layout, database)
    if known is not None and known != config.digest:
        raise ConfigError(
            f"the federation's rules have changed since it began (digest {known[:12]}, now {config.digest[:12]});"
            " restore the file, or begin a new federation in an empty folder"
        )
    if known is None:
        for name in config.codec.segments:
            layout.select(name)
        if federation.purse is not None:
            federation.purse.check()
        with WeightsReader(folder / "initial.safetensors") as reader:
            for segment in layout.names:
                federation.versions.publish_initial(segment, reader)
        made, digests = (
            federation.versions.initial_digest(),
            {n: federation.versions.digest(n, 0) for n in layout.names},
        )
        with database.transaction() as change:
            rules = {"federation": config.name, "plan": config.plan, "rounds": config.rounds.count}
            outbox.note(change, "rules", digest=config.digest, initial=made, **rules)
            federation.journal.note("initial", made)
            federation.journal.publish(dict.fromkeys(layout.names, 0), None, (), time.time(), digests)
            federation.journal.note("config", config.digest)
        federation.current = federation.journal.current()
    return federation


class Federator:
    """``feddiff-federator serve``. Holds the lock of its state folder while it lives."""

    def __init__(
        self,
        folder: Path,
        config: FederationConfig,
        listen: str,
        extractor: Path | None = None,
        reference: Path | None = None,
        initial: Path | None = None,
        pool: Path | None = None,
    ) -> None:
        check(config, extractor, reference)
        warmup.check(config, pool)
        self._lock = _lock(folder)
        state.mark(folder)
        self.federation = open_federation(folder, config, initial)
        self._gauging = Gauging(self.federation, extractor, reference)
        self._publisher, self._notary = Publisher(self.federation), Notary(folder, self.federation.database)
        last = self.federation.round
        self._notary.start(rules=config.digest, round=last.round if last else 0)
        self._warmup = warmup.Warmup(self.federation, pool)
        self._stop = threading.Event()
        self._servers: list[grpc.Server] = []
        self.port = self._serve_silos(folder, listen)
        self._serve_operator(folder)

    def _serve_silos(self, folder: Path, listen: str) -> int:
        federation = self.federation
        authority = Authority(folder)
        authority.renew_server()
        authority.check()
        self._upkeep = Upkeep(authority, federation.roster)
        self._upkeep.look()
        credentials = tls.server_credentials(
            lambda: (authority.server, authority.bundle, federation.roster.invitation_certificates())
        )
        server = grpc.server(
            futures.ThreadPoolExecutor(MAX_THREADS, "rpc"),
            interceptors=[wire.ErrorInterceptor(_refused)],
            options=wire.SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_THREADS,
        )
        site.check_free(listen)
        try:
            port = server.add_secure_port(listen, credentials)
        except RuntimeError:
            raise ConfigError(f"{listen} cannot be listened on; is the address one of this machine's?") from None
        self.traffic = Traffic(federation.ledger, port, lambda: federation.round.round if federation.round else 0)
        federation_pb2_grpc.add_FederationServicer_to_server(
            FederationService(federation, Intake(federation), self.traffic), server
        )
        peer_pb2_grpc.add_ExchangeServicer_to_server(ExchangeService(federation, self.traffic), server)
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(
            EnrollmentService(federation.roster, federation.config.name, authority), server
        )
        probe_pb2_grpc.add_ProbeServicer_to_server(ProbeService(federation, self.traffic, authority), server)
        wire.add_health(server)
        server.start()
        self._servers.append(server)
        return int(port)

    def _serve_operator(self, folder: Path) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(4, "operator"), interceptors=[wire.ErrorInterceptor(_refused)])
        operator_pb2_grpc.add_OperatorServicer_to_server(operator.OperatorService(self.federation), server)
        mask = os.umask(0o077)
        try:
            server.add_insecure_port(operator.choose_address(folder))
            server.start()
        finally:
            os.umask(mask)
        self._servers.append(server)

    def stop(self) -> None:
        """Ask ``run`` to return; safe in a signal handler."""
        notify.stopping("told to stop")
        self._stop.set()

    def run(self, told: Callable[[Round], None] = lambda _: None) -> bool:
        """Advance the rounds until they are done (True) or ``stop`` is called (False). ``told`` hears of each round."""
        flusher = threading.Thread(target=self._flush, name="traffic")
        flusher.start()
        try:
            self._gauging.start()
            notify.ready(f"port {self.port}")
            while not self._stop.is_set():
                if self._step(told):
                    self._farewell()
                    self._gauging.wait(self._stop.is_set)
                    return True
            return False
        finally:
            self._stop.set()
            for server in self._servers:
                server.stop(grace=1.0).wait()
            flusher.join()
            self._notary.keep_up()
            self._gauging.close()
            self._publisher.close()
            self._warmup.close()
            os.close(self._lock)

    def _step(self, told: Callable[[Round], None]) -> bool:
        federation = self.federation
        notify.alive()
        decision = decide(time.monotonic(), look(federation, time.monotonic()), federation.config.rounds)
        decision = under_way(federation, self._warmup.before(decision))
        if decision.reason != federation.decision.reason or decision.action not in ("wait", "fold"):
            notify.status(decision.reason)
            # Countdowns change every second; the log tells the first of them.
            quiet = (
                decision.action == "wait" and federation.decision.reason.split(" s ")[0][:24] == decision.reason[:24]
            )
            log.log(logging.DEBUG if quiet else logging.INFO, "%s", decision.reason)
        federation.decision = decision
        if decision.action == "open":
            federation.phase = "collecting"
            opened = federation.begin_round(decision.silos, decision.reason)
            log.info("round %d opens: %s", opened.round, opened.plan.reason)
        elif decision.action == "fold":
            federation.phase = "folding"
            self._fold(decision.silos)
            if federation.round is not None and federation.round.closed_at is not None:
                self.traffic.flush()
                told(federation.round)
        elif decision.action == "finish":
            with federation.changed:
                federation.journal.finish(decision.reason)
                federation.finished = True
                federation.changed.notify_all()
            return True
        else:
            view = look(federation, time.monotonic())
            federation.phase = "collecting" if view.collecting else "paused" if view.paused else "waiting"
            if view.collecting and federation.exchange is None:
                self._publisher.ahead([silo for silo, each in view.planned.items() if each.rejected])
            with federation.changed:
                federation.changed.wait(0.5)
        return False

    def _fold(self, silos: tuple[str, ...]) -> None:
        """Average the updates of these silos and publish; or reject a bad one and try again."""
        federation, current = self.federation, self.federation.round
        assert current is not None
        try:
            if federation.exchange is None:
                versions: Mapping[str, int] | None = self._publisher.publish(current, silos)
            else:
                versions = conclude(federation.exchange, federation, silos)
        except BadUpdate as error:
            log.error("round %d: the update of %s is rejected: %s", current.round, error.silo, error.reason)
            federation.reject(error.silo, error.reason)
            return
        if versions is None:  # the silos are at work
            with federation.changed:
                federation.changed.wait(0.5)
            return
        left_out = sorted(set(current.plan.reporting) - set(silos))
        if left_out and silos:
            log.warning("round %d is averaged WITHOUT %s", current.round, ", ".join(left_out))
        federation.published(versions, silos)
        log.info("round %d is published: %d updates, %d segments", current.round, len(silos), len(versions))
        self._gauging.keep(current.round)
        federation.versions.prune(federation.current)
        for old in (federation.folder / "spool").glob("round-*"):
            shutil.rmtree(old, ignore_errors=True)  # a straggler may be writing; the next round tidies up

    def _farewell(self) -> None:
        """Stay until every silo of the last round, and every one that is here, has heard that it is over."""
        federation, until = self.federation, time.monotonic() + FAREWELL_S
        log.info("finished: %s", federation.decision.reason)
        with federation.changed:
            while time.monotonic() < until and not self._stop.is_set():
                notify.alive()
                waiting = untold(federation, time.monotonic())
                if not waiting:
                    break
                federation.decision = Decision("wait", f"finished; {', '.join(sorted(waiting))} have yet to hear of it")
                federation.changed.wait(0.2)
        time.sleep(0.3)  # the last answers are on their way

    def _flush(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(0.5)
            self._upkeep.look()
            try:
                self.traffic.flush()
            except (OSError, sqlite3.Error) as error:
                log.error("the ledger cannot be written: %s", error)  # what was counted is kept for the next time
            self._notary.keep_up()


def _refused(method: str, peer: str, error: FedDiffError) -> None:
    log.warning("%s refused to %s: %s", method, peer, error.sentence)


def _lock(folder: Path) -> int:
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{folder} is in use by another federator") from None
    return handle
