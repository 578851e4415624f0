"""Where the cells of a sweep run: on this machine, on a Ray cluster, on a Slurm cluster; the same process everywhere.

bench/campaign.py decides which cell begins when; a launcher only finds a place for ``feddiff-bench cell RUN KEY``
(bench/worker.py), and tells its exit code. All else goes through the run's folder, which every machine must see under
the same path, with file locks (NFS has them). Ray and submitit are extras, imported when they are asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddiff.bench.trial import TIED
from feddiff.core.errors import ConfigError, FedDiffError

LONGEST_MIN = 24 * 60
"""Minutes that Slurm gives a cell, unless ``time`` says otherwise."""
GRACE_S = 90.0
"""How long a cell may take to end its daemons when it is told to."""
LOOK_S = 0.5


@dataclass(frozen=True)
class Job:
    """One cell that was started, or waits for its place."""

    ended: Callable[[], int | None]
    """The exit code of its process; None while there is none. Raises FedDiffError if the launcher has lost it."""
    cancel: Callable[[], None]
    """Tells it to end, soon; ``ended`` says when it has."""


Start = Callable[[str], Job]
"""Starts the cell of this key."""


def opened(on: str, run: Path, jobs: int, options: Sequence[str] = ()) -> AbstractContextManager[Start]:
    """The launcher of this name, for cells of the run in this folder, ``jobs`` at a time.

    ``options`` are KEY=VALUE, what a task of Ray's or a job of Slurm's is to get. Raises ConfigError, also when it is
    entered, for options that cannot be and for a launcher that is not there.
    """
    if on not in LAUNCHERS:
        raise ConfigError(f"there is no launcher {on!r:.60}; known: {', '.join(LAUNCHERS)}")
    return LAUNCHERS[on](run.absolute(), jobs, _parsed(options))


def log(run: Path, key: str) -> Path:
    """What a cell's process says while it runs, line by line."""
    return run / "work" / f"{key}.log"


def attempt(run: Path, key: str, share: int) -> int:
    """Run a cell in a process of its own to its end; called on the machine that Ray or Slurm has chosen."""
    process = _process(run, key, share)
    try:
        # Not `wait`: Ray's cancelling is seen only between calls.
        while (code := process.poll()) is None:
            time.sleep(LOOK_S)
        return code
    finally:
        _end(process)


def _process(run: Path, key: str, share: int, own_session: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", TIED, "feddiff.bench.cli", "cell", str(run), key, "--share", str(share)]
    # Threads that spin while they wait for each other make all processes of a full machine many times slower.
    calm = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    with log(run, key).open("ab") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=calm, start_new_session=own_session
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _local(run: Path, jobs: int, options: Mapping[str, Any]) -> Iterator[Start]:
    """A process on this machine."""
    if options:
        raise ConfigError(f"cells on this machine take no options (got {', '.join(options)})")

    def start(key: str) -> Job:
        # Of its own session: Ctrl-C is for us, who then tell it.
        process = _process(run, key, jobs, own_session=True)
        return Job(process.poll, process.terminate)

    yield start


@contextmanager
def _ray(run: Path, jobs: int, options: Mapping[str, Any]) -> Iterator[Start]:
    """A task on the cluster of ``RAY_ADDRESS``, or that runs on this machine, or else one that is made for the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError:
        raise ConfigError("--on ray needs Ray: pip install 'feddiff[ray]'") from None
    try:
        task = ray.remote(**{"max_retries": 0, **options})(attempt)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--ray: {_line(error)}") from None
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray does not start: {_line(error)}") from None
    share = -(-jobs // max(len(ray.nodes()), 1))

    def start(key: str) -> Job:
        running = task.remote(run, key, share)

        def ended() -> int | None:
            done, _ = ray.wait([running], timeout=0)
            try:
                return int(ray.get(running)) if done else None
            except ray.exceptions.RayError as error:
                raise FedDiffError(f"Ray: {_line(error)}") from None

        return Job(ended, lambda: ray.cancel(running))

    try:
        yield start
    finally:
        ray.shutdown()


@contextmanager
def _slurm(run: Path, jobs: int, options: Mapping[str, Any]) -> Iterator[Start]:
    """A job of Slurm's, by submitit; ``cluster=local`` is submitit's own stand-in on this machine."""
    try:
        import submitit
    except ImportError:
        raise ConfigError("--on slurm needs submitit: pip install 'feddiff[slurm]'") from None
    asked = {f"slurm_{name}": value for name, value in options.items() if name != "cluster"}
    try:
        executor = submitit.AutoExecutor(run / "slurm", cluster=options.get("cluster", "slurm"))
        executor.update_parameters(**{"name": "feddiff", "timeout_min": LONGEST_MIN, **asked})
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"--slurm: {_line(error)}") from None

    def start(key: str) -> Job:
        try:
            job = executor.submit(attempt, run, key, 1)  # Slurm gives it CPUs of its own
        except (OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise FedDiffError(f"Slurm: {_line(error)}") from None

        def ended() -> int | None:
            if not job.done():
                return None
            try:
                return int(job.result())
            except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
                raise FedDiffError(f"Slurm: {_line(error)}") from None

        return Job(ended, lambda: job.cancel(check=False))

    yield start


LAUNCHERS: dict[str, Callable[[Path, int, Mapping[str, Any]], AbstractContextManager[Start]]] = {
    "local": _local,
    "ray": _ray,
    "slurm": _slurm,
}


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as values of TOML; what is none is text."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option!r:.60} is not KEY=VALUE")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            found[name] = value
    return found


def _line(error: BaseException) -> str:
    """A message on one line; of a long one how it begins and ends."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"
