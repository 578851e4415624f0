"""Connections of the page: so many and no more, and none that stands still."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from feddiff.federator import connection

PATIENCE_S = 60.0
MOST = 4
MUCH = 64 << 20


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """/much is more than any buffer holds; /late is news that come when it has long been silent."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/much":
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(MUCH // 64), "more_body": True})
    if scope["path"] == "/late":
        await send({"type": "http.response.body", "body": b"wait", "more_body": True})
        await asyncio.sleep(6 * connection.SILENCE_S)
    await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "MOST", MOST)
    monkeypatch.setattr(connection, "SILENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(
            uvicorn.Config(answers, lifespan="off", log_config=None, http=connection.Connection, ws="none")
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
        thread.start()
        yield int(bound.getsockname()[1])
        server.should_exit = server.force_exit = True
        thread.join()


def ended(line: socket.socket) -> bool:
    """Wait until the other end has closed it."""
    try:
        while line.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def opened(port: int, text: str = "") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    line.sendall(text.encode())
    return line


def test_one_too_many_is_closed_and_the_silent_make_room(port: int) -> None:
    with ExitStack() as held:
        silent = [held.enter_context(opened(port)) for _ in range(3 * MOST)]
        assert all(map(ended, silent))  # nobody ever closed them here
    with opened(port, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as line:
        assert line.makefile("rb").read().endswith(b"done\r\n0\r\n\r\n")


@pytest.mark.parametrize("text", ["GET / HTT", "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTT"])
def test_who_does_not_finish_to_ask_is_let_go(port: int, text: str) -> None:
    with opened(port, text) as line:
        assert ended(line)


def test_who_takes_nothing_of_an_answer_is_let_go(port: int) -> None:
    with ExitStack() as held:
        lines = [held.enter_context(opened(port, "GET /much HTTP/1.1\r\nHost: x\r\n\r\n")) for _ in range(MOST)]
        answer = b""
        while not answer:  # refused until the others are let go, though they never read and never close
            with opened(port) as line:
                try:
                    line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = line.makefile("rb").read()
                except (ConnectionResetError, BrokenPipeError):
                    pass
        assert answer.endswith(b"done\r\n0\r\n\r\n")
        assert len(lines) == MOST


def test_news_may_be_long_in_coming(port: int) -> None:
    with opened(port, "GET /late HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as line:
        assert line.makefile("rb").read().endswith(b"4\r\nwait\r\n4\r\ndone\r\n0\r\n\r\n")
