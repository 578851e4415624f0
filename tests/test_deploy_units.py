"""The unit files: systemd reads them, rates their sandbox, and what they name exists in this feddiff."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from feddiff.core import errors
from feddiff.federator import cli as federator
from feddiff.silo import cli as silo
from feddiff.silo.enroll import CREDENTIAL

SYSTEMD = Path(__file__).parent.parent / "deploy" / "systemd"
UNITS = {"feddiff-silo@.service": silo.parser, "feddiff-federator.service": federator.parser}
NEWER = {"RestartSteps", "RestartMaxDelaySec"}
"""Keys of systemd 254; an older one ignores them, and restarts after RestartSec each time."""
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed here")
each_unit = pytest.mark.parametrize("unit", UNITS)


def settings(unit: str, key: str) -> list[str]:
    """All values of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    command = [ANALYZE, *map(str, arguments), "--no-pager"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
@each_unit
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    """As installed, but that the program is one that is here: it must be executable."""
    text = (SYSTEMD / unit).read_text()
    program = settings(unit, "ExecStart")[0].split()[0]
    place = tmp_path / unit.replace("@", "@hospital-a")
    place.write_text(text.replace(program, shutil.which("true") or "/bin/true"))
    done = analyze("verify", "--man=no", place)
    told = [line for line in done.stderr.splitlines() if unit.split(".")[0].rstrip("@") in line]
    unknown = [line for line in told if not any(f"'{key}'" in line and "Unknown key" in line for key in NEWER)]
    assert not unknown
    assert done.returncode == 0


@needs_systemd
@each_unit
def test_the_sandbox_is_tight(unit: str, tmp_path: Path) -> None:
    done = analyze("security", "--offline=yes", "--threshold=20", SYSTEMD / unit)
    assert done.returncode == 0, done.stdout
    (rating,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert float(rating) < 2.0


@needs_systemd
def test_a_silo_with_a_gpu_is_tight_enough(tmp_path: Path) -> None:
    both = (SYSTEMD / "feddiff-silo@.service").read_text() + (SYSTEMD / "gpu.conf").read_text()
    (tmp_path / "feddiff-silo@a.service").write_text(both)
    done = analyze("security", "--offline=yes", "--threshold=20", tmp_path / "feddiff-silo@a.service")
    assert done.returncode == 0, done.stdout


@each_unit
def test_starts_what_there_is_to_start(unit: str) -> None:
    """The command line of the unit, with the variables of its env file, is one that this feddiff takes."""
    env = SYSTEMD / ("silo.env" if "silo" in unit else "federator.env")
    variables = dict(line.split("=", 1) for line in env.read_text().splitlines() if line and line[0] != "#")
    (command,) = settings(unit, "ExecStart")
    for name, value in variables.items():
        command = command.replace(f"${{{name}}}", shlex.quote(value)).replace(f"${name}", value)
    program, *arguments = shlex.split(command.replace("%S", "/var/lib"))
    assert "$" not in command
    parser = UNITS[unit]()
    assert Path(program).name == parser.prog
    assert program.startswith("/opt/feddiff/current/bin/")
    parsed = parser.parse_args(arguments)
    assert parsed.command in (None, "serve")


@pytest.mark.parametrize("env", ["silo.env", "federator.env"])
def test_every_option_that_an_env_file_tells_of_exists(env: str) -> None:
    parser = silo.parser() if env == "silo.env" else served(federator.parser())
    told = set(re.findall(r"--[a-z][a-z-]*", re.sub(r"`[^`]*`", "", (SYSTEMD / env).read_text())))
    assert told
    assert told <= {option for action in parser._actions for option in action.option_strings}


def served(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices["serve"]
    return found


@each_unit
def test_stops_only_where_a_person_must_act(unit: str) -> None:
    (codes,) = settings(unit, "RestartPreventExitStatus")
    stopping = {int(code) for code in codes.split()}
    for person in (errors.ConfigError, errors.DataError, errors.IdentityError, errors.NewerState):
        assert person.exit_code in stopping
    assert 2 in stopping  # argparse
    for passing in (errors.StoreError, errors.FederatorUnavailable, errors.TransferError, errors.FedDiffError):
        assert passing.exit_code not in stopping
    assert settings(unit, "Restart") == ["on-failure"]  # 0 is a federation that is finished


def test_hands_over_the_invitation_as_a_credential() -> None:
    unit = "feddiff-silo@.service"
    (loaded,) = settings(unit, "LoadCredential")
    assert loaded == f"{CREDENTIAL}:/etc/feddiff/silo-%i.token"
    assert settings(unit, "SetCredential") == [f"{CREDENTIAL}:\\n"]  # without the file there is none, and no error


@each_unit
def test_no_dump_of_memory_is_kept(unit: str) -> None:
    assert settings(unit, "LimitCORE") == ["0"]
