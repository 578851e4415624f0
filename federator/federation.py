"""The federation as the daemon's threads share it: who is here, which round it is, what each silo's task is.

Holds no socket. The service asks on behalf of silos, ``daemon`` advances the rounds, the operator steers; all of them
see one consistent state under one lock, and everything that must outlive the process is in the journal first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import NotSelected, ProtocolError, Revoked
from feddiff.core.segments import Layout
from feddiff.core.sharing import share
from feddiff.core.spool import Manifest
from feddiff.federator.database import Database
from feddiff.federator.exchange import Exchange
from feddiff.federator.forecast import forecast
from feddiff.federator.journal import Journal, Round
from feddiff.federator.ledger import Entry, Ledger
from feddiff.federator.links import Links
from feddiff.federator.planner import Assignment, Work
from feddiff.federator.pool import Pool
from feddiff.federator.presence import REACHABLE_S, Presence
from feddiff.federator.purse import Purse
from feddiff.federator.roster import Roster
from feddiff.federator.rounds import Decision
from feddiff.federator.statistics import Statistics
from feddiff.federator.tally import Tally
from feddiff.federator.verdicts import Verdicts
from feddiff.federator.versions import Versions

log = logging.getLogger("feddiff.federator")


class Federation:
    """One federation, as its federator runs it."""

    def __init__(self, folder: Path, config: FederationConfig, layout: Layout, database: Database) -> None:
        self.folder, self.config, self.layout = folder, config, layout
        self.database = database
        self.roster, self.journal, self.ledger = Roster(database), Journal(database), Ledger(database)
        self.sharing = share(layout, config.plan, config.personal, config.frozen)
        self.versions, self.links = Versions(folder, layout, config), Links(self.ledger)
        self.statistics, self.pool = Statistics(folder, config, self.journal), Pool(folder, config, self.journal)
        self.verdicts, self.tally = Verdicts(database, config), Tally(database)
        self.purse: Purse | None = None
        if config.budget is not None:
            self.purse = Purse(config, config.budget, layout, self.versions, self.ledger, self.links)
        self.changed = threading.Condition()
        self.presence: dict[str, Presence] = {}
        self.evicted = {silo.name for silo in self.roster.silos() if silo.evicted is not None}
        self.finished = self.journal.fact("finished") is not None
        self.phase = "waiting"
        self.decision = Decision("wait", "starting")
        self.current = self.journal.current()
        self.since = time.monotonic()
        self.quorum_since: float | None = None
        self.round = self.journal.last()
        self.exchange = Exchange(self, self.tally) if config.peers else None
        self.committed = self.complete_updates()

    # -- what the service asks on behalf of a silo

    def join(
        self, silo: str, samples: int, labels: Mapping[str, int], held: Mapping[str, int], device: str, software: str
    ) -> None:
        """A silo introduces itself; again after every restart of either side. Raises ProtocolError."""
        if not 1 <= samples <= 1 << 40:
            raise ProtocolError(f"{silo} says it has {samples} images; at least 1 is needed")
        self.roster.introduce(silo, samples, labels, device, software)
        with self.changed:
            if self.roster.get(silo).evicted is None:
                self.evicted.discard(silo)  # enrolled anew
            self.hear(silo, held)
            self.presence[silo].phase = "joined"
            log.info("%s joined with %d images (%s)", silo, samples, device)

    def hear(self, silo: str, held: Mapping[str, int] | None = None, progress: bool = True) -> Presence:
        """A sign of life. Raises Revoked, or ProtocolError for a version that was never published."""
        with self.changed:
            if silo in self.evicted:
                raise Revoked(f"{silo} was evicted")
            now = time.monotonic()
            known = self.presence.get(silo)
            if known is None:
                known = self.presence[silo] = Presence(now, now)
                self.changed.notify_all()
            known.heard_at = now
            if progress:
                known.progress_at = now
            if held is not None:
                newest = self.current if self.exchange is None else {**self.current, **self.exchange.ahead()}
                for segment, version in held.items():
                    if not 0 <= version <= newest.get(segment, -1):
                        raise ProtocolError(f"{silo} holds {segment!r:.80} version {version}, which never was")
                known.held = dict(held)
            return known

    def genuine(self, silo: str, segment: str, version: int, digest: str) -> bool:
        """Whether what a silo holds are the bits that were published; it gets anew what is not.

        They are not after the federator went back to an older backup, or when the silo's disk has rotted.
        """
        if version <= self.current.get(segment, -1):  # beyond it lies what is being made
            known = self.versions.digest(segment, version)
            if not digest or not known or digest == known:
                return True
        elif self.exchange is not None and self.exchange.ahead().get(segment) == version:
            self.exchange.holdings.told(silo, segment, version, digest)
            return True
        log.warning("%s holds a version %d of %s that this federation never published", silo, version, segment)
        return False

    def work(self, silo: str) -> Work | None:
        """The silo's part in the open round, or None if there is nothing (more) for it to do."""
        with self.changed:
            if self.exchange is not None:
                return self.exchange.work(silo)
            assignment = self.assignment(silo)
            if assignment is None or self.round is None or silo in self._settled(self.round.round):
                return None
            held = self.presence[silo].held if silo in self.presence else {}
            start = assignment.targets(self.current)
            due = {name: start.get(name, self.current[name]) for name in self._due(assignment, held)}
            down = self.versions.routes(held, due)
            if self.purse is not None and not self.purse.covers(assignment, down):
                self.reject(silo, "it has lost what it held; to bring that too would overspend its budget")
                return None
            if not down and not assignment.up:
                return None
            return Work(self.round.round, tuple(down), tuple(self.uploads(silo)), start, assignment.personal)

    def open_round(self) -> int | None:
        """The number of the round that collects updates, if one does."""
        return None if self.round is None or self.round.closed_at is not None else self.round.round

    @property
    def upcoming(self) -> int:
        """The number of the round that is open, or else of the next to open."""
        return self.open_round() or (1 if self.round is None else self.round.round + 1)

    def assignment(self, silo: str) -> Assignment | None:
        """A silo's part in the open round."""
        if self.round is None or self.round.closed_at is not None:
            return None
        return next((each for each in self.round.plan.assignments if each.silo == silo), None)

    def _due(self, assignment: Assignment, held: Mapping[str, int]) -> list[str]:
        """Segments that a silo may fetch: what the plan says, and what it has lost or never had.

        Not the latter under a budget, which plans that, too.
        """
        lost = set() if self.purse is not None else set(self.layout.names) - held.keys()
        return [name for name in self.layout.names if name in assignment.down or name in lost]

    def _settled(self, round: int) -> set[str]:
        return self.committed | self.journal.rejections(round).keys()

    def check_transfers(self, silo: str, wanted: Sequence[Manifest]) -> None:
        """Raises NotSelected for a published transfer that the silo's task does not name."""
        with self.changed:
            assignment = self.assignment(silo)
            held = self.presence[silo].held if silo in self.presence else {}
            allowed = self._due(assignment, held) if assignment else []
            for each in wanted:
                # Not the exact route of the task: which of two routes is shorter may have changed since.
                known = each.segment in allowed and each.version <= self.current[each.segment]
                if not known or each != self.versions.manifest(each.segment, each.base_version, each.version):
                    raise NotSelected(f"{silo} fetches {each.transfer}, which its task does not name")
                if not each.absolute and not self.versions.path(each).exists():
                    raise NotSelected(f"{silo} fetches {each.transfer}, which is gone; its task names another way now")

    def uploads(self, silo: str) -> list[Manifest]:
        """What the open round wants of a silo."""
        assignment, number = self.assignment(silo), self.open_round()
        if assignment is None or number is None:
            return []
        return [
            self.versions.upload(number, silo, name, self.current[name], assignment.codec) for name in assignment.up
        ]

    def committed_segment(self, silo: str, round: int, segment: str, digest: bytes, cost: Entry) -> bool:
        """Note a segment of an update, and what it cost, durably; False if it was noted before."""
        with self.changed:
            with self.database.transaction():
                assigned = self.assignment(silo)
                planned = assigned.up if assigned else ()
                fresh = self.journal.commit_update(round, silo, segment, digest, time.time(), planned)
                if fresh:
                    self.ledger.add(cost)
            self.committed = self.complete_updates()
            if silo in self.committed:
                known, assignment = self.hear(silo), self.assignment(silo)
                known.phase = "done"
                # It trained on these, and the next round may be planned before it says so itself.
                known.held |= {name: self.current[name] for name in (assignment.down if assignment else ())}
                self.changed.notify_all()
            return fresh

    def report(self, silo: str, round: int, phase: str, step: int, steps: int, metrics: Mapping[str, float]) -> bool:
        """Progress from inside the silo's work; False if the round no longer wants it."""
        with self.changed:
            known = self.hear(silo, progress=False)
            if (known.phase, known.step) != (phase, step):
                known.progress_at = known.heard_at
            known.phase, known.step, known.steps = phase, step, steps
            if self.assignment(silo) is None or self.open_round() != round or silo in self._settled(round):
                return False
            if self.exchange is not None and silo not in (self.exchange.chosen or (silo,)):
                return False
            if kept := known.admit(metrics):
                self.journal.measure(round, silo, kept)
            return True

    def reject(self, silo: str, reason: str) -> None:
        """Leave a silo's update out of the open round."""
        with self.changed:
            assert self.round is not None
            self.journal.reject(self.round.round, silo, reason)
            self.changed.notify_all()

    def evict(self, silo: str, reason: str) -> None:
        """Refuse a silo from now on and cut its streams. Raises ConfigError if it is not enrolled."""
        self.roster.evict(silo, reason)
        with self.changed:
            self.evicted.add(silo)
            known = self.presence.pop(silo, None)
            for cancel in list(known.streams) if known else ():
                cancel()
            self.statistics.forget(silo)
            log.warning("%s is evicted: %s", silo, reason)
            self.changed.notify_all()

    def reinstate(self, silo: str) -> None:
        """Take back a silo that the filter put out. Raises ConfigError if it did not."""
        with self.changed:
            self.verdicts.reinstate(silo, self.upcoming)
            self.changed.notify_all()

    # -- what the daemon asks to advance the rounds

    def spool(self, round: int) -> Path:
        return self.folder / "spool" / f"round-{round}"

    def complete_updates(self) -> set[str]:
        """Silos whose every planned segment of the open round is committed."""
        if self.round is None or self.round.closed_at is not None:
            return set()
        if self.exchange is not None:
            return self.exchange.complete()
        updates = self.journal.updates(self.round.round)
        planned = (each for each in self.round.plan.assignments if each.up)
        return {each.silo for each in planned if set(each.up) <= updates.get(each.silo, set())}

    def reachable(self, now: float) -> set[str]:
        """Silos that were heard from lately and are not evicted."""
        heard = {name for name, known in self.presence.items() if now - known.heard_at < REACHABLE_S}
        return heard - self.evicted

    def begin_round(self, silos: Sequence[str], reason: str) -> Round:
        """Plan the next round and make it everybody's task."""
        with self.changed:
            silos = [name for name in silos if name in self.presence]  # one may have been evicted this very moment
            plan = forecast(self, silos)
            taken = {each.silo for each in plan.assignments}
            known = [silo for silo in self.roster.silos() if silo.name in taken]
            weights = {silo.name: silo.samples + self.pool.given(silo.name) for silo in known}
            self.journal.open(plan, weights, time.time(), reason)
            self.round = self.journal.last()
            self.committed = set()
            self._restart_clock()
            assert self.round is not None
            return self.round

    def published(self, versions: Mapping[str, int], silos: tuple[str, ...]) -> None:
        """The round is over: its versions become current, in one durable step."""
        with self.changed:
            assert self.round is not None
            number, there = self.round.round, self.reachable(time.monotonic()) | (set(silos) - self.evicted)
            with self.database.transaction():
                digests = {name: self.versions.digest(name, version) for name, version in versions.items()}
                self.journal.publish(versions, number, silos, time.time(), digests)
                reporting = set(self.round.plan.reporting) - self.evicted
                self.verdicts.close(number, reporting, self.ledger.quality(number), there)
            self.current = self.journal.current()
            self.round = self.journal.last()
            self.committed = set()
            self._restart_clock()

    def _restart_clock(self) -> None:
        self.since, self.quorum_since = time.monotonic(), None
        for known in self.presence.values():
            known.metrics.clear()
        self.changed.notify_all()
