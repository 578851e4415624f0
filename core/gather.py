"""From ranges of a version to the whole: what silos fetch from several owners becomes one file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.spool import Transfer
from feddiff.core.store import WeightsReader, WeightsWriter


def gather(places: Sequence[Path], segment: str, size: int, target: Path, base: Path | None = None) -> bool:
    """Decode committed transfers of a segment's ranges, in order, into a weights file; False if they leave gaps.

    ``size``: values in the segment; ``base``: the version that differences start from. Raises StoreError for what is
    damaged, TransferError or ProtocolError for what cannot be decoded.
    """
    with ExitStack() as files:
        pieces = [files.enter_context(closing(Transfer(place))) for place in places]
        end = 0
        for each in pieces:
            if each.manifest.start != end:
                return False
            end += each.manifest.elements
        if end != size or not pieces:
            return False
        reader = None if base is None else files.enter_context(WeightsReader(base))
        version = {"version": str(pieces[0].manifest.version)}
        writer = files.enter_context(WeightsWriter(target, {segment: size}, version))
        for each in pieces:
            manifest = each.manifest
            for index, payload, _ in each.chunks():
                start, count = manifest.start + index * manifest.chunk_elements, manifest.count(index)
                previous = None if manifest.absolute or reader is None else reader.read(segment, start, count)
                writer.write(segment, start, CODECS[manifest.codec].decode(payload, count, previous))
        writer.commit()
    return True
