"""What systemd hears of real daemons: ready, what they do, that work moves on; and nothing more once it hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stage import SILO, Stage, images

from feddiff.silo import enroll
from feddiff.silo.local import read_identity


class Manager:
    """The service manager of one daemon."""

    def __init__(self, path: Path) -> None:
        self.address, self.heard = str(path), list[str]()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while told := self._socket.recv(4096).decode():
            self.heard += told.split("\n")

    def says(self, start: str) -> bool:
        return any(line.startswith(start) for line in self.heard)

    @property
    def fed(self) -> int:
        return self.heard.count("WATCHDOG=1")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Callable[[str], Manager]]:
    made: list[Manager] = []

    def make(name: str) -> Manager:
        made.append(Manager(tmp_path / f"{name}.notify"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_training_that_hangs_starves_the_watchdog(
    stage: Stage, manager: Callable[[str], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.found(rounds=1, silos=1)
    federator, silo = manager("fed"), manager("silo")
    monkeypatch.setenv("NOTIFY_SOCKET", federator.address)
    server = stage.serve()
    monkeypatch.setenv("NOTIFY_SOCKET", silo.address)
    stage.noise("hospital-a", seconds=3600)
    stage.until("the training begins", lambda: silo.says("STATUS=round 1 training"))
    assert "READY=1" in silo.heard
    assert silo.fed >= 1

    def wait_for(beats: int) -> None:
        """By the federator's clock, whose loop turns while the silo hangs."""
        since = federator.fed
        stage.until("the federator's loop turns", lambda: federator.fed >= since + beats)

    wait_for(2)
    before = silo.fed
    wait_for(4)
    assert silo.fed == before

    assert federator.heard.index("READY=1") < federator.heard.index("WATCHDOG=1")
    assert federator.says("STATUS=round 1")
    assert "STOPPING=1" not in federator.heard
    assert server.terminate() == 0
    stage.until("it says that it stops", lambda: "STOPPING=1" in federator.heard)


def test_the_invitation_is_handed_over_as_a_credential(
    stage: Stage, manager: Callable[[str], Manager], tmp_path: Path
) -> None:
    stage.found(rounds=1, silos=1)
    images(tmp_path / "data", 2, seed=1)
    given = tmp_path / "credentials"
    given.mkdir()
    (given / enroll.CREDENTIAL).write_text(f"{stage.invite('hospital-a')}\n")
    silo, state = manager("silo"), tmp_path / "var" / "hospital-a"
    state.mkdir(parents=True)
    environment = {
        "NOTIFY_SOCKET": silo.address,
        "CREDENTIALS_DIRECTORY": str(given),
        "STATE_DIRECTORY": str(state),
    }
    options = ("--data", str(tmp_path / "data"), "--federator", stage.address)
    process = stage.run("silo", "-m", SILO, *options, env=environment)
    # Nobody listens yet: a silo that waits to be enrolled is a unit that has started.
    stage.until("it waits", lambda: silo.says("STATUS=not enrolled yet"))
    assert "READY=1" in silo.heard
    stage.serve()
    stage.until("it is enrolled", (state / "identity.json").exists)
    assert read_identity(state)[0] == "hospital-a"
    process.kill()


def test_no_credential_is_no_invitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert enroll.handed_over() is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert enroll.handed_over() is None
    (tmp_path / enroll.CREDENTIAL).write_text("\n")  # what the unit sets where there is no file
    assert enroll.handed_over() is None
    (tmp_path / enroll.CREDENTIAL).write_text("fdi1_x\n")
    assert enroll.handed_over() == "fdi1_x"
