"""What is known of a silo only while the federator's process lives: when it was heard, and what it is doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MAX_METRICS = 64
"""Different metrics of a silo that are kept in a round."""
REACHABLE_S = 75.0
"""A silo counts as reachable this long after it was last heard: it asks for its task every 25 s when idle."""


@dataclass
class Presence:
    """What is known of a silo only while the process lives. Times of ``time.monotonic``."""

    heard_at: float
    progress_at: float
    held: dict[str, int] = field(default_factory=dict)
    phase: str = "joined"
    step: int = 0
    steps: int = 0
    metrics: set[str] = field(default_factory=set)
    """Names of the metrics it has reported in the open round."""
    streams: set[Callable[[], object]] = field(default_factory=set)
    """What cancels its calls that are under way."""

    def admit(self, told: Mapping[str, float]) -> dict[str, float]:
        """What is kept of reported metrics: the finite ones, and no new names after the first ``MAX_METRICS``."""
        new = [name for name in told if name not in self.metrics]
        self.metrics |= set(new[: MAX_METRICS - len(self.metrics)])
        return {name: value for name, value in told.items() if math.isfinite(value) and name in self.metrics}
