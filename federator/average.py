"""The moving average of the global model: what is drawn and exported, where the rules want one (``outer.ema``).

    a_1 = w_1        a_v = d a_{v-1} + (1 - d) w_v,  d = min(decay, v / (9 + v))

Rounds are few, so the decay grows with the versions, as that of diffusers' EMAModel with its steps, or the initial
weights would never leave the average. A file for each version of a segment, beside the version: made of two
files that are there, with the same bits whenever it is made again. Silos know nothing of it: they train from w_v.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feddiff.core.store import WeightsReader, WeightsWriter


def decay(most: float, version: int) -> float:
    """Of the average on its way to a version, from 1: 0 for the first, then 2/11, 3/12, 4/13 ... up to ``most``.

    (1 + step) / (10 + step) with step = version - 1; so diffusers' ``EMAModel.get_decay``.
    """
    return min(most, version / (9 + version)) if version > 1 else 0.0


def average(
    segment: str, version: int, most: float, before: Path, published: Path, after: Path, chunk_elements: int
) -> None:
    """Write the average of a segment's versions up to this one; ``before``: that up to the one before.

    Raises StoreError for a file that is missing or damaged.
    """
    kept = decay(most, version)
    with WeightsReader(before) as old, WeightsReader(published) as new:
        size = new.size(segment)
        with WeightsWriter(after, {segment: size}, {"version": str(version)}) as writer:
            for start in range(0, size, chunk_elements):
                count = min(chunk_elements, size - start)
                mean = kept * old.read(segment, start, count).astype(np.float64)
                mean += (1 - kept) * new.read(segment, start, count)
                writer.write(segment, start, mean.astype(np.float32))
            writer.commit()
