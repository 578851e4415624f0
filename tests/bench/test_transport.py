from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from feddiff.bench import daemons, link, peers, transport
from feddiff.bench.emulator import Lane
from feddiff.bench.network import LOOPBACK, Network
from feddiff.bench.processes import Processes
from feddiff.bench.row import Row, table
from feddiff.bench.targets import judged
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.federator.database import Database
from feddiff.federator.ledger import Ledger

PARAMETERS = 60_000
LINE = {
    "framework": "nvflare", "silos": 4, "rounds": 4, "params": 35750000, "tls": True, "payload": "numpy", "exact": True,
    "max_abs_error": 3e-08, "prepare_s": 5.1, "start_to_round1_s": 9.7, "first_round_s": 20.1, "round_s": 18.7,
    "rounds_s": [18.5, 18.7, 19.0], "down_mb": 573.1, "up_mb": 573.4, "ideal_mb": 572.0, "cpu_round_s": 30.3,
    "cpu_round_server_s": 18.1, "server_rss_mb": 2215, "client_rss_mb": 910, "load_1m": 2.5,
}  # fmt: skip


def harness(folder: Path, text: str, *frameworks: str) -> Path:
    """A peers' folder whose ``run.py`` is this."""
    for name in frameworks:
        (folder / name).mkdir(parents=True)
        (folder / name / "driver.py").touch()
    (folder / "run.py").write_text(text)
    return folder


class TestOurs:
    def test_a_run_prints_a_row_for_each_and_keeps_them(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kept = tmp_path / "rows.jsonl"
        asked = f"--silos 2 --rounds 2 --parameters {PARAMETERS} --codecs fp32 --json {kept}"
        assert transport.main(asked.split()) == 0
        rows = [Row(**json.loads(line)) for line in kept.read_text().splitlines()]
        assert [row.name for row in rows] == ["gRPC stream, 256 KiB", "gRPC stream, 1024 KiB", "feddiff fp32"]
        told = capsys.readouterr().out
        for row in rows:
            assert f"| {row.name} " in told
            assert (row.silos, len(row.rounds_s), row.error) == (2, 1, "")
            assert row.round_s == row.rounds_s[0] > 0
            assert row.start_s is not None
            assert row.start_s > 0
            assert row.cpu_s >= row.cpu_federator_s >= 0  # type: ignore[operator]
            assert row.federator_peak_mb >= row.federator_idle_mb > 10  # type: ignore[operator]
            assert row.silo_peak_mb >= row.silo_idle_mb > 10  # type: ignore[operator]
        raw = 2 * 4e-6 * PARAMETERS
        for stream in rows[:2]:
            assert raw < stream.down_mb < 1.01 * raw  # type: ignore[operator]
            assert raw < stream.up_mb < 1.01 * raw  # type: ignore[operator]
        assert rows[2].max_error is not None
        assert rows[2].max_error < 1e-6

    def test_the_wire_carries_what_was_encoded_and_little_more(self, tmp_path: Path) -> None:
        row = daemons.measure(daemons.layout_of(PARAMETERS), 2, "int8", [LOOPBACK] * 3, tmp_path)
        database = Database(tmp_path / "federator" / "federation.db")
        entries = list(Ledger(database).entries(2))
        database.close()
        for way, wire in (("down", row.down_mb), ("up", row.up_mb)):
            encoded = sum(entry.encoded for entry in entries if entry.direction == way)
            assert 0 < encoded < 2 * 4 * PARAMETERS / 3
            assert wire is not None
            assert encoded < 1e6 * wire < encoded + 40_000
        assert row.max_error is not None
        assert 1e-6 < row.max_error < 1e-3

    def test_layouts_have_the_size_and_the_tensor_that_were_asked_for(self) -> None:
        layout = daemons.layout_of(1_000_003, 900_000)
        assert layout.size == 1_000_003
        assert max(segment.size for segment in layout.segments) >= 900_000


class TestPeers:
    def test_a_line_becomes_a_row(self) -> None:
        row = peers.row(LINE)
        assert (row.name, row.silos, row.parameters, row.error) == ("nvflare", 4, 35_750_000, "")
        assert (row.start_s, row.first_round_s, row.round_s) == (9.7, 20.1, 18.7)
        assert (row.cpu_s, row.cpu_federator_s, row.down_mb, row.up_mb) == (30.3, 18.1, 573.1, 573.4)
        assert (row.federator_peak_mb, row.silo_peak_mb, row.federator_idle_mb) == (2215, 910, None)

    def test_a_failure_is_a_row_of_one_line(self) -> None:
        row = peers.row({**LINE, "round_s": None, "error": "RuntimeError: fx ended\n  with 1"})
        assert row.error == "RuntimeError: fx ended with 1"
        assert "nvflare, K=4: RuntimeError: fx ended with 1" in table([row])

    def test_a_wrong_result_is_a_failure(self) -> None:
        assert "0.5" in peers.row({**LINE, "exact": False, "max_abs_error": 0.5}).error

    def test_they_are_run_for_the_same_job(self, tmp_path: Path) -> None:
        script = f"import json, sys; print(json.dumps({{**{LINE!r}, 'error': ' '.join(sys.argv[1:])}}))"
        row = peers.measure(harness(tmp_path, script), "nvflare", 3, 2, 5000, tmp_path / "scratch")
        for asked in ("nvflare --tls", "--silos 3", "--rounds 2", "--params 5000", f"--scratch {tmp_path}/scratch"):
            assert asked in row.error

    def test_a_harness_that_breaks_is_a_row_too(self, tmp_path: Path) -> None:
        row = peers.measure(harness(tmp_path, "raise SystemExit('no pip')"), "flower", 2, 2, 5000, None)
        assert (row.name, row.round_s) == ("flower", None)
        assert "no pip" in row.error

    def test_the_floor_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers, "check_allowed", lambda: None)
        assert peers.frameworks(harness(tmp_path, "", "airframe", "floor", "zebra")) == ["floor", "airframe", "zebra"]


class TestRefusals:
    def test_a_folder_without_a_harness(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert transport.main(["--peers", str(tmp_path / "nowhere")]) == ConfigError.exit_code
        assert "nowhere has no run.py" in capsys.readouterr().err

    @pytest.mark.parametrize("command", [transport.main, link.main])
    def test_neither_root_nor_ip(
        self, command: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(shutil, "which", lambda _: None)
        asked = ["--peers", str(harness(tmp_path, "", "floor"))] if command is transport.main else []
        assert command(asked) == ConfigError.exit_code  # type: ignore[operator]
        told = capsys.readouterr().err
        assert "need root and ip" in told
        assert told.count("\n") == 1

    @pytest.mark.parametrize("asked", [["--codecs", "fp33"], ["--only", "flower"]])
    def test_rows_that_there_are_not(self, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert transport.main(asked) == ConfigError.exit_code
        assert asked[1] in capsys.readouterr().err


class TestTargets:
    rows = (
        Row("gRPC stream, 256 KiB", 4, 1000, round_s=2.0),
        Row("gRPC stream, 1024 KiB", 4, 1000, round_s=1.0),
        Row("floor", 4, 1000, round_s=1.0, cpu_s=2.0),
        Row("slow", 4, 1000, round_s=20.0),
        Row("best", 4, 1000, round_s=6.0),
        Row("broken", 4, 1000, round_s=0.1, error="why"),
    )
    ours = Row("feddiff fp32", 4, 1000, round_s=1.5, cpu_s=5.0, start_s=2.0)

    def test_ours_is_held_against_the_best_of_each_kind(self) -> None:
        told = judged([*self.rows, self.ours])
        assert "MISSED feddiff fp32, K=4: wall / bare gRPC stream 1.50, at most 1.4" in told
        assert "met    feddiff fp32, K=4: CPU / floor 2.50, at most 3" in told
        assert "met    feddiff fp32, K=4: times faster than best 4.00, at least 3" in told
        assert "met    feddiff fp32, K=4: start to round 1, s 2.00, at most 5" in told
        assert len(told) == 4

    def test_only_runs_of_one_size_are_compared(self) -> None:
        assert len(judged([*self.rows, replace(self.ours, silos=16)])) == 1
        assert len(judged([*self.rows, replace(self.ours, parameters=2000)])) == 1


class TestProcesses:
    def test_cpu_and_memory_are_those_of_the_process(self, tmp_path: Path) -> None:
        burn = "import time\nheld = b'x' * 50_000_000\nwhile time.process_time() < 0.4: pass\n"
        with Processes(tmp_path) as processes:
            processes.start("hot", [sys.executable, "-c", burn + "del held\nprint('done', flush=True)\ninput()"])
            with pytest.raises(FedDiffError, match="hot"):  # its stdin is empty: it ends with an error
                processes.wait("hot", 60)
            now = time.time()
        assert processes.cpu(processes.begun, now, "hot") == pytest.approx(0.4, abs=0.15)
        assert processes.cpu(processes.begun, now) == processes.cpu(processes.begun, now, "hot")
        assert processes.peak(now, "hot") > 55

    def test_what_ends_too_early_is_said_with_its_last_line(self, tmp_path: Path) -> None:
        with Processes(tmp_path) as processes:
            processes.start("broken", [sys.executable, "-c", "raise SystemExit('out of luck')"])
            with pytest.raises(FedDiffError, match=r"broken ended with 1: .*out of luck"):
                processes.wait_for("broken", "ready")


class TestLine:
    def lane(self, **changed: float) -> tuple[socket.socket, socket.socket, Lane]:
        """A lane between two packet sockets: (what goes in, what comes out, the lane)."""
        into, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        target, out = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (into, source, target, out):
            each.setblocking(False)
        self.open = (source, target)
        shape = {"delay_s": 0.0, "loss": 0.0, "rate": 1e12, "queue": 10_000, **changed}
        return into, out, Lane(source.fileno(), target.fileno(), **shape)  # type: ignore[arg-type]

    def test_packets_arrive_whole_and_in_order(self) -> None:
        into, out, lane = self.lane()
        for number in range(5):
            into.send(bytes([number]) * 100)
        lane.take()
        while lane.give() < 1:
            pass
        assert [out.recv(2048) for _ in range(5)] == [bytes([number]) * 100 for number in range(5)]

    def test_they_arrive_when_they_are_due(self) -> None:
        into, out, lane = self.lane(delay_s=1000.0)
        into.send(b"late")
        lane.take()
        assert 990 < lane.give() <= 1000
        with pytest.raises(BlockingIOError):
            out.recv(2048)

    @pytest.mark.parametrize(("changed", "most"), [({"loss": 1.0}, 0), ({"rate": 8.0, "queue": 250}, 3)])
    def test_lost_and_too_many_packets_never_arrive(self, changed: dict[str, float], most: int) -> None:
        into, _, lane = self.lane(**changed)
        for _ in range(10):
            into.send(bytes(100))
        lane.take()
        assert len(lane._under_way) == most

    def test_the_table_has_the_share_of_the_medians(self) -> None:
        ours, theirs = [80e6, 90e6, 70e6], [100e6, 50e6, 100e6]
        rates = {(who, way): each for way in ("down", "up") for who, each in (("feddiff", ours), ("iperf3", theirs))}
        assert "| 80.0 (70.0-90.0) | 100.0 (50.0-100.0) | 80 % |" in link.table(rates)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip")
def test_places_of_a_network_hear_each_other(tmp_path: Path) -> None:
    serve = "import socket as s; l = s.create_server(('', 7000)); print('ready', flush=True); print(l.accept()[1][0])"
    with Network(2) as (near, far), Processes(tmp_path) as processes:
        call = f"import socket as s; s.create_connection(('{near.address}', 7000))"
        processes.start("near", [*near.prefix, sys.executable, "-c", serve])
        processes.wait_for("near", "ready")
        processes.start("far", [*far.prefix, sys.executable, "-c", call])
        processes.wait("near", 30)
        assert far.address in processes.log("near").read_text()
