"""The CA and the server's certificate in a federator's folder: renewed, replaced, and whole after a kill."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feddiff.core import pki, trust
from feddiff.core.errors import CertificateExpired, ConfigError
from feddiff.core.identity import Identity
from feddiff.federator import site
from feddiff.federator.authority import Authority
from feddiff.federator.database import Database
from feddiff.federator.roster import Roster
from feddiff.federator.upkeep import Upkeep, left_behind, outlook, stale

LIFE = timedelta(days=30)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site.init(tmp_path / "federator", "trial", "digits-16", "federator.example.org:50051", ["10.0.0.7"])
    return tmp_path / "federator"


def request() -> bytes:
    return pki.request_certificate(pki.make_key(), "hospital-a")


def test_the_servers_certificate_is_renewed_at_two_thirds_of_its_life(folder: Path) -> None:
    clock = Clock()
    authority = Authority(folder, clock)
    key, first = authority.server
    begun = clock.now
    clock.now = begun + LIFE * 0.66
    assert not authority.renew_server()
    clock.now = begun + LIFE * 0.67
    assert authority.renew_server()
    assert not authority.renew_server()
    again, second = authority.server
    assert again == key
    assert pki.hosts(second) == pki.hosts(first) == ["federator.example.org", "10.0.0.7"]
    assert trust.check_signed_by(second, authority.current.certificate, clock.now).role == "federator"
    assert Identity.from_certificate(second).not_after > begun + 1.6 * LIFE
    clock.now += 2 * LIFE
    with pytest.raises(CertificateExpired):
        authority.check()
    authority.renew_server()
    authority.check()


def test_the_lifetime_is_read_from_its_file(folder: Path) -> None:
    clock = Clock()
    authority = Authority(folder, clock)
    (folder / "lifetime").write_text("12h\n")
    ends = Identity.from_certificate(authority.issue(request(), "hospital-a")).not_after
    assert timedelta(hours=11, minutes=59) < ends - clock.now <= timedelta(hours=12)
    (folder / "lifetime").write_text("soon\n")
    with pytest.raises(ConfigError, match=r"lifetime: soon: a number and m, h or d"):
        authority.issue(request(), "hospital-a")


def test_while_the_ca_is_replaced_both_are_trusted_and_then_the_new_one_alone(folder: Path) -> None:
    authority, other = Authority(folder), Authority(folder)  # the daemon's, and a command's
    old = authority.current.certificate
    earlier = authority.issue(request(), "hospital-a")
    other.replace(3600)
    with pytest.raises(ConfigError, match="being replaced already"):
        other.replace(3600)
    both = trust.split(authority.bundle)
    assert both[0] == old
    assert len(both) == 2
    now = datetime.now(UTC)
    assert trust.is_signed_by(authority.issue(request(), "hospital-a"), old), "others may not know the new one yet"
    assert authority.change_signer()
    assert not other.change_signer()
    later = authority.issue(request(), "hospital-a")
    assert trust.check_signed_by(later, both[1], now).name == "hospital-a"
    assert not authority.renew_server()
    assert trust.check_signed_by(authority.server[1], old, now).role == "federator", "silos know the old one only"
    for each in (earlier, later):
        assert trust.check_signed_by_any(each, authority.bundle, now).name == "hospital-a"

    other.finish()
    assert authority.bundle == both[1]
    assert trust.check_signed_by(authority.server[1], both[1], now).role == "federator"
    pki.issue_client(authority.current.certificate, authority.current.key, request(), "silo", "x", now)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("address", "audit.jsonl", "audit.key", "audit.pem", "ca.key", "ca.pem", "federation.toml", "lifetime"),
        *("server.key", "server.pem"),
    ]
    with pytest.raises(ConfigError, match="is not being replaced"):
        other.finish()


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_while_the_ca_changes_leaves_one_whole(folder: Path, writes: int) -> None:
    Authority(folder).replace(3600)
    new = trust.split(Authority(folder).bundle)[1]
    code = (
        "import os, signal, sys; from pathlib import Path; from feddiff.federator import authority\n"
        "write, left = authority.write_atomic, [int(sys.argv[2])]\n"
        "def counted(*arguments, **more):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*arguments, **more)\n"
        "authority.write_atomic = counted\n"
        "authority.Authority(Path(sys.argv[1])).finish()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(writes)], check=False)
    assert done.returncode == (-9 if writes < 3 else 0)
    authority = Authority(folder)
    assert authority.current.certificate == new == authority.bundle
    trust.check_key_matches(new, authority.current.key)
    assert trust.is_signed_by(authority.server[1], new)
    assert not (folder / "taken").exists()


def enrolled(roster: Roster, authority: Authority, name: str) -> None:
    issued = authority.issue(request(), name)
    serial = Identity.from_certificate(issued).serial
    roster.admit(name, serial, 0.0)
    roster.certificates.add(name, "key", issued, authority.stage, None)


def test_the_old_ca_goes_when_all_know_the_new_one_or_when_the_time_is_up(folder: Path) -> None:
    database = Database(folder / "federation.db")
    roster, authority = Roster(database), Authority(folder)
    enrolled(roster, authority, "hospital-a")
    enrolled(roster, authority, "hospital-b")
    site.invite(folder / "federation.toml", "hospital-c", "1h")
    Upkeep(authority, roster).look()
    assert not roster.stale("hospital-a")
    authority.replace(3600)
    old = authority.current
    Upkeep(authority, roster).look()
    assert stale(roster) == ["hospital-a", "hospital-b"]
    assert "waiting for hospital-a, hospital-b, hospital-c to renew" in outlook(folder, roster).rotation
    enrolled(roster, authority, "hospital-a")
    roster.evict("hospital-b", "gone")
    assert stale(roster) == []
    assert authority.signer == old
    Upkeep(authority, roster).look()
    assert authority.signer == authority.next != old, "now that all know it"
    Upkeep(authority, roster).look()
    assert stale(roster) == ["hospital-a"]
    enrolled(roster, authority, "hospital-a")
    Upkeep(authority, roster).look()
    assert authority.next is not None, "an invitation speaks of the old one"
    assert roster.withdraw("hospital-c")
    Upkeep(authority, roster).look()
    assert authority.next is None
    assert roster.stale("hospital-a"), "it still trusts the old one too"

    authority.replace(3600)
    Upkeep(authority, roster, lambda: datetime.now(UTC).timestamp() + 3599).look()
    assert authority.next is not None
    Upkeep(authority, roster, lambda: datetime.now(UTC).timestamp() + 3601).look()
    assert authority.next is None
    assert outlook(folder, roster).rotation == ""
    database.close()


def test_a_silo_that_is_away_locks_no_other_out(folder: Path) -> None:
    database = Database(folder / "federation.db")
    roster, authority = Roster(database), Authority(folder)
    for name in ("hospital-a", "hospital-b"):
        enrolled(roster, authority, name)
    authority.replace(3600)
    now = datetime.now(UTC).timestamp()

    def look(after: float) -> None:
        Upkeep(authority, roster, lambda: now + after).look()

    look(0)
    enrolled(roster, authority, "hospital-a")  # hospital-b is away
    look(1700)
    assert not authority.signs
    assert left_behind(authority, roster, now) == ["hospital-a", "hospital-b"]
    look(1900)
    assert authority.signs
    look(1901)
    assert roster.stale("hospital-a"), "it is asked for a certificate that outlives the old CA"
    enrolled(roster, authority, "hospital-a")
    assert left_behind(authority, roster, now) == ["hospital-b"]
    issued = authority.issue(request(), "hospital-a")
    look(3590)
    assert authority.next is not None
    look(3610)
    assert authority.next is None
    assert trust.is_signed_by(issued, authority.bundle)
    database.close()


def test_if_the_federator_was_away_the_others_still_get_time_to_renew(folder: Path) -> None:
    database = Database(folder / "federation.db")
    roster, authority = Roster(database), Authority(folder)
    enrolled(roster, authority, "hospital-a")
    authority.replace(3600)
    later = datetime.now(UTC).timestamp() + 7200
    Upkeep(authority, roster, lambda: later).look()
    Upkeep(authority, roster, lambda: later + 1700).look()
    assert authority.signs
    Upkeep(authority, roster, lambda: later + 1900).look()
    assert authority.next is None
    database.close()


def test_warnings_come_ahead_and_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(folder / "federation.db")
    roster, authority = Roster(database), Authority(folder)
    (folder / "lifetime").write_text("4d")
    enrolled(roster, authority, "hospital-a")
    (folder / "lifetime").write_text("40d")
    short, short_key = pki.create_authority("trial", datetime.now(UTC), days=80)
    for name, content in (("ca.pem", short), ("ca.key", short_key)):
        (folder / name).write_bytes(content)
    upkeep = Upkeep(authority, roster)
    upkeep.look()
    upkeep.look()
    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warned == [
        "the CA ends in 80 days: `feddiff-federator rotate-ca` makes a new one",
        "the certificate of hospital-a ends in 4 days, not renewed: start the silo, or invite it anew",
    ]
    shutil.rmtree(folder / "next", ignore_errors=True)
    database.close()
