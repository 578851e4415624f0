"""Who may ask the page what: hosts, origins, operators' tokens, and the headers that keep a browser from doing more.

In front of everything that federator/web.py answers. What it defends against: pages of other sites in the operator's
browser (no cookies, so nothing to ride on; DNS rebinding is cut by the Host header), guessing of tokens, and texts that
silos say of themselves (a strict Content-Security-Policy behind the page's own care).
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feddiff.core.errors import IdentityError
from feddiff.federator.operators import Operators

FAILURES, WINDOW_S = 10, 60.0
"""Wrong tokens that an address may show in this time; then others are not even told that they are wrong. A right one
always counts: behind a proxy, or on this machine, operators share the address of whoever guesses at 256 random bits."""
ADDRESSES = 1024
"""Whose failures are remembered."""
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Refused(Exception):
    """This request gets no more than a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = _literal(host)
    return host == "localhost" if address is None else address.is_loopback


class Door:
    """Checks operators' tokens; ``open``: whether reading needs none."""

    def __init__(self, operators: Operators, open: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._operators, self.open, self._clock = operators, open, clock
        self._failed: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def reader(self, request: HTTPConnection) -> None:
        """Raises Refused for one that may not even read."""
        if not self.open:
            self.operator(request)

    def operator(self, request: HTTPConnection) -> str:
        """The operator's name, by the header ``Authorization: Bearer TOKEN`` and nothing else. Raises Refused."""
        address, now = request.client.host if request.client else "", self._clock()
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Refused(401, "this needs an operator's token; `feddiff-federator operator NAME` makes one")
        try:
            return self._operators.check(token)
        except IdentityError as error:
            with self._lock:
                recent = [at for at in self._failed.get(address, ()) if now - at < WINDOW_S]
                if len(recent) >= FAILURES:
                    raise Refused(429, f"too many wrong tokens; try again in {WINDOW_S:.0f} s") from None
                self._failed[address] = [*recent, now]
                self._failed.move_to_end(address)
                while len(self._failed) > ADDRESSES:
                    self._failed.popitem(last=False)
            raise Refused(401, str(error)) from None


class Access:
    """ASGI middleware. ``names``: hosts that the page is reached by, beside addresses that no DNS can forge."""

    def __init__(self, app: ASGIApp, host: str, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = frozenset(each.lower() for each in names)
        self._local = loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # a WebSocket: uvicorn closes it

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            self.check(scope["method"], scope["path"], Headers(scope=scope))
        except Refused as error:
            await JSONResponse({"error": error.sentence}, error.status)(scope, receive, sealed)
            return
        await self._app(scope, receive, sealed)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises Refused for a request that comes by a wrong name, or from another site's page."""
        host = headers.get("host", "")
        if not self._known(_name(f"//{host}")):
            raise Refused(
                421, f"this federator is not called {host[:80]!r}; a name of it is given by serve --http-host"
            )
        if not path.startswith("/api/"):  # holds nothing, and links to it may be anywhere
            return
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused(403, "this was asked by another site's page")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host and _name(origin) not in self._names:
            raise Refused(403, "this was asked by another site's page")
        if method not in ("GET", "HEAD") and headers.get("content-type", "").partition(";")[0] != "application/json":
            raise Refused(415, "orders are given as application/json")

    def _known(self, name: str) -> bool:
        address = _literal(name)
        if address is None:
            return name == "localhost" or name in self._names
        return address.is_loopback or not self._local or name in self._names


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _place(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
