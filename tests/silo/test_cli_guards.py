"""``feddiff-silo``: what it refuses before it touches a folder, and before it asks anybody."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feddiff.core import console, pki
from feddiff.core.errors import CertificateExpired
from feddiff.federator import site
from feddiff.silo import cli
from feddiff.silo.client import Client
from feddiff.silo.local import Local

STATE, IDENTITY, CONFIG = 74, 77, 78
NAME = "hospital-a"


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets up signals and logging as if the process were its own."""
    monkeypatch.setattr(console, "log_lines", lambda *_: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def address() -> Iterator[str]:
    """Where nobody ever answers: bound, so that no other process takes it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def token(home: Path, address: str) -> str:
    """An invitation of a federation that is made here."""
    site.init(home, "trial", "digits-16", address, [])
    return site.invite(home / "federation.toml", NAME, "7d")


def enrolled(state: Path, home: Path, issued: datetime, days: int = 90) -> Path:
    """A state folder with a certificate of the federation in ``home``, and with work in it."""
    with closing(Local(state)):
        key = pki.make_key()
        ca, ca_key = (home / "ca.pem").read_bytes(), (home / "ca.key").read_bytes()
        request = pki.request_certificate(key, NAME)
        (state / "key.pem").write_bytes(key)
        (state / "authority.pem").write_bytes(ca)
        (state / "certificate.pem").write_bytes(pki.issue_client(ca, ca_key, request, "silo", NAME, issued, days))
        (state / "identity.json").write_text(json.dumps({"name": NAME, "invitation": "an earlier one"}))
        (state / "rules.json").write_text("{}")
        for name in ("held", "trained", "inbox", "outbox", "lost"):
            (state / name / "decoder.0@3.safetensors").write_bytes(b"weeks of work")
    return state


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder: mode, and content if it is a file."""
    found = [folder, *sorted(folder.rglob("*"))]
    return {
        str(each.relative_to(folder)): (each.stat().st_mode, each.read_bytes() if each.is_file() else None)
        for each in found
    }


def refused(capsys: pytest.CaptureFixture[str], code: int, says: str, *arguments: object) -> None:
    capsys.readouterr()
    assert cli.main([str(each) for each in arguments]) == code
    told = capsys.readouterr()
    assert told.err.startswith("feddiff-silo: ")
    assert told.err.count("\n") == 1, told.err
    assert says in told.err
    assert told.out == ""


def images(folder: Path) -> Path:
    """A folder as an institution has it: the names are also those of a silo's own folders."""
    for name in ("inbox", "outbox"):
        (folder / name).mkdir(parents=True)
        (folder / name / "scan.png").write_bytes(b"an image")
    folder.chmod(0o755)
    return folder


def test_another_federations_token_leaves_the_folder_as_it_is(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token(tmp_path / "ours", address)
    foreign = token(tmp_path / "theirs", address)
    state = enrolled(tmp_path / "state", tmp_path / "ours", datetime.now(UTC))
    data = images(tmp_path / "images")
    before = tree(state)
    says = "belongs to a silo of another federation"
    refused(capsys, CONFIG, says, "join", foreign, "--state", state)
    assert tree(state) == before
    refused(capsys, CONFIG, says, "--data", data, "--federator", address, "--state", state, "--join", foreign)
    assert tree(state) == before


@pytest.mark.parametrize("place", [".", "inbox", "inbox/state/deep", "..", "../..", "linked"])
def test_state_and_images_lie_apart(
    tmp_path: Path, address: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    invitation = token(tmp_path / "federator", address)
    data = images(tmp_path / "hospital" / "data" / "images")
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    state = tmp_path / "link" / "inbox" if place == "linked" else data / place
    before = tree(tmp_path)
    command = ("--data", data, "--federator", address, "--state", state)
    refused(capsys, CONFIG, "must be folders apart", *command, "--join", invitation)
    assert tree(tmp_path) == before
    refused(capsys, CONFIG, "must be folders apart", *command)
    assert tree(tmp_path) == before


def test_folders_side_by_side_are_apart(tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a common parent nor a common beginning of the name is a conflict; it comes as far as the identity."""
    data = images(tmp_path / "data")
    state = tmp_path / "data-state"
    refused(capsys, CONFIG, "is not enrolled", "--data", data, "--federator", address, "--state", state)
    assert not state.exists()


def test_a_folder_of_other_files_is_no_state_folder(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    invitation = token(tmp_path / "federator", address)
    data, foreign = images(tmp_path / "data"), images(tmp_path / "foreign")
    before = tree(foreign)
    refused(capsys, CONFIG, "holds other files", "join", invitation, "--state", foreign)
    command = ("--data", data, "--federator", address, "--state", foreign)
    refused(capsys, CONFIG, "holds other files", *command, "--join", invitation)
    refused(capsys, CONFIG, "is not enrolled", *command)
    assert tree(foreign) == before


def test_an_empty_folder_is_one(tmp_path: Path) -> None:
    """systemd and container volumes give an empty one; its mode is theirs."""
    (tmp_path / "state").mkdir(mode=0o750)
    with closing(Local(tmp_path / "state")) as local:
        assert local.held() == {}
    Local(tmp_path / "state").close()


def test_nobody_enrols_in_a_folder_that_is_in_use(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    invitation = token(tmp_path / "federator", address)
    data, state = images(tmp_path / "data"), tmp_path / "state"
    with closing(Local(state)):
        before = tree(state)
        says = "is in use by another feddiff-silo"
        refused(capsys, STATE, says, "join", invitation, "--state", state)
        refused(capsys, STATE, says, "--data", data, "--federator", address, "--state", state, "--join", invitation)
        assert tree(state) == before
    assert not (state / "key.pem").exists()


def test_a_certificate_that_has_expired_is_said_before_anybody_is_called(tmp_path: Path, address: str) -> None:
    home, now = tmp_path / "federator", datetime.now(UTC)
    token(home, address)
    authority, authority_key = pki.create_authority("trial", now - timedelta(days=200))
    (home / "ca.pem").write_bytes(authority)
    (home / "ca.key").write_bytes(authority_key)
    late = enrolled(tmp_path / "late", home, now - timedelta(days=100))
    with pytest.raises(CertificateExpired, match="this clock says") as caught:
        Client(address, late)
    assert caught.value.exit_code == IDENTITY
    Client(address, enrolled(tmp_path / "good", home, now - timedelta(days=80))).close()
