"""The wheel: made of tracked files, complete, nothing generic at its top, and usable from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "core": "feddiff/core",
    "federator": "feddiff/federator",
    "silo": "feddiff/silo",
    "bench": "feddiff/bench",
    "proto/feddiff/v1": "feddiff/v1",
}
COMMANDS = ("feddiff-federator", "feddiff-silo", "feddiff-bench")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words, cwd=cwd)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows or would add, and nothing else."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("tracked")
    git = ("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, run(*git, cwd=ROOT).split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tracked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ".", cwd=tracked)
    (path,) = folder.glob("*.whl")
    return path


def test_holds_every_source_and_the_contract(wheel: Path, tracked: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{inside}/{path.relative_to(tracked / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (tracked / folder).rglob("*")
        if path.suffix in {".py", ".pyi", ".proto", ".toml", ".html", ".css", ".js", ".svg"}
    }
    assert {"feddiff/federator/static/index.html", "feddiff/federator/static/page.js"} <= wanted
    assert {"feddiff/v1/federation.proto", "feddiff/v1/federation_pb2.py", "feddiff/core/config.py"} <= wanted
    assert not wanted - held


def test_puts_nothing_generic_into_site_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"feddiff", f"{'-'.join(wheel.stem.split('-')[:2])}.dist-info"}


def test_carries_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", site, wheel, cwd=elsewhere)
    loaded = run(
        sys.executable,
        "-c",
        "import feddiff.core as core; print(core.__file__)",
        cwd=elsewhere,
        PYTHONPATH=str(site),
    )
    assert Path(loaded.strip()).is_relative_to(site)
    for command in COMMANDS:
        text = run(sys.executable, site / "bin" / command, "--help", cwd=elsewhere, PYTHONPATH=str(site))
        assert command in text
