"""The plan of the next round, in words: who would take part, what each would fetch and send, and what it waits for.

It is the planner's own plan as things stand (federator/forecast.py), made anew when it may have changed: a silo came or
went, a round opened or closed. Only read; the round that opens is planned when it does.
"""

from __future__ import annotations

import time
from typing import Any

from feddiff.federator.federation import Federation
from feddiff.federator.forecast import forecast
from feddiff.federator.measure import amount
from feddiff.federator.planner import Assignment


class Outlook:
    """Of one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._key: object = None
        self._told: dict[str, Any] = {}

    def tell(self) -> dict[str, Any]:
        """``round`` (None: there is none), ``words``, and ``parts``: [what silos do, their names]."""
        federation = self._federation
        with federation.changed:
            open_round = federation.open_round()
            following = federation.upcoming + (open_round is not None)
            here = federation.reachable(time.monotonic())
        here -= federation.verdicts.out(following).keys()
        paused, stopping = (federation.journal.fact(key) == "yes" for key in ("paused", "stopping"))
        key = (following, open_round, frozenset(here), paused, stopping, federation.finished)
        if key != self._key:
            self._told = self._tell(following, open_round, sorted(here), paused, stopping)
            self._key = key
        return self._told

    def _tell(
        self, number: int, open_round: int | None, here: list[str], paused: bool, stopping: bool
    ) -> dict[str, Any]:
        federation, rules = self._federation, self._federation.config.rounds
        if federation.finished:
            return _none("The federation is finished: no round follows.")
        if number > rules.count:
            return _none(f"Round {rules.count} is the last one.")
        if stopping:
            return _none("An operator has stopped the federation: no round follows the one that is open.")
        words = [f"Round {number} waits until an operator resumes."] if paused else []
        words += [f"It opens when round {open_round} is over."] if open_round is not None else []
        needed = rules.participants if number == 1 else rules.needed
        if len(here) < needed:
            words.append(f"It needs {needed} silo{'' if needed == 1 else 's'}; here: {', '.join(here) or 'none'}.")
            return {"round": number, "words": " ".join(words), "parts": []}
        if federation.purse is not None and open_round is not None:
            words.append("What each silo may spend is planned then, by what it holds and how fast its link was.")
            return {"round": number, "words": " ".join(words), "parts": []}
        with federation.changed:
            plan = forecast(federation, [name for name in here if name in federation.presence], number)
        words.append(f"As things stand: {plan.reason}.")
        groups: dict[str, list[str]] = {}
        for each in plan.assignments:
            groups.setdefault(self._part(each), []).append(each.silo)
        return {"round": number, "words": " ".join(words), "parts": [[what, who] for what, who in groups.items()]}

    def _part(self, part: Assignment) -> str:
        layout = self._federation.layout
        down, up = (sum(layout[name].size for name in names) for names in (part.down, part.up))
        sends = f"sends {_segments(part.up)} ({amount(4 * up)})" if part.up else "sends nothing"
        home = (
            f"; {', '.join(part.personal)} stay{'s' if len(part.personal) == 1 else ''} home" if part.personal else ""
        )
        return f"fetches {_segments(part.down)} ({amount(4 * down)} before the codec), {sends}{home}: {part.reason}"


def _segments(names: tuple[str, ...]) -> str:
    return f"{len(names)} segment{'' if len(names) == 1 else 's'}" if names else "nothing"


def _none(words: str) -> dict[str, Any]:
    return {"round": None, "words": words, "parts": []}
