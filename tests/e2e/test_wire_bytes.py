"""The ledger's bytes are the network's: compared with what the kernel counts in a network of their own."""

from __future__ import annotations

import json
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


def measure(folder: Path) -> dict[str, int]:
    """Run a federation and count both ways."""
    stage = Stage(folder)
    try:
        server = stage.found(rounds=3, scale=100, chunk=1 << 14).serve()
        for name in ("hospital-a", "hospital-b"):
            stage.hospital(name).start()
        assert server.wait() == 0
        total, packets = loopback()
        return {"kernel": total - HEADERS * packets, "ledger": sum(entry["wire"] for entry in stage.ledger())}
    finally:
        print(stage.close(), file=sys.stderr)


def test_the_ledger_counts_what_the_network_carries() -> None:
    alone = ["unshare", "--net", "--map-root-user"]
    try:
        allowed = subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no {error.filename} here")
    if allowed.returncode:
        pytest.skip(f"no network of its own here: {allowed.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        script = f"ip link set lo up && exec {sys.executable} {__file__} {folder}"
        done = subprocess.run([*alone, "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    print(done.stderr)
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["kernel"] > 10_000_000
    assert found["ledger"] == pytest.approx(found["kernel"], rel=0.01)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
