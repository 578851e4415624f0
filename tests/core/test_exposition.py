"""The endpoint for Prometheus: answers one thing, and neither slow scrapers nor its own defects hold it up."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from feddiff.core import exposition
from feddiff.core.errors import ConfigError
from feddiff.core.exposition import MOST, Exposition
from feddiff.core.vitals import Vitals


class Counting:
    """Tells how often it was asked; fails while ``broken``."""

    def __init__(self) -> None:
        self.asked, self.broken = 0, False

    def collect(self) -> Iterator[Metric]:
        if self.broken:
            raise RuntimeError("no numbers")
        self.asked += 1
        yield GaugeMetricFamily("asked", "How often.", self.asked)


@pytest.fixture
def source() -> Counting:
    return Counting()


@pytest.fixture
def address(source: Counting) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Exposition(f"127.0.0.1:{port}")
    made.begin(source)
    yield f"127.0.0.1:{port}"
    made.close()


def asked(address: str, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", method=method), timeout=30) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 30)


def test_tells_the_source_and_the_process(address: str) -> None:
    code, text = asked(address)
    names = {family.name for family in text_string_to_metric_families(text)}
    assert code == 200
    assert {"asked", "process_resident_memory_bytes"} <= names
    assert asked(address, method="HEAD") == (200, "")


@pytest.mark.parametrize("path", ["/", "/metrics/../etc", "/other?metrics"])
def test_answers_nothing_else(address: str, path: str) -> None:
    assert asked(address, path)[0] == 404


def test_a_storm_of_scrapes_asks_the_source_once_a_second(
    address: str, source: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "FRESH_S", 3600.0)
    assert len({asked(address)[1] for _ in range(5)}) == 1
    assert source.asked == 1


def test_a_source_that_fails_is_said_once_and_asked_again(
    address: str, source: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    source.broken = True
    assert [asked(address)[0], asked(address)[0]] == [500, 500]
    assert len([each for each in caplog.records if "no numbers" in each.message]) == 1
    source.broken = False
    assert asked(address)[0] == 200


def test_scrapers_that_say_nothing_are_cut_off(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "PATIENCE_S", 0.5)
    silent = [connected(address) for _ in range(MOST)]
    with connected(address) as one_too_many:
        assert one_too_many.recv(1) == b""
    for each in silent:
        each.sendall(b"GET /metr")
        assert each.recv(1) == b""
        each.close()
    assert asked(address)[0] == 200


@pytest.mark.parametrize("wrong", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "nobody.invalid:9464"])
def test_an_address_that_cannot_be_is_one_line(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Exposition(wrong)
    assert "\n" not in caught.value.sentence


def test_an_address_that_is_taken_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be listened on: address already in use; choose another port"):
        Exposition(address)


def test_errors_are_counted_and_never_told(tmp_path) -> None:  # type: ignore[no-untyped-def]
    vitals = Vitals("program", tmp_path, {"server": tmp_path / "none.pem"})
    logging.getLogger("feddiff.somewhere").error("Jane Doe's scan cannot be read")
    logging.getLogger("feddiff.somewhere").warning("nor this")
    found = {sample.name: sample.value for family in vitals.collect() for sample in family.samples}
    assert found["program_errors_total"] == 1
    assert found["program_last_error_timestamp_seconds"] > 1e9
    assert "program_certificate_remaining_seconds" not in found
    assert "Doe" not in str([family.samples for family in vitals.collect()])
