"""The way from this silo to the federator, step by step: name, proxy, port, TLS, and the certificates that are shown.

Facts only, for the doctor (silo/reach.py judges them). Each step is tried by itself, because the daemon's own message
cannot tell a closed port from a name that nobody knows or from a firewall that opens TLS.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from feddiff.core.identity import parse_address

TIMEOUT_S = 8.0
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables that gRPC honours, the first that is set; spelt in capitals it does not see them."""
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
MAX_CHAIN = 10
MAX_REPLY_BYTES = 16 << 10


@dataclass(frozen=True)
class Route:
    """How far one gets. Empty text and no certificates: not so far, or nothing of the kind."""

    host: str
    port: int
    proxy: str = ""
    """host:port of the proxy that gRPC goes through; a name and password in it are left out."""
    proxy_variable: str = ""
    unheeded: str = ""
    """A variable that names a proxy and that gRPC does not heed."""
    addresses: tuple[str, ...] = ()
    unknown: str = ""
    """Why the name has no address."""
    refused: str = ""
    """Why no connection came about."""
    timed_out: bool = False
    connected_s: float = 0.0
    tls: str = ""
    """Its version."""
    http2: bool = False
    insecure: str = ""
    """Why no TLS came about."""
    shown: tuple[bytes, ...] = ()
    """The certificates that the other end shows, PEM, its own first."""


def proxy_for(host: str, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """(host:port, variable) of the proxy that gRPC would take to a host; empty for none."""
    known = dict(os.environ) if environment is None else environment
    variable = next((name for name in PROXIES if known.get(name)), "")
    if not variable:
        return "", ""
    exceptions = next((known[name] for name in EXCEPTIONS if known.get(name)), "")
    for each in (entry.strip().lower() for entry in exceptions.split(",")):
        if each and (each == "*" or host.lower().endswith(each)):
            return "", ""
    found = urlsplit(known[variable] if "//" in known[variable] else f"//{known[variable]}")
    with contextlib.suppress(ValueError):
        return f"{found.hostname or ''}:{found.port or 80}", variable
    return "", ""


def travel(address: str, identity: bytes = b"") -> Route:
    """Go as far as one gets. ``identity``: private key and certificate to show, PEM. Raises ConfigError."""
    host, port = parse_address(address)
    proxy, variable = proxy_for(host)
    heeded = {*PROXIES, *EXCEPTIONS}
    unheeded = next(
        (name for name in ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY", "all_proxy") if os.environ.get(name)), ""
    )
    route = Route(host, port, proxy, variable, "" if variable or unheeded in heeded else unheeded)
    if not proxy:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            return replace(route, unknown=str(getattr(error, "strerror", None) or error).lower())
        route = replace(route, addresses=tuple(dict.fromkeys(str(each[4][0]) for each in found)))
    began = time.monotonic()
    try:
        plain = dial(host, port, proxy, _authorization(os.environ.get(variable, "")))
    except OSError as error:
        why = error.strerror.lower() if error.strerror else str(error) or type(error).__name__
        return replace(route, refused=why, timed_out=isinstance(error, TimeoutError))
    with plain:
        return _greet(replace(route, connected_s=time.monotonic() - began), plain, identity)


def dial(host: str, port: int, proxy: str = "", authorization: str = "") -> socket.socket:
    """A connection, through a proxy's CONNECT (RFC 9110 section 9.3.6) if there is one. Raises OSError."""
    if not proxy:
        return socket.create_connection((host, port), TIMEOUT_S)
    where, _, number = proxy.rpartition(":")
    plain = socket.create_connection((where, int(number)), TIMEOUT_S)
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        plain.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n".encode("ascii"))
        reply = b""
        while b"\r\n\r\n" not in reply:
            piece = plain.recv(4096)
            reply += piece
            if not piece or len(reply) > MAX_REPLY_BYTES:
                raise OSError(f"the proxy {proxy} does not answer as a proxy")
        status = reply.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 1)
        if len(status) < 2 or not status[1].startswith("2"):
            raise OSError(f"the proxy {proxy} refuses: {status[-1][:80]}")
    except BaseException:
        plain.close()
        raise
    return plain


def _authorization(proxy: str) -> str:
    """The header line for a name and password in a proxy's URL, as gRPC sends it (RFC 7617)."""
    found = urlsplit(proxy)
    if not found.username:
        return ""
    pair = f"{unquote(found.username)}:{unquote(found.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(pair).decode('ascii')}\r\n"


def _greet(route: Route, plain: socket.socket, identity: bytes) -> Route:
    """The TLS handshake, without believing anything that is said in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if identity:
        with tempfile.NamedTemporaryFile() as pair:  # mode 0600; the ssl module takes them from a file only
            pair.write(identity)
            pair.flush()
            context.load_cert_chain(pair.name)
    try:
        with context.wrap_socket(plain, server_hostname=route.host) as secured:
            return replace(
                route,
                tls=secured.version() or "",
                http2=secured.selected_alpn_protocol() == "h2",
                shown=_chain(secured),
            )
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
        return replace(route, insecure=str(why).replace("_", " ").lower(), timed_out=isinstance(error, TimeoutError))


def _chain(secured: Any) -> tuple[bytes, ...]:
    leaf = secured.getpeercert(binary_form=True)
    if not leaf:
        return ()
    # Public from Python 3.13 on, there as DER; before, objects of the module's own.
    ask = getattr(secured, "get_unverified_chain", None) or getattr(secured._sslobj, "get_unverified_chain", None)
    chain = list(ask() or ())[1:MAX_CHAIN] if ask else []
    ders = [each if isinstance(each, bytes) else each.public_bytes(2) for each in chain]  # 2: _ssl.ENCODING_DER
    return tuple(ssl.DER_cert_to_PEM_cert(each).encode() for each in (leaf, *ders))
