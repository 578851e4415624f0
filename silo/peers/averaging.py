"""One range averaged as the federator would: by its owner, and of single chunks again by whoever checks that one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig
from feddiff.core.feedback import Feedback
from feddiff.core.fold import Contribution, fold
from feddiff.core.outer import Outer
from feddiff.core.ranges import Encoded
from feddiff.core.spool import Manifest, Spool
from feddiff.core.store import WeightsReader


def loses(config: FederationConfig, result: Manifest) -> bool:
    """Whether what the encoding of a result loses is carried to the next."""
    return config.codec.feedback and not result.absolute and not CODECS[result.codec].lossless


def average(
    config: FederationConfig,
    result: Manifest,
    contributions: Sequence[Contribution],
    base: WeightsReader,
    folder: Path,
    before: Path | None,
    after: Path,
) -> None:
    """Write the transfer of a range's new version into ``folder``, and what encoding it lost to ``after``.

    ``base`` is of the whole segment; ``before``: what was lost in the range the last time. Raises BadUpdate.
    """
    with ExitStack() as files:
        spool = files.enter_context(closing(Spool(result.path(folder), result, fresh=True, durable=False)))
        nowhere = folder / "moments"  # the rules of a federation of peers have no optimizer with moments
        outer = files.enter_context(closing(Outer(config.outer, nowhere, nowhere, result.elements)))
        feedback = None
        if loses(config, result):
            feedback = files.enter_context(closing(Feedback(before, after, result.segment, result.elements)))
        fold(contributions, base, None, spool, outer, feedback)
        if feedback is not None:
            feedback.commit()
        spool.commit(spool.digest())


class Watched:
    """A transfer that says when a chunk of it is read."""

    def __init__(self, transfer: Encoded, told: Callable[[], None]) -> None:
        self._transfer, self._told = transfer, told
        self.manifest, self.digest, self.payload_bytes = transfer.manifest, transfer.digest, transfer.payload_bytes

    def chunks(self, first: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        for each in self._transfer.chunks(first):
            self._told()
            yield each

    def close(self) -> None:
        self._transfer.close()
