"""The committed code under proto/ is what protoc makes of the contract; `make proto` writes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parent.parent / "proto"


def generated(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    contract = sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))
    out = (f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *out, *contract]
    done = subprocess.run(command, cwd=PROTO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fresh, committed = generated(tmp_path), generated(PROTO)
    assert len(fresh) == 3 * len(contract) > 0
    assert fresh.keys() == committed.keys()
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, "run `make proto`"
