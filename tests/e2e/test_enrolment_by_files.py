"""Enrolment where nothing may be pasted: a request goes out, people compare fingerprints, a grant comes in."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stage import FEDERATOR, SILO, Stage

from feddiff.core import grant, pki, trust
from feddiff.core.errors import CertificateExpired, ConfigError, FedDiffError, IdentityError, Revoked, StoreError
from feddiff.core.identity import Identity
from feddiff.federator import site
from feddiff.federator.approval import approve
from feddiff.federator.authority import Authority
from feddiff.federator.database import Database
from feddiff.federator.roster import Roster
from feddiff.silo import credentials, request

A = "hospital-a"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return federation(tmp_path / "federator")


def federation(folder: Path, lifetime: str = "30d") -> Path:
    site.init(folder, "trial", "digits-16", "127.0.0.1:50051", [], lifetime)
    return folder / "federation.toml"


def ca(rules: Path) -> str:
    return trust.fingerprint(Authority(rules.parent).current.certificate).hex()


def asked(folder: Path, rules: Path, name: str = A) -> tuple[Path, str]:
    """A request of a silo with this state folder, and its fingerprint."""
    folder.mkdir(exist_ok=True)
    path = folder.with_suffix(".request")
    request.ask(folder, name, "127.0.0.1:50051", ca(rules), path)
    found = grant.Request.parse(path.read_bytes())
    return path, pki.key_digest(found.request.encode())


def test_by_hand_through_real_programs(stage: Stage) -> None:
    stage.found(rounds=1, silos=1)
    paper = trust.fingerprint((stage.home / "ca.pem").read_bytes()).hex().upper()
    spelt = ":".join(paper[start : start + 2] for start in range(0, 40, 2))
    state = ("--state", str(stage.folder / A))
    order = ("request", A, "--federator", stage.address, "--ca-fingerprint", spelt, "--out", "a.request", *state)
    done = stage.call(SILO, *order)
    assert done.code == 0, done.err
    read_out = done.out.splitlines()[1].split("telephone:")[1].strip()
    config = ("--config", str(stage.rules))
    done = stage.call(FEDERATOR, "approve", "a.request", "--out", "a.grant", *config)
    assert done.code == ConfigError.exit_code
    assert f"asks to be {A}, with the fingerprint {read_out}." in done.err
    assert not (stage.folder / "a.grant").exists()
    done = stage.call(FEDERATOR, "approve", "a.request", "--fingerprint", read_out, "--out", "a.grant", *config)
    assert done.code == 0, done.err
    assert f"feddiff-silo install a.grant --federator {stage.address}" in done.out
    for says in (f"{A} is enrolled in trial", f"{A} is enrolled with this grant already"):
        done = stage.call(SILO, "install", "a.grant", "--federator", stage.address, *state)
        assert done.code == 0, done.err
        assert says in done.out
    carried = b"".join((stage.folder / name).read_bytes() for name in ("a.request", "a.grant"))
    assert b"PRIVATE" not in carried
    server = stage.serve()
    silo = stage.noise(A)
    assert [silo.wait(), server.wait()] == [0, 0], silo.told()


def test_again_gives_the_same(tmp_path: Path, rules: Path) -> None:
    path, heard = asked(tmp_path / A, rules)
    again, same = asked(tmp_path / A, rules)
    assert (again.read_bytes() != b"", same) == (True, heard), "the key stays"
    grants = [tmp_path / "first.grant", tmp_path / "second.grant"]
    for each in grants:
        approve(rules, path, heard, each)
    assert grants[0].read_bytes() == grants[1].read_bytes()
    request.install(tmp_path / A, grants[0])
    before = credentials.load(tmp_path / A)
    request.install(tmp_path / A, grants[1])
    assert credentials.load(tmp_path / A) == before
    assert sorted(path.name for path in (tmp_path / A).iterdir()) == [
        *("authority.pem", "certificate.pem", "identity.json", "key.pem")
    ]


def test_what_is_heard_must_be_what_was_asked(tmp_path: Path, rules: Path) -> None:
    path, heard = asked(tmp_path / A, rules)
    out = tmp_path / "a.grant"
    wrong = ("0" if heard[0] != "0" else "1") + heard[1:]
    for told, kind, says in (
        (wrong, IdentityError, "not the one you heard"),
        (heard[:16], ConfigError, "32 to 64 hexadecimal digits"),
        (None, ConfigError, "Have them read it to you"),
    ):
        with pytest.raises(kind, match=says):
            approve(rules, path, told, out)
    elsewhere = federation(tmp_path / "elsewhere")
    with pytest.raises(IdentityError, match="expects a CA with the fingerprint"):
        approve(elsewhere, path, heard, out)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(IdentityError, match="this is not a feddiff request"):
        approve(rules, path, heard, out)
    with pytest.raises(StoreError, match="No such file"):
        approve(rules, tmp_path / "nothing", heard, out)
    site.operator(rules, "anna", "1d")
    named, heard = asked(tmp_path / "anna", rules, "anna")
    with pytest.raises(ConfigError, match="anna is an operator's name"):
        approve(rules, named, heard, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "case", ["other request", "other name", "foreign", "swapped", "expired", "damaged", "a request"]
)
def test_a_wrong_grant_changes_nothing(tmp_path: Path, rules: Path, case: str) -> None:
    state, out = tmp_path / A, tmp_path / "a.grant"
    path, heard = asked(state, rules)
    kind: type[FedDiffError] = IdentityError
    if case in ("other request", "other name"):
        other, theirs = asked(tmp_path / "another", rules, A if case == "other request" else "hospital-b")
        approve(rules, other, theirs, out)
    elif case in ("foreign", "swapped"):
        there = federation(tmp_path / "there")
        other, theirs = asked(tmp_path / "another", there)
        approve(there, other, theirs, out)
        if case == "swapped":
            approve(rules, path, heard, tmp_path / "ours.grant")
            ours, foreign = (grant.Grant.parse(each.read_bytes()) for each in (tmp_path / "ours.grant", out))
            mixed = grant.Grant(A, ours.federation, foreign.certificate, ours.authority)
            out.write_bytes(mixed.to_bytes())
    elif case == "expired":
        kind = CertificateExpired
        (rules.parent / "lifetime").write_text("1s")
        approve(rules, path, heard, out)
        time.sleep(1.1)
    elif case == "damaged":
        approve(rules, path, heard, out)
        out.write_bytes(out.read_bytes().replace(b"a", b"b", 40))
    else:
        out = path
    before = {each.name: each.read_bytes() for each in state.iterdir()}
    with pytest.raises(kind):
        request.install(state, out)
    assert {each.name: each.read_bytes() for each in state.iterdir()} == before


def test_a_grant_without_a_request_is_refused(tmp_path: Path, rules: Path) -> None:
    path, heard = asked(tmp_path / A, rules)
    approve(rules, path, heard, tmp_path / "a.grant")
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="has made no request"):
        request.install(tmp_path / "new", tmp_path / "a.grant")


def test_the_present_certificate_counts_until_the_grants_is_used(tmp_path: Path, rules: Path) -> None:
    def installed(number: int) -> int:
        path, heard = asked(tmp_path / A, rules)
        approve(rules, path, heard, tmp_path / f"{number}.grant")
        request.install(tmp_path / A, tmp_path / f"{number}.grant")
        return Identity.from_certificate(credentials.load(tmp_path / A).certificate).serial

    first, second = installed(1), installed(2)
    database = Database(rules.parent / "federation.db")
    roster = Roster(database)
    assert roster.check(A, first).name == A
    assert roster.check(A, second).serial == str(second)
    with pytest.raises(Revoked, match="no longer counts"):
        roster.check(A, first)
    roster.evict(A, "gone")
    third = installed(3)
    assert roster.check(A, third).evicted is None
    database.close()
