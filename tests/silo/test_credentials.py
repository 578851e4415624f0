"""A silo's key, certificate and CAs change together, whatever kills it; and only for what is its own."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feddiff.core import pki
from feddiff.core.errors import FederatorUnavailable, IdentityError, StoreError
from feddiff.silo import credentials
from feddiff.silo.credentials import Credentials
from feddiff.silo.local import Local
from feddiff.silo.renewal import Renewal

NOW = datetime.now(UTC)
Ca = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def ca() -> Ca:
    return pki.create_authority("trial", NOW)


def made(ca: Ca, name: str = "hospital-a", role: str = "silo", roots: bytes = b"", days: float = 30) -> Credentials:
    key = pki.make_key()
    assert role in ("silo", "operator")
    issued = pki.issue_client(*ca, pki.request_certificate(key, name), "silo", name, NOW, days)
    if role == "operator":
        issued = pki.issue_client(*ca, pki.request_certificate(key, name), "operator", name, NOW, days)
    return Credentials(key, issued, roots or ca[0])


@pytest.mark.parametrize("writes", range(5))
def test_a_kill_leaves_the_old_ones_or_the_new_ones(tmp_path: Path, ca: Ca, writes: int) -> None:
    old, new = made(ca), made(ca, roots=ca[0] + pki.create_authority("trial", NOW)[0])
    credentials.store(tmp_path, old)
    for name, content in vars(new).items():
        (tmp_path / f"new-{name}").write_bytes(content)
    code = (
        "import os, signal, sys; from pathlib import Path; from feddiff.silo import credentials\n"
        "write, left, folder = credentials.write_atomic, [int(sys.argv[2])], Path(sys.argv[1])\n"
        "def counted(*arguments, **more):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*arguments, **more)\n"
        "credentials.write_atomic = counted\n"
        "names = ('key', 'certificate', 'authorities')\n"
        "parts = [(folder / f'new-{name}').read_bytes() for name in names]\n"
        "credentials.store(folder, credentials.Credentials(*parts))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(writes)], check=False)
    assert done.returncode == (-9 if writes < 4 else 0)
    whole = old if writes == 0 else new
    assert credentials.load(tmp_path) == whole
    Local(tmp_path).close()
    assert credentials.load(tmp_path) == whole
    assert not (tmp_path / credentials.PENDING).exists()
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


def test_files_that_do_not_belong_together_are_said(tmp_path: Path, ca: Ca) -> None:
    with pytest.raises(StoreError, match="No such file"):
        credentials.load(tmp_path)
    credentials.store(tmp_path, made(ca))
    (tmp_path / "key.pem").write_bytes(pki.make_key())
    with pytest.raises(IdentityError, match="does not belong to"):
        credentials.load(tmp_path)
    (tmp_path / credentials.PENDING).write_bytes(b"half")
    with pytest.raises(StoreError, match="delete it"):
        credentials.load(tmp_path)


def test_a_certificate_is_due_at_two_thirds_of_its_life_or_when_it_is_asked_for(tmp_path: Path, ca: Ca) -> None:
    credentials.store(tmp_path, made(ca, days=30))
    assert not Renewal(tmp_path, lambda: NOW + timedelta(days=19.9)).due
    renewal = Renewal(tmp_path, lambda: NOW + timedelta(days=20.1))
    assert renewal.due
    renewal.failed(FederatorUnavailable("away"))
    assert not renewal.due, "not at once again"
    early = Renewal(tmp_path)
    assert not early.due
    early.asked = True
    assert early.due
    fresh = made(ca)
    early.replace(fresh.key, fresh.certificate, fresh.authorities)
    assert not early.due
    assert credentials.load(tmp_path) == fresh


@pytest.mark.parametrize("case", ["name", "role", "key", "ca", "no ca", "expired", "rubbish"])
def test_a_wrong_answer_changes_nothing(tmp_path: Path, ca: Ca, case: str) -> None:
    old = made(ca)
    credentials.store(tmp_path, old)
    renewal = Renewal(tmp_path)
    answers = {
        "name": made(ca, "hospital-b"),
        "role": made(ca, role="operator"),
        "key": Credentials(pki.make_key(), made(ca).certificate, ca[0]),
        "ca": made(ca, roots=pki.create_authority("trial", NOW)[0]),
        "no ca": made(ca, roots=old.certificate),
        "expired": made(ca, days=1e-9),
        "rubbish": Credentials(old.key, b"rubbish", ca[0]),
    }
    with pytest.raises(IdentityError):
        renewal.replace(*vars(answers[case]).values())
    assert credentials.load(tmp_path) == renewal.credentials == old
