"""A round of a federation of peers, from its opening to its end, as the federator follows it.

    collecting ─► folding ─► checking ─► sharing ─► (keeping) ─► published
        ▲  an owner that is gone, cut off or lies: its ranges go to others, and all send again what those lack

The silos' updates go to the owners of their ranges; the federator hears checksums. When ``rounds.decide`` says whose
updates count, owners average those, other silos average samples of that again, and everybody fetches the result. The
round is over when they have: nothing is current before, and who owns what outlives the federator's process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from feddiff.core.errors import NotSelected, ProtocolError, RoundClosed
from feddiff.core.fold import BadUpdate
from feddiff.core.peers import Dealings, Declared, Duty, Folding, Result
from feddiff.core.ranges import Range, digest, split
from feddiff.core.spool import Manifest
from feddiff.federator.carrying import Carrying
from feddiff.federator.checking import Checking
from feddiff.federator.errands import errand
from feddiff.federator.holdings import Holdings
from feddiff.federator.neighbourhood import Neighbourhood
from feddiff.federator.ownership import own, reassign
from feddiff.federator.planner import Work
from feddiff.federator.tally import Tally

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

log = logging.getLogger("feddiff.federator")


class Exchange:
    """Of one federation; every method is called under ``federation.changed``."""

    def __init__(self, federation: Federation, tally: Tally) -> None:
        self._federation, self.tally = federation, tally
        self.holdings, self.carrying = Holdings(federation), Carrying(federation)
        self.near = Neighbourhood(federation, tally)
        self._round = 0
        self._clear()

    def _clear(self) -> None:
        self.owners: Mapping[Range, str] = {}
        self.revision = 0
        self.abandoned = ""
        """Why the round cannot go on."""
        self.bad: BadUpdate | None = None
        self.declared: dict[str, dict[str, Declared]] = {}
        self._delivered: dict[str, int] = {}
        self.near.clear()
        self.restart()

    def restart(self) -> None:
        """Back to collecting."""
        self._shared: dict[str, int] = {}
        self.chosen: tuple[str, ...] | None = None
        self.reason = ""
        self.foldings: dict[str, tuple[Range, Folding]] = {}
        self.results: dict[Range, Result] = {}
        self.checking: Checking | None = None
        self.keeps: dict[str, list[Manifest]] = {}
        """What the federator wants of whom for its checkpoint."""
        self.candidates: dict[str, int] = {}
        self.held_since: float | None = None

    def planned(self) -> list[str]:
        """The silos of the round."""
        current = self._federation.round
        silos = [each.silo for each in current.plan.assignments] if current is not None else []
        return [silo for silo in silos if silo not in self._federation.evicted]

    def senders(self, segment: str) -> tuple[str, ...]:
        """Those that report a segment."""
        current = self._federation.round
        return tuple(e.silo for e in current.plan.assignments if segment in e.up) if current is not None else ()

    # -- who owns what

    def sync(self) -> None:
        """Begin with the open round, or go on with it after a restart."""
        number = self._federation.open_round()
        if number is None or number == self._round:
            return
        self._clear()
        self._round = number
        told = json.loads(self._federation.journal.fact("owners") or "{}")
        before = {Range(*row[:3]): str(row[3]) for row in told.get("owners", ())}
        self.revision = int(told.get("revision", 0))
        if told.get("round") == number:
            self.owners = before
            shared = json.loads(self._federation.journal.fact("shared") or "{}")
            if shared.get("revision") == self.revision:
                self._shared = shared["versions"]
            return
        layout, codec = self._federation.layout, self._federation.config.codec
        chunks = {s.name: -(-s.size // codec.chunk_elements) for s in layout.segments if self.senders(s.name)}
        try:
            self._own(*vars(own(chunks, self.near.rates(self.planned()), before)).values())
        except NotSelected as error:
            self.abandoned = f"{error}: none of its silos listens"

    def _own(self, owners: Mapping[Range, str], reason: str) -> None:
        self.owners, self.revision = owners, self.revision + 1
        rows = [[each.segment, each.first, each.end, owner] for each, owner in owners.items()]
        told = {"round": self._round, "revision": self.revision, "owners": rows}
        self._federation.journal.note("owners", json.dumps(told))
        log.info("round %d, revision %d: %s", self._round, self.revision, reason)
        self.restart()
        self._federation.committed = self._federation.complete_updates()
        self._federation.quorum_since = None
        self._federation.changed.notify_all()

    def share(self, versions: Mapping[str, int]) -> None:
        """From now on silos hold these, which are not current yet; also if the federator is killed meanwhile."""
        self.candidates = dict(versions)
        told = {"revision": self.revision, "versions": self.candidates}
        self._federation.journal.note("shared", json.dumps(told))
        self._federation.changed.notify_all()

    def ahead(self) -> Mapping[str, int]:
        """The versions that silos may hold before they are current."""
        with self._federation.changed:
            self.sync()
            return self.candidates or self._shared

    def watch(self, now: float) -> None:
        """Give the ranges of owners that are gone to others."""
        self.sync()
        if self.abandoned or not self.owners:
            return
        rates = self.near.rates(self.planned())
        gone = set(self.owners.values()) - rates.keys()
        # What is out already is fetched from whoever holds it, if anybody does: averaging again is the last resort.
        if not gone or (self.candidates and self._safe()):
            return
        try:
            self._own(*vars(reassign(self.owners, rates)).values())
        except NotSelected as error:
            apart = self.near.apart()
            self.abandoned = f"{error}{f'; these do not reach each other: {apart}' if apart else ''}"
            log.error("round %d: %s", self._round, self.abandoned)

    def _safe(self) -> bool:
        """Whether all that was made can be had of silos that are here and listen."""
        there = self.near.listening(self._federation.presence)
        held = all(self.holdings.holders(segment, v) & there for segment, v in self.candidates.items())
        return held or set(self.owners.values()) <= there

    # -- what silos are told

    def work(self, silo: str) -> Work | None:
        """A silo's own part in the open round, or None if there is nothing (more) for it to do now."""
        federation = self._federation
        self.sync()
        assignment, number = federation.assignment(silo), federation.open_round()
        if assignment is None or number is None:
            return None
        held = federation.presence[silo].held if silo in federation.presence else {}
        mine = self._delivered.get(silo) == self.revision or silo in federation.journal.rejections(number)
        if self.chosen is not None or mine or self.abandoned:
            down, start, up = dict(self.candidates), dict(self.candidates), []
        else:
            start, up = assignment.targets(federation.current), federation.uploads(silo)
            down = {
                name: start.get(name, version)
                for name, version in federation.current.items()
                if (name in start or name not in held) and held.get(name) != self._shared.get(name, -1)
            }
        manifests, sources, missing = self.holdings.routes(silo, held, down, self.near.reached(silo))
        if missing or not (manifests or up):
            return None
        owners = {each: owner for each, owner in self.owners.items() if any(each.segment == m.segment for m in up)}
        wanted = {*owners.values(), *(each.silo for each in sources.values())} - {""}
        addresses = {name: self.near.advertised(name) for name in wanted}
        dealings = Dealings(self.revision, addresses, owners, sources)
        return Work(number, tuple(manifests), tuple(up), start, assignment.personal, dealings)

    def duty(self, silo: str) -> Duty:
        """What a silo is to do for others."""
        federation = self._federation
        self.sync()
        number = federation.open_round()
        if number is None or silo not in self.planned():
            return Duty()
        return errand(self, federation, silo, number)

    # -- what silos tell

    def declare(self, silo: str, round: int, revision: int, updates: Sequence[Declared]) -> None:
        """A silo's update is with its owners. Raises RoundClosed, ProtocolError."""
        federation = self._federation
        self._check(round)
        if [each.manifest for each in updates] != federation.uploads(silo):
            raise ProtocolError(f"{silo} declares other transfers than its task names")
        for each in updates:
            found = digest(each.manifest, split(each.checksums, each.manifest.chunks))
            federation.journal.commit_update(round, silo, each.manifest.segment, found, time.time())
        self.declared[silo] = {each.manifest.segment: each for each in updates}
        if self.chosen is None:
            self._delivered[silo] = revision
        federation.committed = federation.complete_updates()
        known = federation.hear(silo)
        known.phase = "done"
        federation.changed.notify_all()

    def complete(self) -> set[str]:
        """Silos whose whole update is with those who own its ranges now."""
        self.sync()
        return {silo for silo, revision in self._delivered.items() if revision == self.revision}

    def folded(self, silo: str, round: int, result: Result, blamed: str, reason: str) -> None:
        """An owner has averaged a range, or says why not. Raises RoundClosed, ProtocolError."""
        self._check(round)
        known = self.foldings.get(result.transfer)
        if known is None or self.owners.get(known[0]) != silo or known[0] in self.results:
            return  # of a plan that is over
        range, folding = known
        if blamed in {each.silo for each in folding.inputs}:
            self.bad = BadUpdate(blamed, f"{silo}, which averages {range}, says: {reason:.300}")
        elif reason:
            log.warning("%s cannot average %s now: %.300s", silo, range, reason)
            self.near.failed(silo)
            self._own(self.owners, "as before, and all is sent again")
        else:
            split(result.checksums, range.chunks)
            if result.lost:
                split(result.lost, range.chunks)
            self.results[range] = result
        self._federation.changed.notify_all()

    def judged(self, silo: str, round: int, owner: str, finding: str, reachable: bool) -> None:
        """A silo has averaged samples of another's results again. Raises RoundClosed."""
        self._check(round)
        if self.checking is None or not self.checking.judged(owner, silo, reachable):
            return
        if not reachable:
            self.near.complain(silo, owner)
        elif finding:
            self.near.lies(owner, f"round {round}: {silo} averaged samples again: {finding:.300}")
        self._federation.changed.notify_all()

    def complain(self, silo: str, round: int, other: str) -> None:
        """A silo cannot reach another."""
        self._check(round)
        self.near.complain(silo, other)
        self._federation.changed.notify_all()

    def _check(self, round: int) -> None:
        self.sync()
        if self._federation.open_round() != round:
            raise RoundClosed(f"round {round} is over")
