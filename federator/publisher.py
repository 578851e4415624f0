"""From a round's updates to published versions, segment by segment, and ahead of the round's end where that can be.

A segment is folded as soon as everybody who is to report it has: while the last silos still send the rest of their
updates. What was folded ahead counts only if the round really ends with those updates; nothing is current before the
journal says so, and a fold that is repeated writes the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from feddiff.core import console, notify
from feddiff.core.errors import StoreError
from feddiff.core.fold import BadUpdate, Contribution
from feddiff.core.spool import Transfer
from feddiff.federator.federation import Federation
from feddiff.federator.journal import Round
from feddiff.federator.weighting import LOSS, weigh, words

FOLDERS = min(console.cpus(), 4)
"""Segments that are folded at a time. Each holds a chunk or two in memory, and works outside Python's lock mostly."""

log = logging.getLogger("feddiff.federator")


@dataclass(frozen=True)
class _Fold:
    """What a fold is of."""

    round: int
    segment: str
    base: int
    silos: tuple[str, ...]
    losses: tuple[tuple[str, float], ...]
    """What decides their weights, where it is not fixed when the round opens: told again, it is another fold."""


class Publisher:
    """Folds for one federation; called by the loop that advances the rounds."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._pool = ThreadPoolExecutor(FOLDERS, "fold")
        self._begun: dict[str, tuple[_Fold, Future[None]]] = {}

    def ahead(self, left_out: Collection[str]) -> None:
        """Begin with what the open round has complete already; ``left_out``: silos that will not count in it."""
        federation, current = self._federation, self._federation.round
        if current is None:
            return
        updates = federation.journal.updates(current.round)
        for segment, fold in self._folds(current, [s for s in current.weights if s not in left_out]).items():
            if all(segment in updates.get(silo, ()) for silo in fold.silos):
                self._begin(current, fold)

    def publish(self, current: Round, silos: Collection[str]) -> dict[str, int]:
        """Average the updates of these silos; returns the versions that this makes. Raises BadUpdate, StoreError."""
        federation, folds = self._federation, self._folds(current, silos)
        begun = [self._begin(current, fold) for fold in folds.values()]
        try:
            for each in begun:
                each.result()
                notify.alive()
        finally:
            # One that is bad, or no longer wanted, must not be at work yet when the same files are folded again.
            for _, each in self._begun.values():
                each.exception()
            self._begun.clear()
        if folds and federation.config.weights.by != "samples":
            images = {silo: current.weights[silo] for fold in folds.values() for silo in fold.silos}
            weights = weigh(federation.config.weights, images, self._losses(current))
            log.info("round %d is averaged by %s: %s", current.round, federation.config.weights.by, words(weights))
        return {segment: fold.base + 1 for segment, fold in folds.items()}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _folds(self, current: Round, silos: Collection[str]) -> dict[str, _Fold]:
        """What the round makes of the updates of these silos, by segment."""
        assignments = [each for each in current.plan.assignments if each.silo in silos]
        folds, losses = {}, self._losses(current)
        for segment in self._federation.layout.names:
            reporting = tuple(each.silo for each in assignments if segment in each.up)
            if reporting:
                base = self._federation.current[segment]
                told = tuple((silo, losses[silo]) for silo in reporting if silo in losses)
                folds[segment] = _Fold(current.round, segment, base, reporting, told)
        return folds

    def _losses(self, current: Round) -> dict[str, float]:
        """What the silos of a round have told, if the rules weigh by it. Final once all of an update is committed."""
        if self._federation.config.weights.by != "loss":
            return {}
        told = self._federation.journal.metrics(current.round).get(current.round, {})
        return {silo: metrics[LOSS] for silo, metrics in told.items() if LOSS in metrics}

    def _begin(self, current: Round, fold: _Fold) -> Future[None]:
        known = self._begun.get(fold.segment)
        if known is not None:
            if known[0] == fold:
                return known[1]
            known[1].exception()  # of other updates; both would write the same files
        future = self._pool.submit(self._fold, current, fold)
        self._begun[fold.segment] = (fold, future)
        return future

    def _fold(self, current: Round, fold: _Fold) -> None:
        versions, folder = self._federation.versions, self._federation.spool(current.round)
        images = {silo: current.weights[silo] for silo in fold.silos}
        weights = weigh(self._federation.config.weights, images, dict(fold.losses))
        opened: dict[str, Transfer] = {}
        try:
            for silo in fold.silos:
                try:
                    upload = versions.upload(current.round, silo, fold.segment, fold.base)
                    opened[silo] = Transfer(upload.path(folder))
                except StoreError as error:
                    raise BadUpdate(
                        silo, f"its spooled {fold.segment} was damaged on the federator's disk: {error}"
                    ) from None
            contributions = [Contribution(silo, weights[silo].value, opened[silo]) for silo in fold.silos]
            versions.publish(fold.segment, fold.base, fold.base + 1, contributions, current.plan.codec)
        finally:
            for each in opened.values():
                each.close()
