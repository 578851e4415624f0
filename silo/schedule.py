"""The learning rate's schedule over the rounds of a federation.

Between the rules (``training.schedule``, ``training.warmup``) and a round's optimizer, which is new in each round and
knows of no other: so the rate is one for all steps of a round, and the same at every silo. A pure function, so that a
round that is trained again after a crash has the same rate.
"""

from __future__ import annotations

import math

from feddiff.core.sections import TrainingConfig


def factor(training: TrainingConfig, round: int, rounds: int) -> float:
    """What the learning rate is multiplied by in a round, counted from 1, of ``rounds``; ``warmup`` is fewer.

    Grows in equal steps over the ``warmup`` rounds, r / (warmup + 1), and is 1 in the round after them. From there,
    with t = (r - 1 - warmup) / (rounds - warmup), which is 0 in that round and short of 1 in the last:

        constant  1
        cosine    (1 + cos(pi t)) / 2       (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, one period, to 0)
        linear    1 - t

    No round has the factor 0: it would be trained and sent for nothing.
    """
    warmup = training.warmup
    if round <= warmup:
        return round / (warmup + 1)
    past = (round - 1 - warmup) / (rounds - warmup)
    if training.schedule == "cosine":
        return (1 + math.cos(math.pi * past)) / 2
    return 1 - past if training.schedule == "linear" else 1.0
