from __future__ import annotations

import subprocess
import sys

import pytest

from feddiff.federator.handshakes import explain

PREFIX = "I1121 03:42:07.404055   16532 ssl_transport_security.cc:2563] "
FAILED = PREFIX + "Handshake failed with error SSL_ERROR_SSL: error:1000{}:SSL routines:OPENSSL_internal:{}"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "no certificate"),
        ("CERTIFICATE_VERIFY_FAILED: self signed certificate", "not from this federation's CA"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "does not speak TLS"),
        ("HTTP_REQUEST", "plain HTTP"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not know this federation's CA"),
        ("SOMETHING_QUITE_NEW", "something quite new"),
    ],
)
def test_a_failed_handshake_in_words(reason: str, said: str) -> None:
    explained = explain(FAILED.format("00c0", reason))
    assert explained is not None
    assert said in explained


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        PREFIX + "Handshake failed",
        PREFIX + "all is well",
        "2026-01-01 10:00 round 3 opens",
    ],
)
def test_other_lines_are_not_explained(line: str) -> None:
    assert explain(line) is None


def test_a_watched_process_logs_handshakes_and_passes_everything_else_on() -> None:
    core = FAILED.format("00c0", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
    quiet = PREFIX + "gRPC talks to itself"
    loud = PREFIX.replace("I", "E", 1) + "gRPC has trouble"
    code = (
        "import logging, os, sys, time; from feddiff.federator import handshakes\n"
        "handshakes.watch(); logging.basicConfig(format='LOG %(name)s %(message)s')\n"
        f"for line in ({core!r}, {quiet!r}, {loud!r}, 'from elsewhere'): os.write(2, line.encode() + b'\\n')\n"
        "print('from python \\udcff', file=sys.stderr); time.sleep(0.5)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert sorted(said.splitlines()) == [
        loud,
        "LOG feddiff.federator.tls refused a connection: the client shows no certificate",
        "from elsewhere",
        "from python \\udcff",
    ]
