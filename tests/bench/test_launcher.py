"""bench/launcher.py, campaign.py, worker.py: where cells run, what becomes of them, and that each is run once."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from feddiff.bench import campaign, cli, launcher, sweep, table, worker
from feddiff.core.errors import ConfigError, FedDiffError

# The federations fail at once, for they have too few images; the centralised baselines are done in a moment.
SWEEP = """\
name = "tiny"
baselines = ["centralised"]
[federation]
preset = "digits-8"
[federation.rounds]
count = 1
[federation.training]
steps = 2
batch_size = 8
[data]
images = 60
least = 31
[samples]
count = 10
steps = 2
[grid]
silos = [2]
"""
LONG = SWEEP.replace("steps = 2\nbatch", "steps = 1000000\nbatch")
REMOTE = [
    pytest.param(["--on", "ray"], id="ray", marks=pytest.mark.slow),
    pytest.param(["--on", "slurm", "--slurm", "cluster=local"], id="slurm", marks=pytest.mark.slow),
]


def installed(on: list[str]) -> None:
    for name, module in (("ray", "ray"), ("slurm", "submitit")):
        if name in on:
            pytest.importorskip(module)


def write(folder: Path, text: str) -> Path:
    (folder / "sweep.toml").write_text(text)
    return folder / "sweep.toml"


Ended = Callable[[], int | None]


def pretend(monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path, str], Ended], cancelled: list[str]) -> None:
    """Let ``--on local`` be a launcher that only says how its cells end."""

    @contextmanager
    def fake(run: Path, jobs: int, options: Any) -> Iterator[launcher.Start]:
        yield lambda key: launcher.Job(begin(run, key), lambda: cancelled.append(key))

    monkeypatch.setitem(launcher.LAUNCHERS, "local", fake)


def run(folder: Path, text: str = SWEEP, jobs: int = 1) -> tuple[int, list[str], Path]:
    said: list[str] = []
    failed = campaign.run(sweep.load(write(folder, text)), folder / "run", jobs, said.append)
    return failed, said, folder / "run"


class TestCampaign:
    def test_what_a_cell_says_is_told_on_line_by_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def begin(run: Path, key: str) -> Ended:
            parts = iter(["half a ", "line\nanother\n", "done: \xe9"])
            codes = iter([None, None, 0])

            def ended() -> int | None:
                with launcher.log(run, key).open("a") as log:
                    log.write(next(parts))
                return next(codes)

            return ended

        pretend(monkeypatch, begin, [])
        failed, said, out = run(tmp_path)
        assert failed == 0
        one = [line for line in said if line.startswith("[1/2]")]
        assert one[1:] == ["[1/2] half a line", "[1/2] another", "[1/2] done: \xe9"]
        assert not list((out / "work").iterdir())

    @pytest.mark.parametrize("jobs", [1, 2, 3])
    def test_so_many_at_a_time(self, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        running, most = set[str](), []

        def begin(run: Path, key: str) -> Ended:
            running.add(key)
            most.append(len(running))
            left = iter([None, 0])

            def ended() -> int | None:
                if (code := next(left)) == 0:
                    running.remove(key)
                return code

            return ended

        pretend(monkeypatch, begin, [])
        assert run(tmp_path, SWEEP + "seed = [0, 1, 2]", jobs)[0] == 0
        assert len(most) == 6
        assert max(most) == jobs

    def test_a_process_that_dies_is_a_failed_cell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def begin(run: Path, key: str) -> Ended:
            launcher.log(run, key).write_text("Traceback\nMemoryError\n")
            return lambda: -9

        pretend(monkeypatch, begin, [])
        failed, said, out = run(tmp_path)
        assert failed == 2
        assert "[1/2] failed: its process ended with -9: MemoryError" in said
        assert [entry.failure for entry in table.read(out)] == ["its process ended with -9: MemoryError"] * 2

    def test_a_job_that_is_lost_is_a_failed_cell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def lost() -> int | None:
            raise FedDiffError("the node went away")

        pretend(monkeypatch, lambda run, key: lost, [])
        failed, said, _ = run(tmp_path)
        assert failed == 2
        assert "[2/2] failed: the node went away" in said

    def test_what_runs_is_cancelled_when_something_goes_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cancelled: list[str] = []

        def begin(run: Path, key: str) -> Ended:
            if key.startswith("centralised"):
                raise FedDiffError("the queue is closed")
            return lambda: 130 if cancelled else None

        pretend(monkeypatch, begin, cancelled)
        with pytest.raises(FedDiffError, match="closed"):
            run(tmp_path, jobs=2)
        assert len(cancelled) == 1


class TestWorker:
    @pytest.fixture
    def prepared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
        """A run of which no cell was run, and the key of one."""
        pretend(monkeypatch, lambda run, key: lambda: 1, [])
        _, _, out = run(tmp_path)
        (tmp_path / "sweep.toml").unlink()  # the run's folder is all that a worker needs
        return out, next(entry.key for entry in table.read(out) if entry.key.startswith("centralised"))

    def test_a_cell_that_another_one_has_is_waited_for_and_not_run_again(self, prepared: tuple[Path, str]) -> None:
        out, key = prepared
        said: list[str] = []
        done: list[bool] = []
        (out / "locks").mkdir()
        with (out / "locks" / key).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            thread = threading.Thread(target=lambda: done.append(worker.run(out, key, 1, said.append)))
            thread.start()
            while not said:
                time.sleep(0.01)
                assert thread.is_alive()
            assert said == ["waits: another process runs this cell"]
            (out / "cells" / f"{key}.json").write_text("{}")
        thread.join()
        assert done == [True]
        assert said[1:] == ["done by another process"]
        assert (out / "cells" / f"{key}.json").read_text() == "{}"

    def test_it_runs_from_the_folder_alone(self, prepared: tuple[Path, str]) -> None:
        out, key = prepared
        said: list[str] = []
        assert worker.run(out, key, 1, said.append)
        found = json.loads((out / "cells" / f"{key}.json").read_text())
        assert found["key"] == key
        assert found["totals"]["images"] == 2 * 2 * 8
        assert said[-1].startswith("done: ")
        assert not list((out / "work").glob(f"{key}*"))

    @pytest.mark.parametrize("key", ["other", "../../x"])
    def test_a_cell_that_the_sweep_does_not_have_is_refused(
        self, key: str, prepared: tuple[Path, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["cell", str(prepared[0]), key]) == ConfigError.exit_code
        assert "has no cell" in capsys.readouterr().err

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cell", str(tmp_path), "key"]) == ConfigError.exit_code
        assert "not the folder of a run" in capsys.readouterr().err


class TestOptions:
    @pytest.mark.parametrize(
        ("more", "names"),
        [
            (["--ray", "num_cpus=2"], "--on ray"),
            (["--on", "ray", "--slurm", "time=5"], "--on slurm"),
            (["--on", "slurm", "--slurm", "time"], "'time' is not KEY=VALUE"),
            (["--on", "slurm", "--slurm", "cluster=local", "--slurm", "tiem=5"], "--slurm: "),
            (["--on", "slurm"], "--slurm: "),
            (["--on", "ray", "--ray", "num_cpu=1"], "--ray: "),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self, more: list[str], names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if names.endswith(": "):
            installed(more)
        asked = ["run", str(write(tmp_path, SWEEP)), "--out", str(tmp_path / "run"), *more]
        assert cli.main(asked) == ConfigError.exit_code
        told = capsys.readouterr().err
        assert names in told
        assert told.count("\n") == 1

    @pytest.mark.parametrize(("on", "module"), [("ray", "ray"), ("slurm", "submitit")])
    def test_what_is_not_installed_is_named(
        self, on: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"pip install 'feddiff\[{on}\]'"), launcher.opened(on, tmp_path, 1):
            pass

    def test_they_are_not_loaded_before_they_are_asked_for(self) -> None:
        code = "import sys, feddiff.bench.worker as w; print({'ray', 'submitit'} & sys.modules.keys())"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told.strip() == "set()"


def command(out: Path, file: Path, *more: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "feddiff.bench.cli", "run", str(file), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)


def lives_for(out: Path) -> list[str]:
    """Command lines of processes that work for a run."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(out) in line:
            found.append(line)
    return found


class TestForReal:
    """Real processes."""

    @pytest.mark.parametrize("on", [pytest.param([], id="local"), *REMOTE])
    @pytest.mark.slow
    def test_two_at_a_time(self, on: list[str], tmp_path: Path) -> None:
        installed(on)
        out = tmp_path / "run"
        with command(out, write(tmp_path, SWEEP + "seed = [0, 1]"), "--jobs", "2", *on) as process:
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
        assert process.returncode == cli.FAILED
        began = [place for place, line in enumerate(lines) if line.endswith((", seed 0", ", seed 1"))]
        ended = [place for place, line in enumerate(lines) if "] done: " in line or "] failed: " in line]
        assert len(began) == len(ended) == 4
        assert began[1] < ended[0]
        assert sum("60 images cannot be dealt to 2 silos" in line for line in lines if "] failed: " in line) == 2
        entries = table.read(out)
        assert [entry.result is not None for entry in entries] == [False, False, True, True]
        assert all("cannot be dealt" in entry.failure for entry in entries[:2])

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("on", [pytest.param([], id="local"), *REMOTE])
    def test_an_interrupted_one_leaves_nothing_running(self, on: list[str], number: int, tmp_path: Path) -> None:
        installed(on)
        if "slurm" in on and number == signal.SIGKILL:
            pytest.skip("its jobs go on without us: see below")
        out = tmp_path / "run"
        process = command(out, write(tmp_path, LONG), *on)
        try:
            while not list(out.glob("work/centralised*/silos/*")):  # it trains
                assert process.poll() is None
                time.sleep(0.1)
            assert len(lives_for(out)) > 1
        finally:
            process.send_signal(number)
            process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        until = time.monotonic() + 60
        while (left := lives_for(out)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left
        (entry,) = [entry for entry in table.read(out) if entry.key.startswith("centralised")]
        assert entry.result is None
        assert not entry.failure

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_a_cell_of_a_run_that_died_is_waited_for(self, tmp_path: Path) -> None:
        """Slurm's jobs outlive who submitted them; submitit's stand-in does too."""
        pytest.importorskip("submitit")
        out, file = tmp_path / "run", write(tmp_path, LONG.replace("1000000", "2000"))
        first = command(out, file, "--on", "slurm", "--slurm", "cluster=local")
        while not (begun := list(out.glob("work/centralised*/silos/*"))):
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
        first.wait()  # its job has its stdout, and goes on
        assert first.stdout is not None
        first.stdout.close()
        with command(out, file) as second:
            assert second.stdout is not None
            told = second.stdout.read()
        assert "2 cells, 0 done before, 2 to run" in told
        assert "[2/2] waits: another process runs this cell\n[2/2] done by another process" in told
        assert not begun[0].exists()
        assert [entry.result is not None for entry in table.read(out)] == [False, True]
