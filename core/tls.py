"""Mutual TLS of a server whose certificate and whom it trusts may change while it serves.

The federator's own certificate is renewed, its CA may be replaced, and every invitation is trusted for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import grpc

PAUSE_S = 0.25
"""gRPC frees the configuration that it replaces, while a handshake that has asked just now may be about to use it. It
asks for one handshake at a time: a pause before a new answer lets those that were asked for get past that point."""
Shown = tuple[tuple[bytes, bytes], bytes, Iterable[bytes]]
"""The server's (key, certificate); the CAs that are trusted; more certificates that are. All PEM."""


def server_credentials(shown: Callable[[], Shown]) -> grpc.ServerCredentials:
    """``shown`` is asked at every handshake. Of the third only what is added counts as a change: whoever it trusted
    once must be refused by the calls themselves."""
    asking = threading.Lock()
    before: list[tuple[tuple[bytes, bytes], bytes, set[bytes]]] = []

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        with asking:
            pair, authorities, more = shown()
            trusted = set(more)
            if before and before[-1][:2] == (pair, authorities) and trusted <= before[-1][2]:
                return None
            if before:
                time.sleep(PAUSE_S)
            before[:] = [(pair, authorities, trusted)]
            roots = b"".join((authorities, *sorted(trusted)))
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)
