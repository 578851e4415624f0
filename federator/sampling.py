"""Which of the silos that are here a round takes, where it does not take all (``rounds.sampled``).

After ``rounds``, which says that a round opens and who is here; before ``planner``, which deals segments to those that
are taken. Pure functions, each a way to sample: of the same silos, seed, round and rounds before they take the same
silos, and say why.

    uniform       by turns: nobody twice before everybody once
    size          as likely as a silo has images: sample by p_k = n_k / n, average uniformly, instead of the reverse
                  (Li et al. 2020, arXiv 1812.06127, algorithm 2)
    availability  as likely as a silo has finished the rounds that it was last taken for

The last two are systematic sampling with unequal probabilities in a random order (Madow 1949; Hartley & Rao 1962):
without replacement, and with exactly the inclusion probabilities pi_k of ``inclusion``. So sum_{k taken} p_k w_k / pi_k
has the expectation sum_k p_k w_k, and by size, where pi_k = K p_k, that is the plain mean of those that are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from random import Random

from feddiff.core.config import FederationConfig
from feddiff.federator.journal import Round

RECENT = 20
"""Of so many rounds a silo's record is made: what was longer ago is forgiven."""
NAMED = 5
"""Silos whose numbers the reason tells."""


@dataclass(frozen=True)
class Sample:
    """The silos that a round takes, sorted, and why these."""

    silos: tuple[str, ...]
    reason: str


def sample(config: FederationConfig, round: int, here: Mapping[str, int], past: Sequence[Round]) -> Sample:
    """The silos that a round takes of those that are ``here``, with their images, by the federation's rules."""
    count, seed = config.rounds.sampled, config.seed
    if count is None:
        return Sample(tuple(sorted(here)), "all that are here")
    if config.rounds.sampling == "uniform":
        return uniform(here, count, seed, round, ([each.silo for each in before.plan.assignments] for before in past))
    if config.rounds.sampling == "size":
        taken = proportional(here, count, seed, round)
        words = [f"{name} with {here[name]}" for name in taken]
        return Sample(taken, f"{_of(taken, here)}, by their images: {_listed(words)} of {sum(here.values())}")
    records = {name: record(name, past) for name in here}
    taken = proportional({name: each.share for name, each in records.items()}, count, seed, round)
    words = [f"{name} {records[name]}" for name in taken]
    return Sample(taken, f"{_of(taken, here)}, by the rounds that they finished of their last: {_listed(words)}")


def uniform(here: Collection[str], count: int, seed: int, round: int, past: Iterable[Collection[str]]) -> Sample:
    """Take ``count`` of the silos that are here; ``past``: those that each round before took, in order.

    Like cards of a deck: any is as likely as any other, and nobody is taken a second time before everybody who is here
    has been taken once. So of silos that are always here none is ever more than one turn ahead, and one that comes
    late, or was away, neither hogs the rounds to catch up nor is waited for. The order in which silos are given does
    not matter, nor does who else is here change which of two comes first.
    """
    names, had = set(here), _had_their_turn(past)
    chance = {name: _chance(seed, round, name) for name in names}
    order = sorted(names, key=lambda name: (name in had, chance[name], name))
    taken = order[:count]
    again = len(had.intersection(taken))
    turn = f"{again} of them begin a new turn" if again else f"{len(names - had) - len(taken)} still await this turn"
    return Sample(tuple(sorted(taken)), f"{_of(taken, names)}, by chance; {turn}")


def _had_their_turn(past: Iterable[Collection[str]]) -> set[str]:
    """Who has been taken since the last turn was over: it was, when somebody was taken again."""
    had: set[str] = set()
    for taken in past:
        again = had.intersection(taken)
        had = again or had.union(taken)
    return had


@dataclass(frozen=True)
class Record:
    """How a silo kept up: of the last rounds that it was taken for, those whose average it is in."""

    finished: int
    planned: int

    @property
    def share(self) -> Fraction:
        """Above 0, so that everybody gets turns; 1 for who never failed, and for who was never asked."""
        return Fraction(self.finished + 1, self.planned + 1)

    def __str__(self) -> str:
        return f"{self.finished} of {self.planned}"


def record(silo: str, past: Iterable[Round]) -> Record:
    """Of a silo's last ``RECENT`` rounds; one that ended without a change is nobody's fault."""
    mine = [each for each in past if each.silos and silo in each.plan.reporting][-RECENT:]
    return Record(sum(silo in each.silos for each in mine), len(mine))


def inclusion(sizes: Mapping[str, int | Fraction], count: int) -> dict[str, Fraction]:
    """The probability of each silo to be among ``count``: as its size, which is above 0, but at most 1.

    Who would have more than 1 is certain, and the others share what is left. They sum up to ``count``, or to all.
    """
    certain: set[str] = set()
    while True:
        rest = {name: Fraction(size) for name, size in sizes.items() if name not in certain}
        whole, left = sum(rest.values()), count - len(certain)
        more = {name for name, size in rest.items() if size * left >= whole}
        if not more:
            break
        certain |= more
    return {name: Fraction(1) if name in certain else rest[name] * left / whole for name in sizes}


def proportional(sizes: Mapping[str, int | Fraction], count: int, seed: int, round: int) -> tuple[str, ...]:
    """Take ``count`` silos, sorted, each with its probability of ``inclusion``; exact, on every machine.

    The silos lie on a line in a random order, each as long as its probability, and so do pins at distance 1 of each
    other, from a random place on; who has a pin is taken. Rounds are independent of each other: a silo is taken in
    a share pi_k of them in the long run, and may wait for long in the short.
    """
    chances = inclusion(sizes, count)
    order = sorted(chances, key=lambda name: (_chance(seed, round, name), name))
    place, taken = Fraction(_chance(seed, round, "")), []  # from 0 to 1: the first pin is at the next whole number
    for name in order:
        end = place + chances[name]
        if floor(end) > floor(place):
            taken.append(name)
        place = end
    return tuple(sorted(taken))


def _chance(seed: int, round: int, name: str) -> float:
    # Not shuffle() or sample(): of all methods, only random() is promised to give the same numbers in every Python.
    return Random(f"sampling, seed {seed}, round {round}, {name}").random()


def _of(taken: Collection[str], here: Collection[str]) -> str:
    return f"{len(taken)} of the {len(here)} that are here"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")
