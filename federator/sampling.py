"""Which of the silos that are here a round takes, where it does not take all (``rounds.sampled``).

After ``rounds``, which says that a round opens and who is here; before ``planner``, which deals segments to those that
are taken. Pure functions, each a way to sample: of the same silos, seed, round and rounds before they take the same
silos, and say why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random

from feddiff.core.config import FederationConfig
from feddiff.federator.journal import Round


@dataclass(frozen=True)
class Sample:
    """The silos that a round takes, sorted, and why these."""

    silos: tuple[str, ...]
    reason: str


def sample(config: FederationConfig, round: int, here: Collection[str], past: Iterable[Round]) -> Sample:
    """The silos that a round takes of those that are here, by the federation's rules."""
    if config.rounds.sampled is None:
        return Sample(tuple(sorted(here)), "all that are here")
    taken = ([each.silo for each in before.plan.assignments] for before in past)
    return uniform(here, config.rounds.sampled, config.seed, round, taken)


def uniform(here: Collection[str], count: int, seed: int, round: int, past: Iterable[Collection[str]]) -> Sample:
    """Take ``count`` of the silos that are here; ``past``: those that each round before took, in order.

    Like cards of a deck: any is as likely as any other, and nobody is taken a second time before everybody who is here
    has been taken once. So of silos that are always here none is ever more than one turn ahead, and one that comes
    late, or was away, neither hogs the rounds to catch up nor is waited for. The order in which silos are given does
    not matter, nor does who else is here change which of two comes first.
    """
    names, had = set(here), _had_their_turn(past)
    # Not shuffle() or sample(): of all methods, only random() is promised to give the same numbers in every Python.
    chance = {name: Random(f"sampling, seed {seed}, round {round}, {name}").random() for name in names}
    order = sorted(names, key=lambda name: (name in had, chance[name], name))
    taken = order[:count]
    again = len(had.intersection(taken))
    turn = f"{again} of them begin a new turn" if again else f"{len(names - had) - len(taken)} still await this turn"
    return Sample(tuple(sorted(taken)), f"{len(taken)} of the {len(names)} that are here, by chance; {turn}")


def _had_their_turn(past: Iterable[Collection[str]]) -> set[str]:
    """Who has been taken since the last turn was over: it was, when somebody was taken again."""
    had: set[str] = set()
    for taken in past:
        again = had.intersection(taken)
        had = again or had.union(taken)
    return had
