"""What the federator shows and trusts at handshakes: new invitations and certificates count without a restart."""

from __future__ import annotations

import threading
import time

import grpc

from feddiff.federator.authority import Authority
from feddiff.federator.roster import Roster

PAUSE_S = 0.25
"""gRPC frees the configuration that it replaces, while a handshake that has asked just now may be about to use it. It
asks one handshake at a time: a pause before a new answer lets those that were asked before get past that point."""


def server_credentials(authority: Authority, roster: Roster) -> grpc.ServerCredentials:
    """Mutual TLS: silos' certificates of all CAs, and invitations'. Asked anew at every handshake."""
    shown: list[object] = [None]
    asking = threading.Lock()

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        with asking:
            server, roots = authority.server, authority.bundle
            invited = set(roster.invitation_certificates())
            # Only what is to be added is a change: an invitation that is gone is refused by the roster all the same.
            seen = shown[0]
            if isinstance(seen, tuple) and seen[:2] == (server, roots) and invited <= seen[2]:
                return None
            shown[0] = (server, roots, invited)
            if seen is not None:
                time.sleep(PAUSE_S)
            return grpc.ssl_server_certificate_configuration(
                [server], root_certificates=b"".join((roots, *sorted(invited)))
            )

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)
