"""What a silo is doing this moment, in numbers: the daemon writes it down as it goes, whoever is curious reads it.

Plain fields, each written by one thread at a time; nothing here is remembered beyond the process, and nothing decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from feddiff.silo.session import Action

Phase = Literal["starting", "waiting", "fetching", "accepting", "training", "measuring", "submitting", "retrying"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_OF: Mapping[Action, Phase] = {
    "wait": "waiting",
    "fetch": "fetching",
    "accept": "accepting",
    "train": "training",
    "measure": "measuring",
    "submit": "submitting",
    "finish": "waiting",
}


@dataclass
class Doing:
    """Of one silo. Loss and images a second are those that the training told last; NaN before."""

    phase: Phase = "starting"
    round: int = 0
    rounds: int = 0
    """How many the federation is to have; 0 before it is known."""
    step: int = 0
    steps: int = 0
    loss: float = math.nan
    images_per_second: float = math.nan
    images: Mapping[str, int] = field(default_factory=dict)
    """Images that it trains on, by label; "" for those without one."""

    def begin(self, action: Action, round: int) -> None:
        """The next step of a round is done from now on."""
        if round != self.round or action == "train":
            self.step = self.steps = 0
        self.phase, self.round = _OF[action], round

    def at(self, step: int, steps: int, loss: float, images_per_second: float) -> None:
        """The training has come this far."""
        self.step, self.steps, self.loss, self.images_per_second = step, steps, loss, images_per_second
