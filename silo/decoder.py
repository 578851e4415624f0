"""A process that decodes files, one after another, for a silo that must not die of one (silo/decoders.py starts it).

``python -m feddiff.silo.decoder PARENT``. Parsers of images are large and old, and a file may come from anywhere: what
crashes, hangs or eats memory does so here. On stdin a line of JSON for each task, the first one the way of decoding; on
stdout for each a header and pixels. It can write no file, dumps no core, and what libraries print goes nowhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from feddiff.core import console
from feddiff.core.errors import DataError
from feddiff.core.images import fit, kind, pictures, quiet
from feddiff.silo import dicom, filetypes, nifti
from feddiff.silo.archive import Archive
from feddiff.silo.slices import Decoded, Decoding, Slice

HEADER = struct.Struct("<IQ")
"""Bytes of JSON, bytes of pixels."""
MAX_FILE_BYTES = 1 << 31
MAX_SLICES, MAX_PIXELS_BYTES = 1 << 20, 1 << 31
"""Of one file, at the model's size."""
MEMORY_BYTES = 8 << 30


class Decoder:
    """Decodes one way."""

    def __init__(self, how: Decoding, key: bytes) -> None:
        self._how, self._key = how, key
        self._archive: Archive | None = None

    def members(self, path: Path) -> list[list[Any]]:
        """The images in a zip file: name, type, bytes, CRC, why it is left out."""
        return [[each.name, each.type, each.size, each.crc, each.reason] for each in self._opened(path).members()]

    def decode(self, path: Path, member: str, type: str) -> tuple[dict[str, Any], bytes]:
        """(facts, pixels) of a file, or of a member of a zip file; its facts say the reason if it is left out."""
        facts: dict[str, Any] = {"digest": "", "reason": "", "images": 0, "empty": 0}
        pixels = bytearray()
        try:
            content = self._opened(path).read(member) if member else _content(path)
            facts["digest"] = hashlib.sha256(content).hexdigest()
            found = self._found(content, type, PurePosixPath(member or path.name).suffix)
            facts |= {"kind": found.kind, "label": found.label, "position": found.position}
            facts |= {"series": found.series, "study": found.study}
            for each in found.slices:
                if each.content < self._how.content:
                    facts["empty"] += 1
                    continue
                pixels += _fitted(each, self._how)
                facts["images"] += 1
                if facts["images"] > MAX_SLICES or len(pixels) > MAX_PIXELS_BYTES:
                    raise DataError("holds too many images")
            if not facts["images"] and not facts["empty"]:
                raise DataError("holds no picture")
        except DataError as error:
            facts |= {"reason": str(error), "images": 0, "empty": 0}
        except Exception as error:  # parsers raise anything when the bytes are hostile, and quote them
            facts |= {"reason": f"cannot be read ({type_of(error)})", "images": 0, "empty": 0}
        return facts, bytes(pixels) if facts["images"] else b""

    def _found(self, content: bytes, type: str, suffix: str) -> Decoded:
        if type == filetypes.DICOM:
            return dicom.decode(content, self._how, self._key)
        if type == filetypes.NIFTI:
            return nifti.decode(content, self._how)
        return Decoded(kind(suffix), _plain(content, suffix))

    def _opened(self, path: Path) -> Archive:
        """The archive, which stays open for what is asked next."""
        if self._archive is None or self._archive.path != path:
            if self._archive is not None:
                self._archive.close()
            self._archive = None
            self._archive = Archive(path)
        return self._archive


def type_of(error: Exception) -> str:
    """An error's name, if it is one of a class of its own, never its text."""
    return error.__class__.__name__


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise DataError("is too large")
    return content


def _plain(content: bytes, suffix: str) -> Iterator[Slice]:
    import numpy as np

    for picture in pictures(io.BytesIO(content), suffix):
        yield Slice(np.asarray(picture))


def _fitted(each: Slice, how: Decoding) -> bytes:
    from PIL import Image

    return fit(Image.fromarray(each.pixels), how.size, how.channels, each.aspect)


def serve(tasks: BinaryIO, replies: BinaryIO) -> None:
    """Do tasks until there are no more."""
    first = json.loads(tasks.readline())
    decoder = Decoder(Decoding.of(first["how"]), bytes.fromhex(first["key"]))
    while line := tasks.readline():
        task, pixels = json.loads(line), b""
        path = Path(task["path"])
        if "type" in task:
            told, pixels = decoder.decode(path, task["member"], task["type"])
        else:
            try:
                told = {"members": decoder.members(path), "reason": ""}
            except DataError as error:
                told = {"reason": str(error)}
            except Exception as error:
                told = {"reason": f"cannot be read ({type_of(error)})"}
        header = json.dumps(told).encode()
        replies.write(HEADER.pack(len(header), len(pixels)) + header)
        replies.write(pixels)
        replies.flush()


def main(arguments: list[str]) -> int:
    console.tie(int(arguments[0]))
    # A core dump would be a patient's file on a disk.
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, MEMORY_BYTES),
    ):
        resource.setrlimit(limit, (most, most))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nothing, stream.fileno())
    with quiet():
        serve(sys.stdin.buffer, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
