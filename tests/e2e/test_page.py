"""The page of a running federator: over HTTP, and in a browser."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import Browser, chromium, eventually
from PIL import Image
from stage import FEDERATOR, Hospital, Process, Stage

from feddiff.core.quality import Measured
from feddiff.federator.access import FAILURES
from feddiff.federator.ledger import GLOBAL

ATTACK = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
A, B = "clinic-a", "clinic-b"


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    """What answers at one address."""

    def __init__(self, stage: Stage, host: str = "127.0.0.1") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.bound, self.url = f"{host}:{self.port}", f"http://127.0.0.1:{self.port}"
        self._stage = stage

    def ask(self, path: str, order: object = None, token: str = "", **headers: str) -> Answer:
        """A GET, or a POST with an order."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"Authorization": f"Bearer {token}"} if token else {}
        given |= {} if order is None else {"Content-Type": "application/json", **given}
        body = None if order is None else json.dumps(order).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, given)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """What is sent to one who looks, as it comes."""
        with urllib.request.urlopen(f"{self.url}/api/live", timeout=60) as reply:
            assert reply.headers.get_content_type() == "text/event-stream"

            def each() -> Iterator[tuple[str, Any]]:
                while line := reply.readline():
                    if line.startswith(b"event: "):
                        yield line[7:].decode().strip(), json.loads(reply.readline()[6:])

            yield each()

    def token(self, name: str = "anna") -> str:
        """A new one, from the command line."""
        return next(word for word in self._stage.operate("operator", name).split() if word.startswith("fdo1_"))


def begun(stage: Stage, rounds: int = 3) -> tuple[Page, Process, list[Hospital]]:
    """A federation with a page, and two hospitals that train round 1 until they are let go on."""
    page = Page(stage)
    process = stage.found(rounds=rounds, silos=2).serve("--http", page.bound)
    hospitals = [stage.hospital(name, samples) for name, samples in ((A, 30), (B, 10))]
    for hospital in hospitals:
        hospital.gate = {number: threading.Event() for number in range(1, rounds + 1)}
        hospital.learner.device = f"GPU {ATTACK}"
        hospital.learner.labels = {ATTACK: hospital.samples}
        hospital.start()
    stage.until("round 1 is trained", lambda: all(each.training(1) for each in hospitals))
    return page, process, hospitals


def go_on(hospitals: list[Hospital], round: int) -> None:
    for hospital in hospitals:
        hospital.gate[round].set()


def test_everything_is_told_and_goes_on_by_itself(stage: Stage) -> None:
    page, process, hospitals = begun(stage)
    with page.events() as heard:
        first: dict[str, Any] = {}
        while len(first) < 3:
            first |= [next(heard)]
        assert [each["round"] for each in first["rounds"]][-1] == 1
        silos = first["live"]["live"]["silos"]
        assert [each["name"] for each in silos] == [A, B]
        assert all(each[truth] for each in silos for truth in ("enrolled", "reachable", "planned", "training"))
        go_on(hospitals, 1)
        for name, data in heard:
            if (
                name == "live"
                and data["live"]["round"] == 2
                and all(each["training"] for each in data["live"]["silos"])
            ):
                break
    told = page.ask("/api/state").json
    closed = next(each for each in told["rounds"] if each["round"] == 1)
    assert (closed["silos"], closed["planned"], closed["loss"]) == (2, 2, 1.0)
    assert closed["closed"] > closed["opened"]
    assert told["live"]["silos"][0]["device"] == f"GPU {ATTACK}"
    assert told["live"]["reason"].startswith("0 of 2 updates are in")
    assert told["live"]["next"]["round"] == 3

    # The ledger: as the command line tells it, filtered, and as CSV.
    def is_same() -> bool:
        rows = [row for row in stage.ledger() if row["round"] == 1 and row["silo"] == A]
        found = page.ask(f"/api/ledger?silo={A}&first=1&last=1").json
        assert found["sums"]["rows"] == len(found["rows"]) >= 10
        text = page.ask(f"/api/ledger.csv?silo={A}&first=1&last=1").body.decode()
        sizes = [int(row["wire"]) for row in csv.DictReader(io.StringIO(text))]
        return [row["wire"] for row in found["rows"]][::-1] == sizes == [row["wire"] for row in rows]

    assert is_same()
    for wrong in (
        "first=x",
        "first=-1",
        "last=1e9",
        "before=[1]",
        "before=nonsense",
        "before=%5B%5B%5D,1,2,3%5D",
        'before=[1,"%5Cud800","",""]',
    ):
        assert page.ask(f"/api/ledger?{wrong}").status == 400
    assert page.ask("/api/ledger?silo=%27%20OR%201=1").json["rows"] == []
    assert page.ask('/api/ledger?before=[-1e30,"","",""]').json["rows"] == []

    # Pictures, by what was found and not by what was asked.
    (stage.home / "samples").mkdir()
    Image.new("L", (16, 16), 200).save(stage.home / "samples" / "round-0001.png")
    eventually("the picture is found", lambda: page.ask("/api/state").json["grids"] == [{"of": "", "rounds": [1]}])
    picture = page.ask("/api/grids?of=&round=1")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.body == (stage.home / "samples" / "round-0001.png").read_bytes()
    for path in ("of=..%2Ffederation&round=1", "of=&round=2", "of=&round=x", "of=&round=", ""):
        assert page.ask(f"/api/grids?{path}").status == 404

    # Whoever looks does not keep the daemon from ending.
    with page.events() as heard:
        next(heard)
        for hospital in hospitals:
            hospital.stop()
        assert process.terminate() == 0
        assert [name for name, _ in heard][-1:] != ["error"]
    assert "Traceback" not in process.told()


def test_only_operators_order_and_each_order_is_noted(stage: Stage) -> None:
    page, process, _ = begun(stage)
    token = page.token()
    pause = {"what": "pause"}
    assert page.ask("/api/orders", pause).status == 401
    assert page.ask("/api/orders", pause, token="fdo1_guess").status == 401
    assert page.ask("/api/orders", pause, Cookie=f"token={token}").status == 401
    assert page.ask(f"/api/orders?token={token}", pause).status == 401
    assert page.ask("/api/orders", pause, token=token, Origin="https://evil.example").status == 403
    assert page.ask("/api/orders", pause, token=token, Sec_Fetch_Site="cross-site").status == 403
    assert page.ask("/api/orders", pause, token=token, Content_Type="text/plain").status == 415
    assert page.ask("/api/orders", pause, token=token, Host="evil.example").status == 421
    assert page.ask("/api/orders", {"what": "pause", "reason": "x" * 5000}, token=token).status == 413
    for nonsense in ([], "pause", {"what": 1}, {"what": "evict", "silo": None}, {"what": "evict", "silo": "\ud800"}):
        assert page.ask("/api/orders", nonsense, token=token).status == 400
    assert page.ask("/api/orders", token=token).status == 405
    told = page.ask("/api/state").json["live"]
    assert (told["orders"], told["paused"]) == ([], False)

    assert page.ask("/api/operator", token=token).json == {"operator": "anna"}
    assert page.ask("/api/orders", pause, token=token, Origin=page.url).status == 200
    stage.operate("resume")  # the console's orders are noted as well
    refused = page.ask("/api/orders", {"what": "evict", "silo": "clinic-z"}, token=token)
    assert (refused.status, refused.json["error"].split(";")[0]) == (
        409,
        "The configuration is wrong: there is no silo 'clinic-z'",
    )
    assert page.ask("/api/orders", {"what": "evict", "silo": B, "reason": ATTACK}, token=token).status == 200
    told = page.ask("/api/state").json["live"]
    assert [(each["operator"], each["what"], each["silo"]) for each in told["orders"]] == [
        ("anna", "evict", B),
        ("anna", "evict", "clinic-z"),
        ("console", "resume", ""),
        ("anna", "pause", ""),
    ]
    assert told["silos"][1]["note"] == ATTACK
    assert not told["silos"][1]["enrolled"]
    stage.hospitals.pop(B)  # it ends with an error, as it should

    # Every answer carries what keeps a browser in bounds, a refusal, too.
    for path in ("/", "/page.js", "/page.css", "/api/state", "/api/ledger", "/nothing", "/api/operator", "/../cli.py"):
        headers = page.ask(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';"), path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in headers
    assert page.ask("/../cli.py").status == 404

    # Guessing is slow, and locks out nobody who shares the address.
    found = [page.ask("/api/operator", token=f"fdo1_{at}").status for at in range(FAILURES + 1)]
    assert found[-1] == 429
    assert page.ask("/api/operator", token=token).status == 200
    assert process.code is None


@pytest.mark.slow
def test_connections_that_ask_nothing_leave_the_rounds_their_files(stage: Stage) -> None:
    page, process, hospitals = begun(stage)
    process.limit_files(300)
    with ExitStack() as held:
        for _ in range(500):
            held.enter_context(socket.create_connection(("127.0.0.1", page.port), 30))
        go_on(hospitals, 1)
        stage.until("round 2 is trained", lambda: all(each.training(2) for each in hospitals))
        assert stage.operate("status")
    assert page.ask("/api/state").status == 200
    assert "Too many open files" not in process.told()


@pytest.mark.parametrize(("host", "more"), [("0.0.0.0", ()), ("127.0.0.1", ("--http-host", "page.example.org"))])
def test_a_page_that_others_reach_is_for_operators(stage: Stage, host: str, more: tuple[str, ...]) -> None:
    page = Page(stage, host)
    process = stage.found().serve("--http", page.bound, *more)
    token = page.token()
    for path in ("/api/state", "/api/live", "/api/ledger", "/api/ledger.csv", "/api/grids?of=&round=1"):
        assert page.ask(path).status == 401, path
    assert page.ask("/").status == 200  # holds nothing, and asks for the token
    assert page.ask("/api/state", token=token).json["live"]["federation"] == "trial"
    assert page.ask("/", Host="evil.example").status == 421
    assert page.ask("/", Host="page.example.org").status == (200 if more else 421)
    assert ("plain HTTP" in process.told()) is (host == "0.0.0.0")


def test_an_address_that_cannot_be_had_is_one_line(stage: Stage) -> None:
    stage.found()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules), "--http", address)
    assert done.code == 78
    assert done.err.splitlines()[-1] == (
        f"feddiff-federator: The configuration is wrong: --http {address} cannot be listened on: address already in use"
    )
    assert "Traceback" not in done.err
    for wrong in (("--http", "8080"), ("--http-host", "page.example.org"), ("--http", address, "--http-host", "a b")):
        done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules), *wrong)
        assert (done.code, len(done.err.splitlines())) == (78, 1)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    made = Browser(tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_in_a_browser(stage: Stage, browser: Browser, tmp_path: Path) -> None:
    page, _, hospitals = begun(stage)
    federation = stage.opened()
    federation.ledger.measure(1, GLOBAL, [Measured("fid", 12.5, None, 500, 300, ATTACK, "tiny", "ab" * 32)])
    (stage.home / "samples").mkdir()
    Image.new("L", (16, 16), 200).save(stage.home / "samples" / "round-0001.png")
    browser.size(1280, 900)
    browser.open(f"{page.url}/")
    browser.until("round 1 is shown", "document.querySelector('#now-title')?.innerText === 'Round 1 of 3'")

    # A row for each silo, whose truths change when a round goes on; nothing was loaded anew.
    browser.js("window.mark = 'the same page'")
    training = "[...document.querySelectorAll('[data-silo]')].map(row => row.children[4].innerText.trim()).join()"
    browser.until("both train", f"{training} === 'yes,yes'")
    hospitals[0].gate[1].set()
    row = f"document.querySelector('[data-silo={A}]')"
    browser.until("one is done", f"{row}.children[5].innerText.includes('its update is in')")
    assert browser.js(training).endswith("yes")
    hospitals[1].gate[1].set()
    browser.until("round 2 is shown", "document.querySelector('#now-title').innerText === 'Round 2 of 3'")
    browser.until("both train again", f"{training} === 'yes,yes'")
    assert browser.js("window.mark") == "the same page"
    assert "round" in browser.text("#ends")

    # What silos say of themselves is text.
    browser.js(f"{row}.querySelector('.more').click()")
    browser.until("the details are there", f"{row}.nextSibling.innerText.includes('GPU <img src=x')")
    assert browser.js("document.querySelectorAll('#silo-rows img, #silo-rows script').length") == 0

    # Charts, their table and their cursor; the newest grid.
    browser.until("a point is drawn", "document.querySelectorAll('#pareto .dot.best').length === 1")
    browser.until("bars are drawn", "document.querySelectorAll('#by-round .bar').length >= 4")
    assert browser.js("document.querySelector('#pareto table').textContent").endswith("yes")
    browser.js("document.querySelector('#pareto .plot').focus()")
    browser.press("ArrowRight")
    assert browser.text("#pareto .tip").startswith("round 1\nFID: 12.5\n")
    browser.until("the picture is there", "document.querySelector('#grid').naturalWidth === 16")
    browser.until("the ledger is there", "document.querySelectorAll('#ledger-rows tr').length > 10")
    browser.js("document.querySelector('[name=silo]').value = 'clinic-b'")
    browser.js("document.querySelector('[name=silo]').dispatchEvent(new Event('change', {bubbles: true}))")
    silos = "[...new Set([...document.querySelectorAll('#ledger-rows td:nth-child(2)')].map(each => each.innerText))]"
    browser.until("the filter holds", f"{silos}.join() === 'clinic-b'")

    # By keyboard: everything is reached, in order, and shows that it is.
    browser.js("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    reached = []
    for _ in range(60):
        browser.press("Tab")
        reached.append(browser.js("document.activeElement.id || document.activeElement.className || 'body'"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert reached[-1] == "body" or browser.js(outline) != "none", reached[-1]
        if reached[-1] == "token":
            break
    assert [each for each in reached if each in ("skip", "metric", "csv", "token")] == [
        "skip",
        "metric",
        "csv",
        "token",
    ]
    nameless = (
        "[...document.querySelectorAll('input, select, button, progress')].filter(each => !each.labels?.length"
        " && !each.textContent.trim() && !each.getAttribute('aria-label')).map(each => each.outerHTML)"
    )
    assert browser.js(nameless) == []

    # Orders: not without a token, not with a wrong one; with one they are carried out, and are noted.
    assert browser.js("document.querySelector('#desk').hidden")
    headers = "headers: {'Content-Type': 'application/json'}"
    order = f"fetch('api/orders', {{method: 'POST', body: '{json.dumps({'what': 'pause'})}', {headers}}})"
    assert browser.js(f"{order}.then(reply => reply.status)") == 401
    browser.fill("#token", "fdo1_guess")
    browser.press("Enter")
    browser.until("it is refused", "document.querySelector('#answer').innerText.includes('no operator has this token')")
    browser.fill("#token", page.token())
    browser.press("Enter")
    browser.until("anna is in", "document.querySelector('#who').innerText === 'anna'")
    browser.js("document.querySelector('[data-order=pause]').click()")
    browser.until("it asks", "document.querySelector('#confirm').open")
    browser.js("document.querySelector('#confirm-yes').click()")
    browser.until("it is paused", "document.querySelector('#phase').innerText === 'paused'")
    browser.until("it is noted", "document.querySelector('#orders').innerText.includes('anna ordered pause')")
    stage.until("the federation is paused", lambda: stage.opened().journal.fact("paused") == "yes")
    browser.js(f"document.querySelector('[data-silo={B}] .more').click()")
    browser.js(f"document.querySelector('#about-{B} button').click()")
    browser.fill("#order-reason", ATTACK)
    browser.js("document.querySelector('#confirm-yes').click()")
    browser.until("it is evicted", f"document.querySelector('[data-silo={B}]').innerText.includes('<script>')")
    stage.hospitals.pop(B)
    assert browser.js("window.hacked") is None

    # At phone width nothing is cut off; by night it is dark.
    for width, phone in ((360, True), (390, True), (768, False), (1280, False)):
        browser.size(width, 800, phone=phone)
        assert browser.js("document.documentElement.scrollWidth") <= width
    browser.size(390, 844, phone=True)
    light = browser.js("getComputedStyle(document.body).backgroundColor")
    browser.dark(True)
    assert browser.js("getComputedStyle(document.body).backgroundColor") != light
    browser.picture(tmp_path / "page.png")

    # Nothing broke, nothing was loaded from elsewhere; the refused orders are the only complaints.
    loaded = browser.js("performance.getEntriesByType('resource').map(each => each.name)")
    assert len(loaded) >= 8
    assert [each for each in loaded if not each.startswith((page.url, f"blob:{page.url}"))] == []
    assert [each for each in browser.complaints() if "401" not in each] == []
