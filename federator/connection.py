"""One browser's connection to the page: there are so many at once and no more, and none stands still.

Under federator/web.py, in front of any request. The page's connections are open files of the process that runs the
rounds: held open by the hundred, with nothing said, they would leave none for silos, weights and database.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 128
"""Connections at once; one more is closed at once."""
SILENCE_S = 30.0
"""A connection may ask nothing for so long, not finish to ask, or take nothing of an answer."""


class Connection(H11Protocol):
    """As uvicorn's, which waits for a request for ever."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._look: asyncio.TimerHandle | None = None
        self._seen: object = None
        if len(self.connections) >= MOST:
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Close it if nothing has moved since the last look. An answer that waits for news is no standstill."""
        unsent = self.transport.get_write_buffer_size()
        answering = self.cycle is not None and not self.cycle.response_complete
        now = (self.cycle, answering, unsent)
        if now == self._seen and (unsent or not answering):
            self.transport.abort()
            return
        self._seen = now
        self._look = self.loop.call_later(SILENCE_S, self._watch)
