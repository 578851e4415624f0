"""Why a TLS handshake failed, in the log, in words.

gRPC tells nobody in Python; its C core writes a line to stderr. This module takes stderr over, turns those lines into
log records and passes everything else on.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading

_FAILED = re.compile(r"Handshake failed with error \S+ error:[0-9a-f]+:[^:]*:[^:]*:(\w+)")
_CORE_LINE = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+:\d+\] ")
_WHY = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate",
    "CERTIFICATE_VERIFY_FAILED": "the client's certificate is not from this federation's CA, or out of its dates",
    "BAD_SIGNATURE": "the client's certificate is signed by another CA of the same name",
    "NO_SHARED_CIPHER": "the client offers no cipher that is safe",
    "WRONG_VERSION_NUMBER": "the client does not speak TLS",
    "HTTP_REQUEST": "the client speaks plain HTTP",
    "UNSUPPORTED_PROTOCOL": "the client's TLS is too old",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not know this federation's CA",
}

log = logging.getLogger("feddiff.federator.tls")


def explain(line: str) -> str | None:
    """The reason in a line of gRPC's core, or None if it tells of no failed handshake."""
    found = _FAILED.search(line)
    if not found:
        return None
    return _WHY.get(found[1], found[1].replace("_", " ").lower())


def watch() -> None:
    """From now on, failed handshakes are logged. Call once, before logging is set up."""
    # The real stderr stays open under another number; what gRPC writes to 2 comes to us first.
    real = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")  # as Python's own: names may be no UTF-8
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = real
    faulthandler.enable(real)  # a crash in C would else be written to the pipe, with nobody left to read it

    def read() -> None:
        with os.fdopen(reading, errors="replace") as lines:
            for line in lines:
                why = explain(line)
                if why is not None:
                    log.warning("refused a connection: %s", why)
                elif not _CORE_LINE.match(line) or line[0] in "EF":
                    real.write(line)

    threading.Thread(target=read, name="handshakes", daemon=True).start()
