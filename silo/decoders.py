"""Files decoded by several processes at once (silo/decoder.py), each of which may die of one without more harm.

Between a silo's collection, which says what is to be decoded, and the decoders. Every task has its time; whoever takes
longer is killed, and another one goes on with the next file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from feddiff.core import console
from feddiff.silo.decoder import HEADER, MAX_PIXELS_BYTES
from feddiff.silo.slices import Decoding

MOST = 16
"""Processes; beyond that the disk is what is waited for."""
PATIENCE_S, BYTES_PER_S = 60.0, 1 << 20
"""Time for a file, and for each so many bytes of it a second more."""
MAX_HEADER_BYTES = 1 << 28
T = TypeVar("T")
R = TypeVar("R")


class Lost(Exception):
    """A decoder that gave no answer; the text is the reason to leave the file out."""


@dataclass(frozen=True)
class Answer:
    """What a decoder found; pixels of shape (images, C, S, S)."""

    facts: dict[str, Any]
    pixels: bytes = b""


class Decoders:
    """Up to ``count`` processes that decode one way; they are there when they are needed first."""

    def __init__(self, how: Decoding, key: bytes, count: int | None = None, patience: float = PATIENCE_S) -> None:
        self._count = count or min(console.cpus(), MOST)
        self._first = json.dumps({"how": how.table(), "key": key.hex()}).encode() + b"\n"
        self._patience = patience
        self._threads = ThreadPoolExecutor(self._count, "decoding")
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all: set[subprocess.Popen[bytes]] = set()

    def map(self, do: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """``do`` of each task, in their order, some at a time and not too far ahead of whoever takes the results."""
        ahead: deque[Future[R]] = deque()
        for task in tasks:
            ahead.append(self._threads.submit(do, task))
            if len(ahead) >= 4 * self._count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def members(self, path: Path) -> Answer:
        """What is in a zip file."""
        return self._ask({"path": str(path)}, _bytes(path))

    def decode(self, path: Path, member: str, type: str) -> Answer:
        """A file, or a member of a zip file, decoded, or with the reason why not."""
        return self._ask({"path": str(path), "member": member, "type": type}, _bytes(path))

    def _ask(self, task: dict[str, str], size: int) -> Answer:
        try:
            decoder = self._idle.get_nowait()
        except queue.Empty:
            decoder = self._started()
        try:
            answer = self._answer(decoder, task, time.monotonic() + self._patience + size / BYTES_PER_S)
        except Lost as error:
            self._end(decoder)
            return Answer({"reason": str(error), "lost": True})
        self._idle.put(decoder)
        return answer

    def _answer(self, decoder: subprocess.Popen[bytes], task: dict[str, str], until: float) -> Answer:
        assert decoder.stdin is not None
        assert decoder.stdout is not None
        try:
            decoder.stdin.write(json.dumps(task).encode() + b"\n")
            decoder.stdin.flush()
        except OSError:
            raise Lost("crashed what decodes it") from None
        source = decoder.stdout.fileno()
        header, pixels = HEADER.unpack(_read(source, HEADER.size, until))
        if header > MAX_HEADER_BYTES or pixels > MAX_PIXELS_BYTES + (1 << 24):
            raise Lost("crashed what decodes it")
        facts = json.loads(_read(source, header, until))
        return Answer(facts, bytes(_read(source, pixels, until)))

    def _started(self) -> subprocess.Popen[bytes]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        decoder = subprocess.Popen(
            [sys.executable, "-m", "feddiff.silo.decoder", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries say may quote a file
            env={**os.environ, **threads},
            process_group=0,
        )
        self._all.add(decoder)
        assert decoder.stdin is not None
        with contextlib.suppress(OSError):
            decoder.stdin.write(self._first)
        return decoder

    def _end(self, decoder: subprocess.Popen[bytes]) -> None:
        decoder.kill()
        decoder.wait()
        for stream in (decoder.stdin, decoder.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        self._all.discard(decoder)

    def close(self) -> None:
        """End all; tasks that are under way give no result."""
        for decoder in list(self._all):
            decoder.kill()  # and whoever waits for its answer goes on
        self._threads.shutdown(cancel_futures=True)
        for decoder in list(self._all):
            self._end(decoder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(source: int, count: int, until: float) -> bytearray:
    """So many bytes. Raises Lost if they do not come in time, or never will."""
    found = bytearray()
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while len(found) < count:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise Lost("takes too long to decode")
        some = os.read(source, min(count - len(found), 1 << 20))
        if not some:
            raise Lost("crashed what decodes it")
        found += some
    return found


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
