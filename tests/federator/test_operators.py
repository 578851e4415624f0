"""Operators and their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feddiff.core.errors import ConfigError, IdentityError
from feddiff.federator import site
from feddiff.federator.database import Database
from feddiff.federator.operators import DAY_S, Operators


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "federation.db")
    yield made
    made.close()


def test_a_token_names_its_operator_until_it_expires(database: Database) -> None:
    clock = Clock()
    operators = Operators(database, clock)
    anna, boris = operators.issue("anna", 30), operators.issue("boris", 1)
    assert (operators.check(anna), operators.check(f" {boris}\n")) == ("anna", "boris")
    clock.now += DAY_S
    assert operators.check(anna) == "anna"
    with pytest.raises(IdentityError, match="the token of boris has expired"):
        operators.check(boris)
    assert [(each.name, each.expires_at) for each in operators.all()] == [
        ("anna", 1000.0 + 30 * DAY_S),
        ("boris", 1000.0 + DAY_S),
    ]


def test_only_the_newest_token_holds_and_a_revoked_one_does_not(database: Database) -> None:
    operators = Operators(database)
    first = operators.issue("anna", 30)
    second = operators.issue("anna", 30)
    with pytest.raises(IdentityError):
        operators.check(first)
    other = Operators(database)  # as another process sees it
    assert other.check(second) == "anna"
    assert operators.revoke("anna")
    assert not operators.revoke("anna")
    with pytest.raises(IdentityError):
        other.check(second)


@pytest.mark.parametrize("token", ["", "fdo1_", "x" * 10_000, "fdo1_\u00e9\ud800", "' OR 1=1 --"])
def test_what_is_no_token_is_refused(database: Database, token: str) -> None:
    operators = Operators(database)
    operators.issue("anna", 30)
    with pytest.raises(IdentityError):
        operators.check(token)


def test_a_token_is_not_in_the_database(database: Database, tmp_path: Path) -> None:
    token = Operators(database).issue("anna", 30)
    database.close()
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_nobody_is_both_silo_and_operator(tmp_path: Path) -> None:
    site.init(tmp_path, "trial", "digits-16", "127.0.0.1:50051", [])
    rules = tmp_path / "federation.toml"
    site.invite(rules, "hospital-a", "7d")
    with pytest.raises(ConfigError, match="hospital-a is a silo's name"):
        site.operator(rules, "hospital-a", "30d")
    site.operator(rules, "anna", "30d")
    with pytest.raises(ConfigError, match="anna is an operator's name"):
        site.invite(rules, "anna", "7d")
    for name, expires in (("Anna B", "30d"), ("boris", "soon"), ("boris", "0d")):
        with pytest.raises(ConfigError):
            site.operator(rules, name, expires)
