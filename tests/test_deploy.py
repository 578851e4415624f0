"""What lies in deploy/: examples load, containers run as nobody special, the installer does and undoes what it says."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from feddiff.core.config import load

DEPLOY = Path(__file__).parent.parent / "deploy"
EXAMPLES = sorted((DEPLOY / "examples").glob("*.toml"))
CONTAINERS = sorted(DEPLOY.glob("Containerfile.*"))
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_federation(path: Path) -> None:
    config = load(path)
    assert config.rounds.count >= 10
    assert (config.rounds.quorum or 1) <= config.rounds.participants


def test_there_are_examples() -> None:
    assert {"ct-64", "cpu"} <= {path.stem for path in EXAMPLES}
    assert len({load(path).name for path in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.suffix)
def test_a_container_has_no_root_and_no_secret(path: Path) -> None:
    text = re.sub(r"\\\n", " ", path.read_text())
    last = text[text.rindex("\nFROM") :]
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert users
    assert all(user.isdecimal() and int(user) > 0 for user in users)
    assert last.index("USER ") < last.index("ENTRYPOINT")
    # Nothing gets into a layer but wheels, and what was made of them.
    assert re.findall(r"^(?:COPY|ADD) (.*)$", text, re.MULTILINE) == [
        "wheels /wheels",
        "--from=build /opt/feddiff /opt/feddiff",
    ]
    assert not re.search(r"^(?:ARG|ENV) .*(?:TOKEN|SECRET|PASSWORD|KEY)=", text, re.MULTILINE)
    assert "VOLUME /state" in last
    heartbeat = re.findall(r"FEDDIFF_HEARTBEAT=(\S+)", last)
    assert re.findall(r"^HEALTHCHECK .*CMD find (\S+) -mmin", last, re.MULTILINE) == heartbeat


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
def test_the_scripts_are_clean() -> None:
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def wheel(folder: Path, version: str) -> None:
    """A wheel with feddiff's name and commands, whose programs only say their version, and one that its extra wants."""
    folder.mkdir(parents=True)
    pack(
        folder,
        "feddiff",
        version,
        "Provides-Extra: medical\nRequires-Dist: reads-dicom; extra == 'medical'\n",
        {
            "feddiff_stub.py": f"def main() -> None:\n    print('{version}')\n",
            f"feddiff-{version}.dist-info/entry_points.txt": "[console_scripts]\n"
            "feddiff-silo = feddiff_stub:main\nfeddiff-federator = feddiff_stub:main\n",
        },
    )
    pack(folder, "reads_dicom", "1.0", "", {"reads_dicom.py": ""})


def pack(folder: Path, project: str, version: str, wants: str, files: dict[str, str]) -> None:
    name = f"{project}-{version}"
    files = {
        **files,
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n{wants}",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(text)}\n"
        for path, text in files.items()
    )
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{name}.dist-info/RECORD", record + f"{name}.dist-info/RECORD,,\n")


class Machine:
    """A root folder that things are installed into."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder / "root", folder
        self.root.mkdir()

    def install(self, *arguments: str, version: str = "", role: str = "silo", code: int = 0) -> str:
        command = [str(DEPLOY / f"install-{role}.sh"), "--root", str(self.root), "--prefix", "/srv/feddiff"]
        command += ["--python", sys.executable, *arguments]
        if version:
            wheels = self.folder / f"wheels-{version}"
            if not wheels.exists():
                wheel(wheels, version)
            command += ["--wheelhouse", str(wheels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def runs(self, program: str = "feddiff-silo") -> str:
        command = self.root / "srv/feddiff/current/bin" / program
        return subprocess.run([command], capture_output=True, text=True, check=True).stdout.strip()

    def tree(self) -> dict[str, object]:
        """Links, and the bytes and modes of files, outside the Python environments."""
        found: dict[str, object] = {}
        for place, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not (Path(place) / name / "pyvenv.cfg").exists()]
            for path in (Path(place) / name for name in [*files, *folders]):
                name = str(path.relative_to(self.root))
                if path.is_symlink():
                    found[name] = str(path.readlink())
                elif path.is_file():
                    found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.timeout(900)
def test_installs_upgrades_and_goes_back(machine: Machine) -> None:
    opt = machine.root / "srv/feddiff"
    (opt / "1.0.0/bin").mkdir(parents=True)
    (opt / "1.0.0/bin/half").touch()  # left by an installation that was interrupted
    first = ("--name", "hospital-a", "--data", "/srv/ct & mr", "--federator", "fed.example.org:50051")
    machine.install(*first, "--join", "fdi1_abc", "--gpu", version="1.0.0")
    assert machine.runs() == "1.0.0"
    assert list((opt / "1.0.0").rglob("reads_dicom.py")), "a silo without internet reads what scanners write"
    assert not (opt / "1.0.0/bin/half").exists()
    etc, units = machine.root / "etc/feddiff", machine.root / "usr/local/lib/systemd/system"
    settings = (etc / "silo-hospital-a.env").read_text()
    assert "\nFEDDIFF_DATA=/srv/ct & mr\n" in settings
    assert "\nFEDDIFF_FEDERATOR=fed.example.org:50051\n" in settings
    token = etc / "silo-hospital-a.token"
    assert (token.read_text(), token.stat().st_mode & 0o777) == ("fdi1_abc\n", 0o600)
    shipped = (DEPLOY / "systemd/feddiff-silo@.service").read_text()
    assert (units / "feddiff-silo@.service").read_text() == shipped.replace("/opt/feddiff/", "/srv/feddiff/")
    assert (units / "feddiff-silo@.service.d/gpu.conf").exists()
    assert str((machine.root / "usr/local/bin/feddiff-silo").readlink()) == "/srv/feddiff/current/bin/feddiff-silo"

    before = machine.tree()
    assert "is in" in machine.install(*first, version="1.0.0")
    assert machine.tree() == before  # once is as good as twice
    said = machine.install("--name", "hospital-a", "--data", "/srv/other", version="1.0.0")
    assert "its FEDDIFF_DATA is not /srv/other" in said
    assert "FEDDIFF_FEDERATOR" not in said
    assert machine.tree() == before

    (etc / "silo-hospital-a.env").write_text("FEDDIFF_OPTIONS=--verbose\n")
    machine.install("--name", "hospital-a", "--data", "/elsewhere", version="1.1.0")
    assert machine.runs() == "1.1.0"
    assert (etc / "silo-hospital-a.env").read_text() == "FEDDIFF_OPTIONS=--verbose\n"  # a person's
    assert token.exists()

    machine.install("--rollback")
    assert machine.runs() == "1.0.0"
    machine.install("--rollback")  # and forth
    assert machine.runs() == "1.1.0"

    machine.install(role="federator", version="1.1.0")  # the coordinating site beside it
    assert machine.runs("feddiff-federator") == "1.1.0"
    assert (etc / "federator.env").exists()
    assert str((opt / "previous").readlink()) == "1.0.0"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "which silo? give --name NAME"),
        (("--name", "../a"), 2, "--name ../a: a-z, 0-9"),
        (("--name", "a", "--join", "x"), 2, "a token begins with fdi1_"),
        (("--name", "a", "--wheelhouse", "/nowhere"), 1, "/nowhere holds 0 wheels of feddiff"),
        (("--name", "a", "--prefix", "opt"), 2, "a path from / was expected"),
        (("--name",), 2, "--name needs a value"),
        (("--nmae", "a"), 2, "unknown option --nmae"),
        (("--rollback",), 1, "there is no previous version"),
    ],
)
def test_says_what_is_wrong_and_installs_nothing(
    machine: Machine, arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert says in machine.install(*arguments, code=code)
    assert not machine.tree()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_the_rehearsal_ends_well() -> None:
    command = [DEPLOY / "rehearse.sh", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=DEPLOY.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("done: init, invite, join, serve, train, revoke, renew, finish")
