"""The floor and the other frameworks on the same job, run by their own harness: a folder with ``run.py``.

``run.py FRAMEWORK --tls …`` prints one JSON line; a framework is a folder beside it with a ``driver.py``, and
``floor`` is bare sockets without a framework. The harness measures as ``bench/processes.py`` does, in namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddiff.bench.network import check_allowed
from feddiff.bench.row import Row
from feddiff.core.errors import ConfigError

FLOOR = "floor"
TIMEOUT_S = 900
"""What the harness gives a framework by itself, for a whole run."""

_FIELDS = {
    "start_to_round1_s": "start_s",
    "first_round_s": "first_round_s",
    "round_s": "round_s",
    "rounds_s": "rounds_s",
    "cpu_round_s": "cpu_s",
    "cpu_round_server_s": "cpu_federator_s",
    "down_mb": "down_mb",
    "up_mb": "up_mb",
    "server_rss_mb": "federator_peak_mb",
    "client_rss_mb": "silo_peak_mb",
    "max_abs_error": "max_error",
    "load_1m": "load",
}


def frameworks(folder: Path) -> list[str]:
    """The floor first, then the frameworks that a folder holds. Raises ConfigError if it cannot be used here."""
    if not (folder / "run.py").is_file():
        raise ConfigError(f"{folder} has no run.py; PEERS=DIR names the folder of the peers' harness")
    check_allowed()
    found = sorted(driver.parent.name for driver in folder.glob("*/driver.py"))
    return sorted(found, key=lambda name: name != FLOOR)


def measure(folder: Path, framework: str, silos: int, rounds: int, parameters: int, scratch: Path | None) -> Row:
    """Run one. A failure is a row too."""
    command = [sys.executable, "run.py", framework, "--tls", "--silos", str(silos), "--rounds", str(rounds)]
    command += ["--params", str(parameters), "--timeout", str(TIMEOUT_S)]
    if scratch is not None:
        command += ["--scratch", str(scratch.resolve())]
    quiet = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # the folder is not ours to write to
    done = subprocess.run(
        command, cwd=folder, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Row(
            framework, silos, parameters, error=f"ended with {done.returncode}: {(said or ['nothing said'])[-1]}"
        )
    return row(json.loads(lines[-1]))


def row(line: Mapping[str, Any]) -> Row:
    """A line of the harness as a row; what it does not know stays None."""
    base = Row(str(line["framework"]), int(line["silos"]), int(line["params"]), network="namespaces")
    values = {ours: line[theirs] for theirs, ours in _FIELDS.items() if line.get(theirs) is not None}
    error = " ".join(str(line.get("error", "")).split())[-300:]
    if not error and line.get("exact") is False:
        error = f"its result is off by {line.get('max_abs_error')}"
    return Row(**{**vars(base), **values, "error": error})
