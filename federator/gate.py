"""Few fast streams at a time, any number of slow ones: what keeps the federator's memory the same for 2 silos and 200.

A stream that we wait for costs next to nothing: its buffers are empty. A stream that waits for us (a silo next door, a
fast link) fills a whole HTTP/2 window. So a stream needs a place only while it keeps us busy: it takes one when it
begins, and gives it back for good once it spends nearly all of its time waiting for the other end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

PLACES = 2
"""Two streams keep two cores busy; more only wait for each other."""
PATIENCE_S = 1.0
"""A stream is judged by stretches of this length."""
SLOW = 0.9
"""Waiting this share of the time makes a stream a slow one: at 20 Mbit/s it is over 0.98."""


class Gate:
    """The places, in order of arrival as far as the lock is fair."""

    def __init__(self, places: int = PLACES) -> None:
        self._free = threading.Semaphore(places)

    def pass_through(self, alive: Callable[[], bool]) -> Passage:
        """Wait for a place; ``alive`` is asked every second and ends the wait when it says no."""
        while not self._free.acquire(timeout=1.0):
            if not alive():
                return Passage(None)
        return Passage(self._free)


class Passage:
    """One stream's use of a place. Tell it when waiting for the other end begins and ends."""

    def __init__(self, place: threading.Semaphore | None) -> None:
        self._place = place
        self._stretch = time.monotonic()
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """The stream has waited for the other end this long."""
        self._waited += seconds
        now = time.monotonic()
        if now - self._stretch >= PATIENCE_S:
            if self._waited > SLOW * (now - self._stretch):
                self.leave()
            self._stretch, self._waited = now, 0.0

    def leave(self) -> None:
        """Give the place back; the stream goes on without."""
        if self._place is not None:
            self._place.release()
            self._place = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.leave()
