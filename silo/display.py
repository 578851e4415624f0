"""What a silo shows of its work: bars on a terminal, log lines otherwise, a status line and a heartbeat under systemd.

All work that takes long (features, transfers, training, measuring) tells here how far it is: so here the watchdog is
fed, when the work has moved.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from feddiff.core import notify

log = logging.getLogger("feddiff.silo")
LINE_EVERY_S = 30.0
STATUS_EVERY_S = 1.0


class Display:
    """One bar (or a line now and then) for the phase that is under way."""

    def __init__(self, bars: bool | None = None) -> None:
        self._progress: Any = None
        self._bar: Any = None
        self._line_at = self._status_at = 0.0
        if sys.stderr.isatty() if bars is None else bars:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()

    def begin(self, what: str, total: float) -> None:
        """A phase begins; ``total`` in whatever ``at`` and ``advance`` count."""
        self._line_at, self._done, self._seen = time.monotonic(), 0.0, -1.0
        self._what, self._total = what, max(total, 1)
        notify.status(what)
        if self._progress is not None:
            self.end()
            self._bar = self._progress.add_task(what, total=self._total, note="")

    def at(self, done: float, note: str = "") -> None:
        """The phase has come this far."""
        if done != self._seen:
            self._seen = done
            notify.alive()
        if time.monotonic() - self._status_at > STATUS_EVERY_S:
            self._status_at = time.monotonic()
            notify.status(f"{self._what}: {100 * done / self._total:.0f}% {note}")
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=done, note=note)
        elif time.monotonic() - self._line_at > LINE_EVERY_S:
            self._line_at = time.monotonic()
            log.info("%s: %.0f%% %s", self._what, 100 * done / self._total, note)

    def advance(self, more: float) -> None:
        """The phase has come this much further."""
        self._done += more
        self.at(self._done)

    def end(self) -> None:
        if self._progress is not None and self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def close(self) -> None:
        self.end()
        if self._progress is not None:
            self._progress.stop()
