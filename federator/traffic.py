"""Counting every byte that crosses, so that the ledger's totals are the network's own.

Two sources meet here. Message sizes with their framing (``core/wire.framed``) say which segment a byte served; the
kernel's per-connection counters (TCP_INFO, Linux) say how many really crossed: TLS handshakes, HTTP/2 control frames,
heartbeats and TCP retransmissions included. The difference goes to the silo's overhead row. Where the kernel cannot be
asked, the framing alone counts and the row is marked as estimated. It is asked twice a second: a connection that comes
and goes in between (an enrolment's two, 10 kB together) is not seen.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from feddiff.core.ranges import Encoded
from feddiff.core.transfer import Chunk, Commit
from feddiff.federator.ledger import OVERHEAD, Direction, Entry, Ledger

_TCP_INFO = 11
# struct tcp_info of linux/tcp.h: bytes_received at 128, bytes_sent (retransmissions included) at 200, and at 168
# busy_time: microseconds in which something was on its way and not acknowledged yet.
_RECEIVED, _BUSY, _SENT = 128, 168, 200
Connection = tuple[str, int]
Counts = tuple[int, int, int]
"""Bytes sent, bytes received, microseconds busy with sending."""
Key = tuple[int, str, str, Direction]


def kernel_counts(port: int) -> dict[Connection, Counts] | None:
    """The counts of this process's connections on a local port, by peer; None if not to be had."""
    found: dict[Connection, Counts] = {}
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return None
    for entry in folder.iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            asked = _ask(int(entry.name), port)
        except OSError:
            continue  # closed meanwhile, or a listening socket
        if asked is None:
            continue
        peer, info = asked
        if len(info) < _SENT + 8:
            return None
        sent, received, busy = (struct.unpack_from("=Q", info, place)[0] for place in (_SENT, _RECEIVED, _BUSY))
        found[peer] = (sent, received, busy)
    return found


def _ask(descriptor: int, port: int) -> tuple[Connection, bytes] | None:
    """Peer and TCP_INFO of a descriptor, if it is a connection of this local port. Raises OSError.

    The descriptor is gRPC's and stays so: never duplicated (its epoll set would outlive its close, and crash), never
    closed by us. If it is closed and used anew between the questions, an answer is wrong once and nothing else.
    """
    borrowed = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor)
    try:
        local = borrowed.getsockname()
        if not isinstance(local, tuple) or len(local) < 2 or local[1] != port:
            return None
        peer = borrowed.getpeername()
        return (_plain(peer[0]), peer[1]), borrowed.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
    finally:
        borrowed.detach()


def _plain(address: str) -> str:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def peer_connection(peer: str) -> Connection | None:
    """The address in gRPC's ``context.peer()``, e.g. ``ipv4:127.0.0.1:4711`` or ``ipv6:%5B::1%5D:4711``."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return _plain(host.strip("[]")), int(port)


class Traffic:
    """Gathers in memory; ``flush`` moves it to the ledger, as does ``keep`` before anything is committed."""

    def __init__(self, ledger: Ledger, port: int, round_now: Callable[[], int]) -> None:
        self._ledger, self._port, self._round_now = ledger, port, round_now
        self._lock = threading.Lock()
        self._rows: dict[Key, Entry] = {}
        self._owners: dict[Connection, str] = {}
        self._seen: dict[Connection, Counts] = {}
        self._told: dict[tuple[str, Direction], int] = defaultdict(int)
        self._owed: dict[str, int] = defaultdict(int)
        """Bytes of downlink transfers that gRPC has taken and the kernel has not sent yet, by silo."""
        self._marks: dict[tuple[str, str], int] = {}
        self._kernel = kernel_counts(port) is not None

    def owned(self, peer: str, silo: str) -> None:
        """This connection is the silo's."""
        connection = peer_connection(peer)
        if connection is not None:
            with self._lock:
                self._owners[connection] = silo

    def add(self, entry: Entry) -> None:
        """Count bytes, in a segment's row or as overhead; ``wire`` holds the framed size."""
        with self._lock:
            key = (entry.round, entry.silo, entry.segment, entry.direction)
            if entry.segment != OVERHEAD:
                self._told[entry.silo, entry.direction] += entry.wire
                self._sum(key, entry)
            elif not self._kernel:
                self._sum(key, replace(entry, estimated=True))

    def _sum(self, key: Key, entry: Entry) -> None:
        old = self._rows.get(key)
        if old is None:
            self._rows[key] = entry
            return
        self._rows[key] = replace(
            old,
            parameters=old.parameters + entry.parameters,
            raw=old.raw + entry.raw,
            encoded=old.encoded + entry.encoded,
            wire=old.wire + entry.wire,
            retransmitted=old.retransmitted + entry.retransmitted,
            seconds=old.seconds + entry.seconds,
            estimated=old.estimated or entry.estimated,
        )

    def sent(self, round: int, silo: str, transfer: Encoded, part: Chunk | Commit, wire: int, seconds: float) -> None:
        """Count one part of a downlink transfer; its commit makes the whole count, once for each silo."""
        manifest = transfer.manifest
        # What gRPC takes in no time still takes its time on the link: the kernel knows better.
        entry = Entry(round, silo, manifest.segment, "down", wire=wire, seconds=0.0 if self._kernel else seconds)
        if isinstance(part, Chunk):
            mark = self._marks.setdefault(
                (silo, manifest.transfer),
                manifest.chunks if self._ledger.delivered(silo, manifest.transfer) else 0,
            )
            if part.index < mark:
                entry = replace(entry, retransmitted=len(part.payload))
            self._marks[silo, manifest.transfer] = max(mark, part.index + 1)
        else:
            whole = Entry(
                round,
                silo,
                manifest.segment,
                "down",
                parameters=manifest.parameters,
                raw=manifest.raw,
                encoded=transfer.payload_bytes,
            )
            self.keep()
            self._ledger.deliver(manifest.transfer, whole)
            self._marks.pop((silo, manifest.transfer), None)
        self.add(entry)

    def flush(self) -> None:
        """Ask the kernel, settle the overhead, write to the ledger."""
        with self._lock:
            if self._kernel:
                self._settle(kernel_counts(self._port) or {})
        self.keep()

    def keep(self) -> None:
        """Write what is known to the ledger: what a crash leaves committed must not seem to have cost nothing."""
        with self._lock:
            if self._rows:
                self._ledger.add(*self._rows.values())
                self._rows = {}

    def _settle(self, counts: dict[Connection, Counts]) -> None:
        round_now = self._round_now()
        crossed: dict[tuple[str, Direction], int] = defaultdict(int)
        busy: dict[str, int] = defaultdict(int)
        for connection, now in counts.items():
            before = self._seen.get(connection, (0, 0, 0))
            if any(old > new for old, new in zip(before, now, strict=True)):
                before = (0, 0, 0)  # the same address and port, a new connection
            silo = self._owners.get(connection, "")
            crossed[silo, "down"] += now[0] - before[0]
            crossed[silo, "up"] += now[1] - before[1]
            busy[silo] += now[2] - before[2]
            self._seen[connection] = now
        ended = set()
        for gone in self._seen.keys() - counts.keys():
            del self._seen[gone]
            ended.add(self._owners.pop(gone, ""))
        for silo, direction in crossed.keys() | self._told.keys():
            # Signed: bytes told but still in a send buffer, or received but not told yet, are put right next time.
            told = self._told.pop((silo, direction), 0)
            wire = crossed[silo, direction] - told
            seconds = 0.0
            if direction == "down":
                if told or self._owed[silo]:  # not while answers to small questions are all that is on its way
                    seconds = busy[silo] / 1e6
                self._owed[silo] = max(self._owed[silo] - wire, 0)
            if silo in ended:
                wire = max(wire, 0)  # what the kernel counted last on a connection that ended is lost; framing stands
                self._owed[silo] = 0
            if wire or seconds:
                key: Key = (round_now, silo, OVERHEAD, direction)
                self._sum(key, Entry(round_now, silo, OVERHEAD, direction, wire=wire, seconds=seconds))
