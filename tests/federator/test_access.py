"""Who may ask the page what."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from feddiff.federator.access import ADDRESSES, FAILURES, WINDOW_S, Access, Door, Refused, loopback
from feddiff.federator.database import Database
from feddiff.federator.operators import Operators

LOCAL, PATH = "127.0.0.1:8080", "/api/orders"


async def nothing(*_: object) -> None:
    """An application that is never asked."""


@pytest.mark.parametrize("host", [LOCAL, "localhost", "localhost:9999", "[::1]:8080", "127.0.0.1"])
def test_a_local_page_is_reached_by_local_names(host: str) -> None:
    Access(nothing, "127.0.0.1").check("GET", PATH, Headers({"host": host}))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "", "192.0.2.7", "127.0.0.1.evil.example", "[::1"]
)
def test_not_by_others_which_a_dns_could_point_here(host: str) -> None:
    with pytest.raises(Refused) as caught:
        Access(nothing, "127.0.0.1").check("GET", PATH, Headers({"host": host}))
    assert caught.value.status == 421


def test_an_open_address_is_reached_by_any_address_and_the_names_that_were_given() -> None:
    access = Access(nothing, "0.0.0.0", ["Page.Example.org"])
    for host in ("192.0.2.7:8080", "page.example.org", "PAGE.example.org:443"):
        access.check("GET", PATH, Headers({"host": host}))
    with pytest.raises(Refused):
        access.check("GET", PATH, Headers({"host": "evil.example"}))


def test_other_sites_pages_get_nothing() -> None:
    access = Access(nothing, "127.0.0.1", ["page.example.org"])
    json = {"content-type": "application/json"}
    for fine in (
        {"host": LOCAL, "origin": f"http://{LOCAL}"},
        {"host": LOCAL, "origin": "https://page.example.org"},  # a proxy that gives its own Host
        {"host": "page.example.org", "origin": "https://page.example.org", "sec-fetch-site": "same-origin"},
        {"host": LOCAL, "sec-fetch-site": "none"},
    ):
        access.check("POST", PATH, Headers({**fine, **json}))
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for method in ("GET", "POST"):
            with pytest.raises(Refused) as caught:
                access.check(method, PATH, Headers({"host": LOCAL, **foreign, **json}))
            assert caught.value.status == 403
    access.check("GET", "/", Headers({"host": LOCAL, "sec-fetch-site": "cross-site"}))  # by a link on a wiki


def test_orders_are_json_which_no_form_can_send() -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        with pytest.raises(Refused) as caught:
            Access(nothing, "127.0.0.1").check("POST", PATH, Headers({"host": LOCAL, "content-type": kind}))
        assert caught.value.status == 415


def test_loopback() -> None:
    assert all(map(loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(loopback, ("0.0.0.0", "::", "192.0.2.7", "example.org")))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(token: str | None, address: str = "192.0.2.1", name: str = "authorization") -> HTTPConnection:
    headers = [] if token is None else [(name.encode(), token.encode())]
    return HTTPConnection({"type": "http", "headers": headers, "client": (address, 4711)})


@pytest.fixture
def operators(tmp_path: Path) -> Operators:
    return Operators(Database(tmp_path / "federation.db"))


def status(door: Door, asking: HTTPConnection) -> int:
    try:
        door.operator(asking)
    except Refused as error:
        return error.status
    return 200


def test_a_token_counts_in_its_header_alone(operators: Operators) -> None:
    door, token = Door(operators, open=True), operators.issue("anna", 1)
    assert door.operator(request(f"Bearer {token}")) == "anna"
    for wrong in (request(None), request(token), request(f"Basic {token}"), request(f"token={token}", name="cookie")):
        assert status(door, wrong) == 401
    door.reader(request(None))
    with pytest.raises(Refused):
        Door(operators, open=False).reader(request(None))


def test_who_guesses_is_told_nothing_for_a_while_and_locks_nobody_out(operators: Operators) -> None:
    clock = Clock()
    door, token = Door(operators, open=True, clock=clock), operators.issue("anna", 1)
    assert [status(door, request("Bearer guess")) for _ in range(FAILURES + 2)] == [401] * FAILURES + [429] * 2
    assert status(door, request(f"Bearer {token}")) == 200  # an operator behind the same proxy
    assert status(door, request("Bearer guess", address="192.0.2.2")) == 401
    clock.now += WINDOW_S
    assert status(door, request("Bearer guess")) == 401


def test_what_is_remembered_of_failures_is_bounded(operators: Operators) -> None:
    door = Door(operators, open=True)
    for at in range(ADDRESSES + 50):
        assert status(door, request("Bearer guess", address=f"2001:db8::{at:x}")) == 401
    assert len(door._failed) == ADDRESSES
