"""One look at the federation for all who look: computed twice a second at most, sent only where something changed.

federator/live.py says what there is; this module sends it as Server-Sent Events (WHATWG HTML, section 9.2), of three
kinds: ``live`` (all that changes), ``rounds`` (those that changed since this viewer's last), ``grids``. Nothing is
computed while nobody looks, a slow viewer skips what is outdated, and one that stands still is let go.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from feddiff.federator.live import Live
from feddiff.federator.pictures import Pictures

TICK_S = 0.5
HEARTBEAT_S = 10.0
"""A viewer hears of us at least this often."""
VIEWERS = 64

log = logging.getLogger("feddiff.federator")


class Full(Exception):
    """There are as many viewers as there may be."""


class Broadcast:
    """Of one federation. Everything but ``_look`` runs in the page's own loop."""

    def __init__(self, live: Live, pictures: Pictures) -> None:
        self._live, self._pictures = live, pictures
        self._looking, self._changed = asyncio.Lock(), asyncio.Condition()
        self._closing = False
        self._text, self._versions = "", (0, 0, 0)
        self._looked_at, self._complained_at = -TICK_S, -3600.0
        self._viewers = 0

    async def run(self) -> None:
        """Look again and again, while anybody does."""
        while not self._closing:
            if self._viewers:
                await self._fresh()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """End all streams."""
        async with self._changed:
            self._closing = True
            self._changed.notify_all()

    async def state(self) -> dict[str, Any]:
        """Everything at once, as a viewer has it after the first events."""
        await self._fresh()
        async with self._looking:
            return {
                "now": time.time(),
                "live": json.loads(self._text or "null"),
                "rounds": self._live.history.since(0),
                "grids": self._pictures.told(),
            }

    async def follow(self, allowed: Callable[[], object]) -> AsyncIterator[bytes]:
        """The events of one viewer; ``allowed`` raises when it no longer may look. Raises Full."""
        if self._viewers >= VIEWERS:
            raise Full(f"{VIEWERS} are looking already; close a window elsewhere")
        self._viewers += 1
        seen, asked_at = (0, 0, 0), time.monotonic()
        try:
            await self._fresh()
            while not self._closing:
                async with self._looking:
                    message, seen = self._message(seen), self._versions
                yield message or b"event: beat\ndata: {}\n\n"
                if time.monotonic() - asked_at >= HEARTBEAT_S:  # however much there is to tell
                    await asyncio.to_thread(allowed)
                    asked_at = time.monotonic()
                async with self._changed:
                    if seen == self._versions and not self._closing:
                        try:
                            await asyncio.wait_for(self._changed.wait(), HEARTBEAT_S)
                        except TimeoutError:
                            continue
        finally:
            self._viewers -= 1

    def _message(self, seen: tuple[int, int, int]) -> bytes:
        """What a viewer that has seen these versions lacks."""
        live, rounds, grids = (new != old for new, old in zip(self._versions, seen, strict=True))
        parts = []
        if rounds:
            parts.append(("rounds", _json(self._live.history.since(seen[1]))))
        if grids:
            parts.append(("grids", _json(self._pictures.told())))
        if live:
            parts.append(("live", f'{{"now":{time.time():.2f},"live":{self._text}}}'))
        return "".join(f"event: {name}\ndata: {text}\n\n" for name, text in parts).encode()

    async def _fresh(self) -> None:
        """Look, unless that was done a moment ago."""
        async with self._looking:
            if time.monotonic() - self._looked_at < TICK_S / 2:
                return
            before = self._versions
            try:
                await asyncio.to_thread(self._look)
            except Exception as error:  # whatever it is: the page goes without, the federation goes on
                if time.monotonic() - self._complained_at > 60:
                    self._complained_at = time.monotonic()
                    log.error("the page cannot be brought up to date: %r", error)
            self._looked_at = time.monotonic()
        if self._versions != before:
            async with self._changed:
                self._changed.notify_all()

    def _look(self) -> None:
        text = _json(self._live.snapshot(time.time(), time.monotonic()))
        live, _, grids = self._versions
        drawn = self._pictures.update() or not grids
        self._versions = (live + (text != self._text), self._live.history.version, grids + drawn)
        self._text = text


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
