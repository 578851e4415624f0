"""Error feedback: what one round's encoding lost is added to the next one's difference.

    target_t = values_t + lost_{t-1}         sent = decode(encode(target_t))         lost_t = target_t - sent

(Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847.) Kept by whoever encodes, a file for each segment,
written before the transfer that it belongs to is committed, so an encoding that a crash interrupts is repeated with the
same carry and gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from feddiff.core.codec import Codec
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, WeightsWriter


class Feedback:
    """One segment's loss around one encoding. ``before``: the file of the encoding before, if there is one."""

    def __init__(self, before: Path | None, after: Path, segment: str, size: int) -> None:
        self._segment = segment
        self._before = WeightsReader(before) if before is not None and before.exists() else None
        self._after = WeightsWriter(after, {segment: size}, digested=False)

    def carry(self, start: int, values: F32) -> F32:
        """``values`` (from value ``start`` of the segment on) plus what was lost there the last time."""
        return values if self._before is None else values + self._before.read(self._segment, start, values.size)

    def keep(self, start: int, lost: F32) -> None:
        """This is lost now."""
        self._after.write(self._segment, start, lost)

    def commit(self) -> None:
        """Make it count for the next encoding."""
        self._after.commit()

    def close(self) -> None:
        """Forget what was not committed."""
        self._after.abandon()
        if self._before is not None:
            self._before.close()


def encode(codec: Codec, values: F32, base: F32 | None, start: int, feedback: Feedback | None) -> tuple[bytes, F32]:
    """One chunk's payload and what the other end will decode of it. Raises NotFinite."""
    target = values if feedback is None else feedback.carry(start, values)
    payload, decoded = codec.settle(target, base)
    if feedback is not None:
        feedback.keep(start, target - decoded)
    return payload, decoded
