"""Progress of work that may take hours: to the display at once, to the federator now and then.

Called from inside training and measuring. The federator lets a silo go that shows no progress for ``rounds.deadline``,
and answers whether the round still wants the silo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from feddiff.core.errors import FederatorUnavailable
from feddiff.silo.client import Client
from feddiff.silo.display import Display

REPORT_SHARE = 0.1
"""Between two reports this share of the time since the beginning goes by."""


class Pulse:
    """One phase of one round. Times in seconds."""

    def __init__(
        self,
        client: Client,
        display: Display,
        round: int,
        phase: str,
        longest_wait: float,
        stopping: Callable[[], bool],
    ) -> None:
        self._client, self._display, self._round, self._phase = client, display, round, phase
        self._longest_wait, self._stopping = longest_wait, stopping
        self._began = self._silent_until = time.monotonic()
        self.wanted = True
        """Whether the round still wants this silo, as far as is known."""

    def __call__(self, step: int, steps: int, note: str = "", metrics: Mapping[str, float] | None = None) -> bool:
        """Tell; False if the work is to be abandoned."""
        self._display.at(step / max(steps, 1), note)
        if (now := time.monotonic()) >= self._silent_until:
            # Each costs half a kilobyte: work of hours needs no more of them than work of minutes.
            self._silent_until = now + min((now - self._began) * REPORT_SHARE, self._longest_wait)
            try:
                self.wanted = self._client.report(self._round, self._phase, step, steps, metrics)
            except FederatorUnavailable:
                # The work goes on: the federator will be back, or the round will be over.
                self._silent_until = now + self._longest_wait
        return self.wanted and not self._stopping()
