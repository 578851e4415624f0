"""What is known of a silo only while the federator's process lives: when it was heard, and what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
