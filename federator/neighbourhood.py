"""Which silos are there for others, and who reaches whom, where silos average for each other.

What lasts is in the journal: where a silo says it listens, what it was found out with. The rest is of one round, and
is learnt again after a restart: silos that cannot reach each other say so each time that they try.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from statistics import median
from typing import TYPE_CHECKING

from feddiff.federator.ownership import usable
from feddiff.federator.tally import Tally

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

AWAY_S = 30.0
"""An owner that is not heard for this long (or for ``rounds.grace``, if that is less) is gone."""
SURE_S = 3.0
"""A silo that another cannot reach for this long, while the federator hears it, is cut off from that one, not gone."""
TRIES = 3
"""A silo that could not average so often owns nothing in this round any more."""
RATES = 3
"""Rounds whose measured rates count."""
log = logging.getLogger("feddiff.federator")


class Neighbourhood:
    """Of one federation."""

    def __init__(self, federation: Federation, tally: Tally) -> None:
        self._federation, self._tally = federation, tally
        self._born = time.monotonic()
        self.clear()

    def clear(self) -> None:
        """A new round: who could not be reached may be again."""
        self._cut: set[frozenset[str]] = set()
        self._complaints: dict[tuple[str, str], tuple[float, float]] = {}
        self._failed: Counter[str] = Counter()

    def advertised(self, silo: str) -> str:
        """Where other silos reach it; empty if it does not listen."""
        return self._federation.journal.fact(f"address {silo}") or ""

    def alive(self, silo: str) -> bool:
        """Whether a silo was heard lately."""
        known, patience = self._federation.presence.get(silo), min(AWAY_S, self._federation.config.rounds.grace)
        heard = self._born if known is None else known.heard_at  # after a restart, all have the time to come back
        return time.monotonic() - heard < max(patience, 2.0)

    def listening(self, silos: Collection[str]) -> set[str]:
        """Those of these silos that are here and listen."""
        return {silo for silo in silos if self.alive(silo) and self.advertised(silo)}

    def reached(self, silo: str) -> set[str]:
        """Silos that listen, are here, and that this one reaches."""
        here = self.listening(self._federation.presence)
        return {name for name in here if name != silo and frozenset((name, silo)) not in self._cut}

    def rates(self, planned: Collection[str]) -> dict[str, float]:
        """Silos of these that may own ranges now, and how fast they sent."""
        willing = [silo for silo in self.listening(planned) if not self.liar(silo) and self._failed[silo] < TRIES]
        known = {silo: self._tally.rate(silo, RATES) for silo in sorted(usable(willing, self._cut))}
        measured = [rate for rate in known.values() if rate]
        return {silo: rate or (median(measured) if measured else 1.0) for silo, rate in known.items()}

    def apart(self) -> str:
        """The pairs that do not reach each other, for people."""
        return ", ".join(sorted("–".join(sorted(pair)) for pair in self._cut))

    def complain(self, silo: str, other: str) -> None:
        """A silo cannot reach another. Once is chance; it says so each time that it tries."""
        now, known = time.monotonic(), self._federation.presence.get(other)
        first, last = self._complaints.get((silo, other), (now, now))
        if now - last > AWAY_S:
            first = now
        self._complaints[silo, other] = (first, now)
        if known is not None and now - first > SURE_S and known.heard_at > first + SURE_S:
            log.warning("%s and %s do not reach each other", silo, other)
            self._cut.add(frozenset((silo, other)))

    def failed(self, silo: str) -> None:
        """It could not average."""
        self._failed[silo] += 1

    def bar(self, silos: Sequence[str], reason: str) -> None:
        """These own nothing in this round any more."""
        for silo in silos:
            log.error("%s %s: it owns nothing in this round any more", silo, reason)
            self._failed[silo] = TRIES

    def liar(self, silo: str) -> str:
        """What it was found out with; empty if nothing."""
        return self._federation.journal.fact(f"lying {silo}") or ""

    def lies(self, silo: str, finding: str) -> None:
        """It was found out, and owns nothing from now on."""
        log.error("%s lies and owns nothing from now on: %s", silo, finding)
        self._federation.journal.note(f"lying {silo}", finding)
