"""The page of a running federator: ``feddiff-federator serve --http 127.0.0.1:8080``.

An ASGI application (starlette) that uvicorn serves in a thread and a loop of its own, so that whatever a browser does,
rounds go on. The files in ``static/`` are all that a browser loads; the rest is JSON, CSV and pictures:

    /api/live     server-sent events (federator/broadcast.py)      /api/ledger  /api/ledger.csv   federator/excerpt.py
    /api/state    the same, once                                   /api/grids   pictures of samples
    /api/operator who a token is       POST /api/orders            with an operator's token (federator/orders.py)
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.identity import check_host, parse_address
from feddiff.federator.access import Access, Door, Refused, loopback
from feddiff.federator.broadcast import Broadcast, Full
from feddiff.federator.connection import SILENCE_S, Connection
from feddiff.federator.database import Database
from feddiff.federator.excerpt import Excerpts, Filter, Key
from feddiff.federator.federation import Federation
from feddiff.federator.live import Live
from feddiff.federator.operators import Operators
from feddiff.federator.orders import Orders
from feddiff.federator.pictures import Pictures

STATIC = Path(__file__).with_name("static")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_BODY = 4096
BUSY = 4
"""Questions to the ledger at once."""
WHOLE = 2
"""Threads for all who fetch the ledger as CSV: there may be a million rows between two that fit."""

log = logging.getLogger("feddiff.federator")


class Stream:
    """The response of ``/api/live``: ends when the viewer does, which sending alone would not tell."""

    def __init__(self, broadcast: Broadcast, allowed: Callable[[], object]) -> None:
        self._broadcast, self._allowed = broadcast, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        events = self._broadcast.follow(self._allowed)
        try:
            first = await anext(events, b"")
            head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            body = first
            while body and not gone.done():
                message = {"type": "http.response.body", "body": body, "more_body": True}
                await asyncio.wait_for(send(message), SILENCE_S)
                body = await anext(events, b"")
            await asyncio.wait_for(send({"type": "http.response.body", "body": b""}), SILENCE_S)
        except Full as error:
            await JSONResponse({"error": str(error)}, 503)(scope, receive, send)
        except (Refused, TimeoutError):
            pass  # its token is no longer good, or it stands still
        finally:
            gone.cancel()
            await events.aclose()  # type: ignore[attr-defined]


class Application:
    """What is answered. Database work is done in threads, with connections of the page's own."""

    def __init__(self, federation: Federation, host: str, names: Sequence[str]) -> None:
        self._path = federation.folder / "federation.db"
        database = Database(self._path)
        self._databases = [database, Database(self._path)]
        self._door = Door(Operators(database), open=loopback(host) and not names)
        self._orders, self._pictures = Orders(federation), Pictures(federation.folder)
        self.broadcast = Broadcast(Live(federation, database), self._pictures)
        self._excerpts, self._asking = Excerpts(self._databases[1]), threading.BoundedSemaphore(BUSY)
        self._whole = asyncio.Semaphore(WHOLE)
        routes = [
            Route("/api/live", self._live),
            Route("/api/state", self._state),
            Route("/api/operator", self._operator),
            Route("/api/ledger", self._ledger),
            Route("/api/ledger.csv", self._csv),
            Route("/api/grids", self._grid),
            Route("/api/orders", self._order, methods=["POST"]),
            *(_file(path) for path in sorted(STATIC.iterdir()) if path.suffix in KINDS),
        ]
        refusals: Any = {Refused: _refusal, FedDiffError: _error}
        self.app = Access(Starlette(routes=routes, exception_handlers=refusals), host, names)

    def close(self) -> None:
        for database in self._databases:
            database.close()

    async def _live(self, request: Request) -> Any:
        await run_in_threadpool(self._door.reader, request)
        return Stream(self.broadcast, lambda: self._door.reader(request))

    async def _state(self, request: Request) -> Response:
        await run_in_threadpool(self._door.reader, request)
        return JSONResponse(await self.broadcast.state())

    def _operator(self, request: Request) -> Response:
        return JSONResponse({"operator": self._door.operator(request)})

    def _ledger(self, request: Request) -> Response:
        self._door.reader(request)
        wanted, before = _filter(request)
        if not self._asking.acquire(blocking=False):
            raise Refused(503, "others are looking into the ledger; try again")
        try:
            return JSONResponse(self._excerpts.page(wanted, before))
        finally:
            self._asking.release()

    async def _csv(self, request: Request) -> Response:
        await run_in_threadpool(self._door.reader, request)
        name = {"content-disposition": 'attachment; filename="ledger.csv"'}
        return StreamingResponse(self._pieces(_filter(request)[0]), headers=name, media_type="text/csv")

    async def _pieces(self, wanted: Filter) -> AsyncIterator[str]:
        pieces = self._excerpts.csv(wanted)
        while True:
            async with self._whole:
                piece = await run_in_threadpool(next, pieces, "")
            if not piece:
                return
            yield piece

    def _grid(self, request: Request) -> Response:
        self._door.reader(request)
        round = request.query_params.get("round", "")
        found = self._pictures.path(request.query_params.get("of", ""), int(round)) if _number(round) else None
        if found is None or not found.is_file():
            raise Refused(404, "there is no such picture")
        return FileResponse(found, media_type="image/png")

    async def _order(self, request: Request) -> Response:
        operator = await run_in_threadpool(self._door.operator, request)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise Refused(413, f"an order of more than {MAX_BODY} bytes")
        try:
            order = json.loads(body)
            what, silo, reason = (order.get(key, "") for key in ("what", "silo", "reason"))
            for each in (what, silo, reason):
                _utf8(each)
        except (ValueError, AttributeError, RecursionError):
            raise Refused(400, 'an order is JSON: {"what": "pause"}') from None
        if not all(isinstance(each, str) for each in (what, silo, reason)):
            raise Refused(400, "an order is of texts: what, silo, reason")
        await run_in_threadpool(self._orders.give, operator, what, silo, reason)
        return JSONResponse({"operator": operator, "what": what, "silo": silo})


def bind(address: str, names: Sequence[str]) -> socket.socket:
    """The socket of ``--http``; ``names``: of ``--http-host``. Raises ConfigError."""
    for name in names:
        check_host(name)
    host, port = parse_address(address)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0].lower()
        raise ConfigError(f"--http {address} cannot be listened on: {reason}") from None


@contextmanager
def serving(federation: Federation, bound: socket.socket, names: Sequence[str]) -> Iterator[None]:
    """Serve the page while the block runs, with what ``bind`` was given and gave."""
    host, port = bound.getsockname()[:2]
    application = Application(federation, host, names)
    config = uvicorn.Config(
        application.app,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        http=Connection,
        backlog=32,  # asyncio takes as many before one of them is looked at
        loop="asyncio",
        h11_max_incomplete_event_size=16 << 10,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        looking = asyncio.create_task(application.broadcast.run())
        await server.serve(sockets=[bound])
        await application.broadcast.close()
        await looking

    def run() -> None:
        try:
            asyncio.run(main())
        except Exception as error:
            log.error("the page is gone, the federation goes on: %r", error)

    thread = threading.Thread(target=run, name="page")
    thread.start()
    log.info("the page is at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    if not loopback(host):
        log.warning("the page is plain HTTP and asks for a token; let a proxy with TLS stand before it (docs/page.md)")
    try:
        yield
    finally:
        server.should_exit = True
        if loops and not loops[0].is_closed():
            asyncio.run_coroutine_threadsafe(application.broadcast.close(), loops[0])
        thread.join()
        application.close()


def _file(path: Path) -> Route:
    body, kind = path.read_bytes(), KINDS[path.suffix]

    async def answer(_: Request) -> Response:
        return Response(body, media_type=kind)

    return Route("/" if path.name == "index.html" else f"/{path.name}", answer)


def _filter(request: Request) -> tuple[Filter, Key | None]:
    """Of a question to the ledger. Raises Refused."""
    asked = request.query_params
    for name in ("first", "last"):
        if asked.get(name) and not _number(asked[name]):
            raise Refused(400, f"{name} is the number of a round")
    first, last = (int(asked[name]) if asked.get(name) else None for name in ("first", "last"))
    before: Key | None = None
    if asked.get("before"):
        try:
            round, silo, segment, direction = json.loads(asked["before"])
            before = (min(max(int(round), 0), 1 << 40), _utf8(silo), _utf8(segment), _utf8(direction))
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise Refused(400, "before is the key of a row, as `more` told it") from None
    return Filter(asked.get("silo"), asked.get("segment"), asked.get("direction"), first, last), before


def _utf8(text: object) -> str:
    """What the database takes: JSON may hold halves of characters. Raises UnicodeEncodeError, a ValueError."""
    return str(text).encode().decode()


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refusal(_: Request, error: Refused) -> Response:
    again = (
        {"retry-after": "60"} if error.status == 429 else {"www-authenticate": "Bearer"} if error.status == 401 else {}
    )
    return JSONResponse({"error": error.sentence}, error.status, again)


async def _error(_: Request, error: FedDiffError) -> Response:
    return JSONResponse({"error": error.sentence}, 409 if isinstance(error, ConfigError) else 500)
