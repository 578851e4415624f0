"""Places for the processes of a benchmark: this machine's loopback, or one network namespace for each.

In namespaces joined by a bridge our processes meet what the common job's frameworks meet. They need root and ``ip``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from feddiff.core.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """Where a process runs: its IPv4 address, and the command that brings another command there."""

    address: str
    prefix: tuple[str, ...] = ()


LOOPBACK = Place("127.0.0.1")


def check_allowed() -> None:
    """Raises ConfigError where network namespaces cannot be made."""
    missing = [
        what for what, found in (("root", os.geteuid() == 0), ("ip (iproute2)", shutil.which("ip"))) if not found
    ]
    if missing:
        raise ConfigError(f"network namespaces need {' and '.join(missing)}")


def ip(*arguments: str) -> None:
    """Run ``ip``. Raises ConfigError with its own words."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")


def _shape(namespace: str, device: str, rate: float) -> None:
    """Let a device send no faster than this. Raises ConfigError."""
    bucket = ("tbf", "rate", f"{rate:.0f}bit", "burst", "128kb", "latency", "100ms")
    command = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *bucket]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"this kernel cannot shape a line: {' '.join(done.stderr.split())}")


def place(namespace: str, address: str) -> Place:
    return Place(address, ("ip", "netns", "exec", namespace))


class Network:
    """A namespace for each of ``count`` sites and a bridge between them; gone when the block ends.

    ``rate``: of each site's line, bits a second in each direction, by the kernel's token bucket; 0: as it is.
    """

    def __init__(self, count: int, rate: float = 0.0) -> None:
        check_allowed()
        self._rate = rate
        self._switch = f"feddiff{os.getpid()}-switch"
        self._sites = [f"feddiff{os.getpid()}-{number}" for number in range(count)]

    def __enter__(self) -> Sequence[Place]:
        try:
            return self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _build(self) -> list[Place]:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        places = []
        for number, site in enumerate(self._sites):
            address, port = f"10.78.{number // 250}.{number % 250 + 1}", f"p{number}"
            ip("netns", "add", site)
            ip("-n", site, "link", "set", "lo", "up")
            pair = ("type", "veth", "peer", "name", "eth0", "netns", site)
            ip("-n", self._switch, "link", "add", port, *pair)
            ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
            ip("-n", site, "addr", "add", f"{address}/16", "dev", "eth0")
            ip("-n", site, "link", "set", "eth0", "up")
            if self._rate:
                _shape(site, "eth0", self._rate)
                _shape(self._switch, port, self._rate)
            places.append(place(site, address))
        return places

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for namespace in (*self._sites, self._switch):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
