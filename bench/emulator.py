"""A long, slow, lossy line in user space, for kernels without netem: two TUN devices and what lies between them.

``python -m feddiff.bench.emulator NEAR FAR DELAY_S LOSS RATE QUEUE`` makes both devices, says ``ready`` and then passes
packets on, in each direction: lost with probability LOSS, sent one after the other at RATE bits a second, dropped
where more than QUEUE bytes wait, and DELAY_S under way. Fast enough for some hundred Mbit/s.
"""

from __future__ import annotations

import collections
import fcntl
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET = 2048
_BURST = 64
"""Packets that are read before those that are due go out."""


class Lane:
    """One direction."""

    def __init__(self, source: int, target: int, delay_s: float, loss: float, rate: float, queue: int) -> None:
        self.source, self._target = source, target
        self._delay, self._loss, self._rate, self._queue = delay_s, loss, rate / 8, queue
        self._under_way: collections.deque[tuple[float, bytes]] = collections.deque()
        self._free = 0.0
        """When the line has sent everything that waits."""
        self._chance = random.Random(source)

    def take(self) -> None:
        """Read what has come."""
        for _ in range(_BURST):
            try:
                packet = os.read(self.source, _PACKET)
            except BlockingIOError:
                return
            now = time.monotonic()
            begins = max(now, self._free)
            if self._chance.random() < self._loss or (begins - now) * self._rate > self._queue:
                continue
            self._free = begins + len(packet) / self._rate
            self._under_way.append((self._free + self._delay, packet))

    def give(self) -> float:
        """Hand over what has arrived; returns the time until the next does, in seconds."""
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            os.write(self._target, self._under_way.popleft()[1])
        return self._under_way[0][0] - now if self._under_way else 1.0


def _device(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return handle


def main() -> None:
    near, far = _device(sys.argv[1]), _device(sys.argv[2])
    delay_s, loss, rate, queue = float(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
    lanes = [Lane(*ends, delay_s, loss, rate, queue) for ends in ((near, far), (far, near))]
    print("ready", flush=True)
    while True:
        wait = max(0.0, min(lane.give() for lane in lanes))
        ready, _, _ = select.select([near, far], [], [], wait)
        for lane in lanes:
            if lane.source in ready:
                lane.take()


if __name__ == "__main__":
    main()
