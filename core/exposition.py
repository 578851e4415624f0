"""``--metrics HOST:PORT``: what a daemon tells Prometheus, over plain HTTP, computed when it is asked.

Beside both daemons and never in their way: a scrape that fails is an answer 500 and a log line, scrapers that storm are
served from a text a second old, and one that is slow, silent or one too many loses its connection. Only ``/metrics`` is
answered, and nothing but the method and the path of a request is looked at.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from feddiff.core.errors import ConfigError
from feddiff.core.identity import parse_address

FRESH_S = 1.0
"""A text is told again for so long."""
SILENCE_S = 5.0
"""A scraper may say nothing for so long, or take nothing."""
PATIENCE_S = 15.0
"""And take so long for all of a scrape."""
MOST = 8
"""Scrapers at a time."""

log = logging.getLogger("feddiff.metrics")


class Source(Protocol):
    """Whatever has numbers to tell."""

    def collect(self) -> Iterable[Metric]: ...


class Exposition:
    """The endpoint of one daemon. Raises ConfigError for an address that cannot be listened on."""

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._text, self._at = b"", -FRESH_S
        self._failed = False
        try:
            self._server = _Server(host, port, self)
        except (OSError, UnicodeError) as error:
            why = str(getattr(error, "strerror", None) or error).lower()
            raise ConfigError(f"--metrics {address} cannot be listened on: {why}; choose another port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def begin(self, *sources: Source) -> None:
        """Answer from now on, with these sources' numbers and the process's own."""
        ProcessCollector(registry=self._registry)
        for each in sources:
            self._registry.register(each)
        self._thread.start()

    def text(self) -> bytes | None:
        """The exposition, a second old at most; None if it cannot be had."""
        with self._lock:
            if time.monotonic() - self._at < FRESH_S:
                return self._text
            try:
                self._text = generate_latest(self._registry)
            except Exception as error:  # whatever it is, the daemon goes on
                if not self._failed:
                    log.warning("the metrics cannot be told: %s: %s", type(error).__name__, error)
                self._failed = True
                return None
            self._at, self._failed = time.monotonic(), False
            return self._text

    def close(self) -> None:
        if self._thread.ident is not None:
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, host: str, port: int, exposition: Exposition) -> None:
        self.exposition = exposition
        self._open: dict[Any, float] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Scrape)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the DNS for the host's name, which may take a minute
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MOST:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: cut off whoever has had its time, a byte now and then or not."""
        for request, since in list(self._open.items()):
            if time.monotonic() - since > PATIENCE_S:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:  # it has gone by itself
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scraper went away")


class _Scrape(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_S
    server_version, sys_version = "feddiff", ""

    def do_GET(self) -> None:
        code, kind, text = 200, CONTENT_TYPE_PLAIN_0_0_4, None
        if self.path.partition("?")[0] != "/metrics":
            code, kind, text = 404, "text/plain", b"only /metrics is here\n"
        else:
            text = self.server.exposition.text()
            if text is None:
                code, kind, text = 500, "text/plain", b"the metrics cannot be told; the daemon's log says why\n"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes come every few seconds; they are no news."""
