"""The ledger's bytes are the network's: compared with what the kernel counts in a network of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from stage import Stage

HEADERS = 52
"""IPv4 20, TCP 20 and its timestamps 12 bytes; the loopback device counts no Ethernet header."""


def loopback() -> tuple[int, int]:
    """(bytes, packets) that the loopback device of this network has carried."""
    line = next(line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    fields = line.partition(":")[2].split()
    return int(fields[0]), int(fields[1])


def measure(folder: Path, scale: int) -> dict[str, int]:
    """Run a federation and count both ways: everything, and without the connections that enrol."""
    stage = Stage(folder)
    try:
        server = stage.found(rounds=3, scale=scale, chunk=1 << 14).serve()
        for name in ("hospital-a", "hospital-b"):
            stage.enrol(name)
        enrolled, before = loopback()
        for name in ("hospital-a", "hospital-b"):
            stage.hospital(name).start()
        assert server.wait() == 0
        total, packets = loopback()
        entries = stage.ledger()
        return {
            "kernel": total - HEADERS * packets,
            "ledger": sum(entry["wire"] for entry in entries),
            "kernel, enrolled": total - enrolled - HEADERS * (packets - before),
            "ledger, enrolled": sum(entry["wire"] for entry in entries if entry["silo"]),
        }
    finally:
        print(stage.close(), file=sys.stderr)


@pytest.mark.parametrize("scale", [1, 100], ids=["mostly overhead", "mostly weights"])
def test_the_ledger_counts_what_the_network_carries(scale: int) -> None:
    alone = ["unshare", "--net", "--map-root-user"]
    try:
        allowed = subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no {error.filename} here")
    if allowed.returncode:
        pytest.skip(f"no network of its own here: {allowed.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        script = f"ip link set lo up && exec {sys.executable} {__file__} {folder} {scale}"
        command = [*alone, "sh", "-c", script]
        paths = os.pathsep.join(sys.path)  # where pytest finds what the tests share
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": paths}
        )
    print(done.stderr)
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["kernel"] > 200_000 * scale
    # Enrolment's connections are short: the ledger may miss its 10 kB or so for each silo.
    assert found["ledger, enrolled"] == pytest.approx(found["kernel, enrolled"], rel=0.01)
    assert found["ledger"] == pytest.approx(found["kernel"], rel=0.01, abs=25_000)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
