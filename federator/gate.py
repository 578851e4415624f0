"""Few fast streams at a time, any number of slow ones: what keeps the federator's memory the same for 2 silos and 200.

A stream that we wait for costs next to nothing: its buffers are empty. A stream that waits for us (a silo next door, a
fast link) fills a whole HTTP/2 window. So a stream needs a place only while it keeps us busy: it takes one when it
begins, and loses it for good once it spends nearly all of its time waiting for the other end, or is not heard of.
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
    """The places. Whoever waits for one also takes back those that have not been used for a while."""

    def __init__(self, places: int = PLACES) -> None:
        self._free = threading.Semaphore(places)
        self._lock = threading.Lock()
        self._taken: set[Passage] = set()

    def pass_through(self, alive: Callable[[], bool]) -> Passage:
        """Wait for a place; ``alive`` is asked twice a second and ends the wait when it says no."""
        while not self._free.acquire(timeout=PATIENCE_S / 2):
            if not alive():
                return Passage(self)
            with self._lock:
                idle = [each for each in self._taken if time.monotonic() - each.used_at > 2 * PATIENCE_S]
            for each in idle:
                each.leave()
        passage = Passage(self)
        with self._lock:
            self._taken.add(passage)
        return passage

    def give_back(self, passage: Passage) -> None:
        """Free a stream's place, if it has one."""
        with self._lock:
            if passage not in self._taken:
                return
            self._taken.remove(passage)
        self._free.release()


class Passage:
    """One stream's use of a place. Tell it when waiting for the other end begins and ends."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.used_at = self._stretch = time.monotonic()
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """The stream has waited for the other end this long, and goes on."""
        self._waited += seconds
        self.used_at = now = time.monotonic()
        if now - self._stretch >= PATIENCE_S:
            if self._waited > SLOW * (now - self._stretch):
                self.leave()
            self._stretch, self._waited = now, 0.0

    def leave(self) -> None:
        """Give the place back; the stream goes on without."""
        self._gate.give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.leave()
