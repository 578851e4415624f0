"""How the transfers of a federation are called and encoded: one manifest for each, the same at both ends.

Pure functions of the rules, so that in a federation of peers a silo knows what another one sends it without asking.
"""

from __future__ import annotations

from feddiff.core.sections import CodecConfig
from feddiff.core.spool import Manifest


def update(codec: CodecConfig, round: int, silo: str, segment: str, size: int, base: int, chosen: str = "") -> Manifest:
    """By which a silo reports a segment of ``size`` values that it started from version ``base``.

    Encoded as ``chosen``; if that is empty, as the rules say.
    """
    return Manifest(
        f"up.{round}.{silo}.{segment}",
        segment,
        base if codec.delta else -1,
        round,
        chosen or codec.of(segment, "up"),
        size,
        codec.chunk_elements,
    )


def publication(codec: CodecConfig, segment: str, size: int, base: int, version: int, chosen: str = "") -> Manifest:
    """That takes a silo from version ``base`` (-1: from nothing) to ``version``; a delta encoded as ``chosen``.

    If that is empty, as the rules say.
    """
    # A snapshot must bring the published bits exactly. Sums of rounded deltas are not rounded numbers themselves,
    # so with a lossy delta codec only fp32 can carry them.
    name = codec.of(segment, "down") if base >= 0 or not codec.delta else "fp32"
    transfer = f"down.{segment}.{'x' if base < 0 else base}-{version}"
    return Manifest(transfer, segment, base, version, (base >= 0 and chosen) or name, size, codec.chunk_elements)
