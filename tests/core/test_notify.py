"""What reaches the service manager's socket, by name and by abstract name."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddiff.core import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's end of the protocol."""
    name = str(tmp_path / "n") if request.param == "path" else f"@feddiff-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setattr(notify, "_fed", -notify.EVERY_S)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_says_what_systemd_understands(manager: socket.socket) -> None:
    notify.ready("calling the federator")
    notify.status("round 3\ntraining\r\nREADY=1")
    notify.stopping("told to stop")
    assert heard(manager) == [
        "READY=1\nSTATUS=calling the federator",
        "STATUS=round 3 training READY=1",  # what a peer says cannot become a line of its own
        "STOPPING=1\nSTATUS=told to stop",
    ]


def test_a_status_is_one_short_line(manager: socket.socket) -> None:
    notify.status("ü" * 5000)
    (line,) = heard(manager)
    assert line == f"STATUS={'ü' * notify.LONGEST}"


def test_feeds_at_most_once_in_a_while(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("feddiff.core.notify.time.monotonic", lambda: now)
    for _ in range(100):
        notify.alive()
    assert heard(manager) == ["WATCHDOG=1"]
    now += notify.EVERY_S
    notify.alive()
    assert heard(manager) == ["WATCHDOG=1"]


def test_a_container_looks_at_the_age_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("FEDDIFF_HEARTBEAT", str(tmp_path / "alive"))
    monkeypatch.setattr(notify, "_fed", -notify.EVERY_S)
    notify.alive()
    os.utime(tmp_path / "alive", (1.0, 1.0))
    notify.alive()  # too early for another
    assert (tmp_path / "alive").stat().st_mtime == 1.0
    monkeypatch.setattr(notify, "_fed", -notify.EVERY_S)
    notify.alive()
    assert (tmp_path / "alive").stat().st_mtime > 1.0


def test_nobody_to_tell_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", str(tmp_path / "nobody"), "@feddiff-nobody-here", "/" + "long" * 50, "tcp:1"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready("x")
        notify.alive()
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.ready("x")


def test_a_manager_that_does_not_read_stops_nobody(manager: socket.socket) -> None:
    for _ in range(10_000):
        notify.status("x" * notify.LONGEST)
    assert 0 < len(heard(manager)) < 10_000
