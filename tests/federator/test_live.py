"""What the page is told: the same as ledger, journal and status say, read once, and as data."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from feddiff.core.config import from_table
from feddiff.core.quality import Measured
from feddiff.core.segments import cut
from feddiff.federator import broadcast
from feddiff.federator.broadcast import Broadcast, Full
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.history import History
from feddiff.federator.ledger import GLOBAL, OVERHEAD, Entry
from feddiff.federator.live import Live
from feddiff.federator.operator import status
from feddiff.federator.orders import Orders
from feddiff.federator.pictures import Pictures

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (40,)), ("up_blocks.0.a", (50,))])
A, B, C = SILOS = ["clinic-a", "clinic-b", "clinic-c"]
ATTACK = "<img src=x onerror=alert(1)>"
COUNT = 9


def founded(folder: Path, **rounds: Any) -> Federation:
    """Three clinics that are here, before the first round."""
    rules = {
        "plan": "udec",
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "rounds": {"count": COUNT, "participants": 3, "quorum": 1, **rounds},
    }
    federation = Federation(folder, from_table(rules, "test"), LAYOUT, Database(folder / "federation.db"))
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    for samples, silo in enumerate(SILOS, start=1):
        federation.roster.invite(silo, b"pem", silo, time.time() + 60)
        federation.roster.enroll(silo, silo, f"key of {silo}", samples, time.time())
        federation.join(silo, 10 * samples, {ATTACK: 1}, dict.fromkeys(LAYOUT.names, 0), ATTACK, "feddiff")
    return federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return founded(tmp_path)


def looking(federation: Federation) -> Live:
    return Live(federation, Database(federation.folder / "federation.db"))


def look(live: Live) -> dict[str, Any]:
    told = live.snapshot(time.time(), time.monotonic())
    return dict(json.loads(json.dumps(told, allow_nan=False)))


def opens(federation: Federation) -> int:
    federation.begin_round(SILOS, "")
    return federation.upcoming


def trains(federation: Federation, loss: float, size: int = 1 << 20) -> None:
    """What silos send and tell in the open round."""
    number = federation.upcoming
    for at, silo in enumerate(SILOS, start=1):
        federation.report(silo, number, "training", 2, 2, {"loss": loss * at})
        federation.ledger.add(
            Entry(number, silo, "decoder.0", "up", raw=200, encoded=100, wire=size * at, seconds=2.0),
            Entry(number, silo, OVERHEAD, "down", wire=50, seconds=1.0),
        )


def closes(federation: Federation) -> None:
    federation.published({}, tuple(SILOS))


def reading(metric: str, value: float, samples: int = 20) -> Measured:
    return Measured(metric, value, None, samples, 10, "held", "tiny", "ab" * 32)


def test_the_silos_are_told_as_the_status_tells_them(federation: Federation) -> None:
    opens(federation)
    trains(federation, 0.5)
    federation.hear(B)
    federation.evict(C, f"left {ATTACK}")
    federation.reject(B, "too late")
    told, said = look(looking(federation)), status(federation, live=True)
    for row, reply in zip(told["silos"], said.silos, strict=True):
        for name in ("name", "enrolled", "reachable", "planned", "training", "committed", "phase", "step", "steps"):
            assert row[name] == getattr(reply, name), (row["name"], name)
        assert row["note"] == reply.note
        assert row["up"] == list(reply.up)
        assert row["loss"] == pytest.approx(reply.loss)
        assert row["plan"] == reply.plan
    assert [row["note"] for row in told["silos"]] == ["", "too late", f"left {ATTACK}"]
    assert [row["planned"] for row in told["silos"]] == [True, False, True]
    assert told["silos"][0]["device"] == ATTACK  # data, to the letter: escaping is the page's
    assert (told["round"], told["rounds"], told["reason"]) == (1, COUNT, said.reason)


def test_bytes_are_the_ledgers_whatever_was_read_before(federation: Federation) -> None:
    live = looking(federation)
    federation.ledger.add(Entry(0, "", OVERHEAD, "up", wire=7))
    for number in range(1, 5):
        opens(federation)
        trains(federation, 1.0 / number)
        look(live)  # in the middle of a round
        federation.ledger.add(Entry(number, A, "decoder.0", "up", wire=1000 + number, retransmitted=3))
        closes(federation)
        # Until the next round opens, what is said is of the one that closed.
        federation.ledger.add(Entry(number, B, OVERHEAD, "up", wire=11))
        told = look(live)
        fresh = looking(federation)
        assert look(fresh)["silos"] == told["silos"]
        assert fresh.history.since(0) == live.history.since(0)
        for way in ("down", "up"):
            assert sum(each[way] for each in live.history.since(0)) == federation.ledger.wire(way)  # type: ignore[arg-type]
            assert sum(row["wire"][way] for row in told["silos"]) + told["other"][way] == federation.ledger.wire(way)  # type: ignore[arg-type]
    rounds = {each["round"]: each for each in live.history.since(0)}
    assert [*rounds] == [0, 1, 2, 3, 4]
    assert rounds[2]["losses"] == {A: 0.5, B: 1.0, C: 1.5}
    assert rounds[2]["loss"] == pytest.approx((10 * 0.5 + 20 * 1.0 + 30 * 1.5) / 60)
    assert rounds[2]["retransmitted"] == 3
    assert rounds[2]["raw"] == 8 * LAYOUT.size * 3


def test_only_what_changed_is_told_again(federation: Federation) -> None:
    live = looking(federation)
    for _ in range(5):
        opens(federation)
        trains(federation, 1.0)
        closes(federation)
    look(live)
    version = live.history.version
    look(live)
    assert live.history.since(version) == []
    federation.ledger.measure(2, GLOBAL, [reading("fid", 9.0)])  # it took a while to measure
    look(live)
    assert [each["round"] for each in live.history.since(version)] == [2]
    version = live.history.version
    federation.ledger.add(Entry(5, A, "decoder.0", "up", wire=5))
    look(live)
    assert [each["round"] for each in live.history.since(version)] == [5]


def test_links_are_estimated_as_everywhere(federation: Federation) -> None:
    for size in (1 << 20, 1 << 22, 1 << 10, 1 << 21):  # the third says nothing
        opens(federation)
        trains(federation, 1.0, size)
        closes(federation)
    history = History(Database(federation.folder / "federation.db"), LAYOUT)
    history.update()
    for silo in SILOS:
        assert history.rate(silo, "up") == federation.links.rate(silo, "up")
        assert history.rate(silo, "down") is None
    assert history.rate(C, "up") == pytest.approx(history.rate(C, "up"))
    rate = history.rate(C, "up")
    assert rate is not None
    assert rate.bytes_s == pytest.approx(3 * (1 << 21) / 2.0)


def test_the_front_is_what_no_cheaper_round_beats(federation: Federation) -> None:
    live = looking(federation)
    for number, (fid, recall) in enumerate([(9.0, 0.1), (7.0, 0.5), (8.0, 0.4), (3.0, 0.6)], start=1):
        opens(federation)
        trains(federation, [4.0, 2.0, 1.0, 3.0][number - 1])
        closes(federation)
        samples = 20 if number > 1 else 10  # the first was measured otherwise: it is on no front with the others
        federation.ledger.measure(number, GLOBAL, [reading("fid", fid, samples), reading("recall", recall, samples)])
    assert look(live)["fronts"] == {"loss": [1, 2, 3], "fid": [2, 4], "recall": [2, 4]}


def test_the_estimates_go_with_the_rounds(federation: Federation) -> None:
    live = looking(federation)
    told = look(live)
    assert told["ends"] == {"at": None, "reason": "no round is open"}
    opens(federation)
    assert look(live)["ends"]["at"] is None
    federation.report(A, 1, "training", 1, 2, {})
    federation.report(B, 1, "training", 1, 4, {})
    federation.report(C, 1, "training", 4, 4, {})
    assert f"{B} is 25% through its training" in look(live)["ends"]["reason"]
    closes(federation)
    opens(federation)
    told = look(live)
    assert told["ends"]["reason"].startswith("the round before took") or "longer than before" in told["ends"]["reason"]
    Orders(federation).give("anna", "pause")
    told = look(live)
    assert told["over"] == {"at": None, "reason": "paused by an operator after this round"}
    assert (told["paused"], told["orders"][0]["operator"], told["orders"][0]["what"]) == (True, "anna", "pause")


def test_the_next_round_is_told_in_words(federation: Federation) -> None:
    live = looking(federation)
    following = look(live)["next"]
    assert following["round"] == 1
    assert "udec: 3 silos, 3 of them from the whole model" in following["words"]
    (part,) = following["parts"]
    assert part[1] == SILOS
    assert part[0].startswith("fetches 3 segments (480 B before the codec), sends 1 segment (200 B)")
    opens(federation)
    following = look(live)["next"]
    assert following["round"] == 2
    assert following["words"].startswith("It opens when round 1 is over.")
    federation.evict(A, "")
    federation.evict(B, "")
    federation.evict(C, "")
    assert look(live)["next"]["words"].endswith("It needs 1 silo; here: none.")
    Orders(federation).give("anna", "stop")
    assert look(live)["next"]["round"] is None


def test_the_last_round_has_no_next(tmp_path: Path) -> None:
    federation = founded(tmp_path, count=1)
    live = looking(federation)
    opens(federation)
    assert look(live)["next"] == {"round": None, "words": "Round 1 is the last one.", "parts": []}


def test_a_sample_is_foretold_as_it_is_taken(tmp_path: Path) -> None:
    federation = founded(tmp_path, sampled=2, quorum=2)
    live = looking(federation)
    for _ in range(4):
        told = look(live)["next"]
        federation.begin_round(SILOS, "")
        assert federation.round is not None
        assert sorted(name for _, names in told["parts"] for name in names) == sorted(federation.round.plan.reporting)
        closes(federation)


def test_pictures_are_those_in_the_folders(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    assert not pictures.update()
    for name in (
        "samples/round-0002.png",
        "samples/mine.png",
        "samples/.round-0003.png.x7",
        "grids/round-0002/a.b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")
    (tmp_path / "federation.toml").write_text("secret")
    assert pictures.update()
    assert not pictures.update()
    assert pictures.told() == [{"of": "", "rounds": [2]}, {"of": "a.b", "rounds": [2]}]
    assert pictures.path("a.b", 2) == tmp_path / "grids/round-0002/a.b.png"
    for of, round in (("../../federation.toml", 2), ("", 3), ("a.b", 0)):
        assert pictures.path(of, round) is None
    (tmp_path / "samples/round-0011.png").write_bytes(b"picture")
    assert pictures.update()
    assert pictures.told()[0] == {"of": "", "rounds": [2, 11]}


def events(text: bytes) -> dict[str, Any]:
    lines = text.decode().split("\n")
    return {
        name.removeprefix("event: "): json.loads(data.removeprefix("data: "))
        for name, data in zip(lines[::3], lines[1::3], strict=False)
        if name
    }


def test_viewers_hear_all_at_first_and_then_what_changes(federation: Federation) -> None:
    for _ in range(2):
        opens(federation)
        trains(federation, 1.0)
        closes(federation)

    async def look_on() -> None:
        sender = Broadcast(looking(federation), Pictures(federation.folder))
        running = asyncio.create_task(sender.run())
        viewers = [sender.follow(lambda: None) for _ in range(2)]
        for viewer in viewers:
            heard = events(await anext(viewer))
            assert [each["round"] for each in heard["rounds"]] == [0, 1, 2]
            assert heard["grids"] == []
            assert heard["live"]["live"]["round"] == 2
        federation.begin_round(SILOS, "")
        for viewer in viewers:
            heard = events(await anext(viewer))
            assert [each["round"] for each in heard["rounds"]] == [3]
            assert heard["live"]["live"]["round"] == 3
            assert "grids" not in heard
        await sender.close()
        assert [await anext(viewer, b"over") for viewer in viewers] == [b"over", b"over"]
        await running

    asyncio.run(look_on())


def test_who_may_no_longer_look_goes_however_much_there_is_to_tell(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(broadcast, "TICK_S", 0.0)
    asked: list[int] = []

    def twice() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise PermissionError

    async def look_on() -> None:
        sender = Broadcast(looking(federation), Pictures(federation.folder))
        viewer = sender.follow(twice)
        for number in (1, 2):
            assert "live" in events(await anext(viewer))
            opens(federation) if number == 1 else closes(federation)
            await sender.state()  # there is news
        with pytest.raises(PermissionError):
            await anext(viewer)

    asyncio.run(look_on())


def test_viewers_are_bounded_and_leave_when_they_may_no_longer_look(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "VIEWERS", 1)
    monkeypatch.setattr(broadcast, "HEARTBEAT_S", 0.01)

    def no_longer() -> None:
        raise PermissionError

    async def look_on() -> None:
        sender = Broadcast(looking(federation), Pictures(federation.folder))
        first = sender.follow(no_longer)
        await anext(first)
        second = sender.follow(lambda: None)
        with pytest.raises(Full):
            await anext(second)
        with pytest.raises(PermissionError):
            _ = [heard async for heard in first]
        await anext(sender.follow(lambda: None))  # there is room again

    asyncio.run(look_on())


def test_a_page_that_cannot_look_keeps_quiet(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    live = looking(federation)

    async def look_on() -> None:
        sender = Broadcast(live, Pictures(federation.folder))
        monkeypatch.setattr(live, "snapshot", lambda *_: 1 / 0)
        assert (await sender.state())["live"] is None
        monkeypatch.undo()
        sender._looked_at = -1.0
        assert (await sender.state())["live"]["federation"] == federation.config.name

    asyncio.run(look_on())
