"""What was decided of silos by their measurements (federator/filtering.py), durable, and what follows from it.

A round's verdicts are written in the transaction that closes it, so each is given once, whatever is killed; who is
warned and who is out is read off the newest verdict of each silo. Only the operator adds others: ``reinstated``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError
from feddiff.core.quality import OWN_IMAGES
from feddiff.federator import outbox
from feddiff.federator.database import Database
from feddiff.federator.filtering import Verdict, judge
from feddiff.federator.ledger import Reading

SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
  number INTEGER PRIMARY KEY, round INTEGER NOT NULL, silo TEXT NOT NULL, kind TEXT NOT NULL,
  finding TEXT NOT NULL, reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS verdicts_by_silo ON verdicts (silo, number);
"""

log = logging.getLogger("feddiff.federator")


class Verdicts:
    """The table of verdicts."""

    def __init__(self, database: Database, config: FederationConfig) -> None:
        self._database, self._config = database, config
        database.define(SCHEMA + outbox.SCHEMA)

    def all(self) -> list[Verdict]:
        """In the order in which they were given."""
        rows = self._database.rows("SELECT round, silo, kind, finding, reason FROM verdicts ORDER BY number")
        return [Verdict(*row) for row in rows]

    def close(
        self, round: int, planned: Collection[str], readings: Iterable[Reading], there: Collection[str]
    ) -> list[Verdict]:
        """Judge a round, which is being closed. ``planned``: who was to report; ``there``: who could go on with it.

        Nothing is decided before ``filter.since``, in rounds that are not measured, and in the last one.
        """
        rules, quality, rounds = self._config.filter, self._config.quality, self._config.rounds
        if rules is None or quality is None or not rules.since <= round < rounds.count:
            return []
        if not quality.due(round, rounds.count):
            return []
        told = {
            each.of: each.measured.value
            for each in readings
            if each.of in planned and (each.measured.metric, each.measured.against) == (rules.metric, OWN_IMAGES)
        }
        if silent := sorted(set(planned) - told.keys()):
            log.warning(
                "round %d: %s told no %s; that is no strike, and a warning stands",
                round,
                ", ".join(silent),
                rules.metric,
            )
        there = set(there) - self.out(round + 1).keys()
        given = list(judge(rules, round, told, self.warned(), there, rounds.needed))
        self._add(given)
        for each in given:
            log.log(logging.INFO if each.kind == "cleared" else logging.WARNING, "%s", _words(each))
        return given

    def warned(self) -> dict[str, str]:
        """Silos whose last reading was poor, and what it was."""
        return {silo: each.finding for silo, each in self._newest().items() if each.kind in ("warned", "kept")}

    def out(self, round: int) -> dict[str, str]:
        """Silos that may not be planned for a round, which is open or the next to open, and why."""
        if self._config.filter is None:
            return {}
        good = self._config.filter.out == "good"
        gone = {silo: each for silo, each in self._newest().items() if each.kind == "out"}
        return {silo: each.reason for silo, each in gone.items() if good or each.round == round - 1}

    def notes(self, round: int) -> dict[str, str]:
        """For people: what holds of silos in a round, which is open or the next to open; not of whom nothing does."""
        if self._config.filter is None:
            return {}
        marked = {silo: each for silo, each in self._newest().items() if each.kind in ("warned", "kept")}
        return self.out(round) | {silo: f"{each.kind}: {each.reason}" for silo, each in marked.items()}

    def note(self, silo: str, round: int) -> str:
        """Of one silo; empty if nothing holds."""
        return self.notes(round).get(silo, "")

    def reinstate(self, silo: str, round: int) -> None:
        """Take a silo back that is out, with a clean record. Raises ConfigError if it is not."""
        out = self.out(round)
        if silo not in out:
            raise ConfigError(f"{silo!r} is not out; filtered out: {', '.join(sorted(out)) or 'none'}")
        verdict = Verdict(round - 1, silo, "reinstated", "", "by the operator")
        self._add([verdict])
        log.warning("%s", _words(verdict))

    def _newest(self) -> dict[str, Verdict]:
        query = (
            "SELECT round, silo, kind, finding, reason FROM verdicts"
            " WHERE number IN (SELECT max(number) FROM verdicts GROUP BY silo)"
        )
        return {each.silo: each for each in (Verdict(*row) for row in self._database.rows(query))}

    def _add(self, verdicts: Sequence[Verdict]) -> None:
        with self._database.transaction() as change:
            change.executemany(
                "INSERT INTO verdicts (round, silo, kind, finding, reason) VALUES (?, ?, ?, ?, ?)",
                [(each.round, each.silo, each.kind, each.finding, each.reason) for each in verdicts],
            )
            for each in verdicts:
                facts = {"verdict": each.kind, "finding": each.finding, "reason": each.reason}
                outbox.note(change, "verdict", round=each.round, silo=each.silo, **facts)


def _words(verdict: Verdict) -> str:
    reason = verdict.reason if verdict.kind == "out" else f"{verdict.kind}: {verdict.reason}"
    return f"{verdict.silo} is {reason}"
