"""The way to the federator, step by step, against sockets of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from feddiff.core.errors import ConfigError, FederatorUnavailable, ProtocolError
from feddiff.silo import reach, route


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port that treats each caller so."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                with caller:
                    answer(caller)

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*route.PROXIES, *route.EXCEPTIONS, "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, ("", "")),
        ({"https_proxy": "http://proxy.example:3128"}, ("proxy.example:3128", "https_proxy")),
        ({"https_proxy": "proxy.example:3128"}, ("proxy.example:3128", "https_proxy")),
        ({"http_proxy": "http://user:word@proxy.example"}, ("proxy.example:80", "http_proxy")),
        ({"grpc_proxy": "a:1", "https_proxy": "b:2"}, ("a:1", "grpc_proxy")),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, ("", "")),
        ({"https_proxy": "p:1", "no_proxy": "fed.example.org"}, ("", "")),
        ({"https_proxy": "p:1", "no_proxy": "localhost, .example.org"}, ("", "")),
        ({"https_proxy": "p:1", "no_proxy": "other.org"}, ("p:1", "https_proxy")),
        ({"https_proxy": "http://p:none", "no_proxy": ""}, ("", "")),
    ],
)
def test_the_proxy_that_grpc_takes(environment: dict[str, str], proxy: tuple[str, str]) -> None:
    assert route.proxy_for("fed.example.org", environment) == proxy


def test_a_name_that_nobody_knows() -> None:
    found = route.travel("federator.invalid:50051")
    [finding] = reach.way(found)
    assert (finding.level, finding.subject, finding.kind) == ("problem", "name", ConfigError)
    assert "no address is known for federator.invalid" in finding.sentence


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    *_, finding = reach.way(route.travel(f"127.0.0.1:{port}"))
    assert (finding.subject, finding.kind) == ("port", FederatorUnavailable)
    assert f"no connection to 127.0.0.1 port {port}: connection refused" in finding.sentence
    assert "is it running?" in finding.advice


def test_a_firewall_that_drops_everything() -> None:
    dropped = route.Route("fed.example.org", 50051, addresses=("192.0.2.1",), refused="timed out", timed_out=True)
    *_, finding = reach.way(dropped)
    assert finding.subject == "port"
    assert "a firewall drops it" in finding.advice


def test_something_that_does_not_speak_tls() -> None:
    with listening(lambda caller: caller.sendall(b"220 mail.example ESMTP\r\n")) as port:
        found = route.travel(f"127.0.0.1:{port}")
    assert found.connected_s > 0
    assert found.shown == ()
    [finding] = reach.handshake(found, [], None, datetime.now(UTC))
    assert (finding.subject, finding.kind) == ("TLS", ProtocolError)
    assert "does not speak TLS: wrong version number" in finding.sentence


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(caller: socket.socket) -> None:
        asked.append(caller.recv(4096))
        caller.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with listening(refuse) as port:
        monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{port}")
        found = route.travel("fed.example.org:50051")
    assert asked[0].startswith(b"CONNECT fed.example.org:50051 HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n" in asked[0]
    told = list(reach.way(found))
    assert [(each.subject, each.level) for each in told] == [("proxy", "warning"), ("port", "problem")]
    assert "https_proxy is set" in told[0].sentence
    assert "add fed.example.org to no_proxy" in told[0].advice
    assert "refuses: 403 Forbidden" in told[1].sentence
    assert "secret" not in "".join(each.sentence + each.advice for each in told)


def test_a_proxy_in_capitals_is_not_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    with listening(lambda caller: None) as port:
        first, *_ = reach.way(route.travel(f"127.0.0.1:{port}"))
    assert (first.subject, first.level) == ("proxy", "warning")
    assert "HTTPS_PROXY names a proxy" in first.sentence
