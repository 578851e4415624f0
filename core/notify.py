"""What a daemon tells the service manager: that it is ready, what it is doing, and that its work moves on.

Beside the flow: called wherever something has really moved (a step trained, a chunk sent, the loop come round), never
by a timer, so that a training that hangs or a loop that is stuck starves the watchdog and is started again. Nothing
happens without ``$NOTIFY_SOCKET``. The one file of the core with a socket and a clock; no result depends on either.

Protocol: sd_notify(3); one datagram of ``KEY=value`` lines to a Unix socket, whose name may be abstract (``@…``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

EVERY_S = 1.0
"""The work may move on a thousand times a second; the watchdog need not hear of it more often than this."""
PATIENCE_S = 5.0
"""For what must not be lost; a status or a heartbeat may be."""
LONGEST = 400
"""Characters of a status: systemctl shows one line."""

_fed = -EVERY_S


def send(*lines: str, patience: float = 0.0) -> None:
    """One datagram. A service manager that is gone, or busy for longer than ``patience`` seconds, stops no training."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.settimeout(patience)
        to.sendto("\n".join(lines).encode(), address)


def ready(text: str) -> None:
    """The daemon is at work: its configuration holds. From now on the watchdog wants to be fed."""
    send("READY=1", _status(text), patience=PATIENCE_S)


def status(text: str) -> None:
    """What ``systemctl status`` shows. In one line, whatever a peer has put into it."""
    send(_status(text))


def alive() -> None:
    """Something has moved. Cheap enough for the innermost loop.

    Where there is no systemd (a container), ``$FEDDIFF_HEARTBEAT`` names a file whose age tells the same.
    """
    global _fed
    now = time.monotonic()
    if now - _fed < EVERY_S:
        return
    _fed = now
    send("WATCHDOG=1")
    if heartbeat := os.environ.get("FEDDIFF_HEARTBEAT"):
        with contextlib.suppress(OSError):
            Path(heartbeat).touch()


def stopping(text: str) -> None:
    """The daemon ends, as it was told or because it is done."""
    send("STOPPING=1", _status(text), patience=PATIENCE_S)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split()):.{LONGEST}}"
