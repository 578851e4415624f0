"""What silos say of the quality of their own models: checked, then kept beside the bytes of the same round.

Between the service and the ledger, as ``intake`` is for weights. A number from a silo cannot be verified, for nobody
else has its model and its images; that it is a number, and is of what the rules say, can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from feddiff.core.errors import NotSelected, ProtocolError, RoundClosed, TooLarge
from feddiff.core.quality import Measured
from feddiff.core.sections import QualityConfig
from feddiff.core.wire import MAX_GRID_BYTES, MAX_NUMBERS
from feddiff.federator import grids
from feddiff.federator.appraisal import METRICS
from feddiff.federator.federation import Federation

SHARES = ("precision", "recall")
MAX_CAUTIONS = 8
MAX_COUNT = 1 << 40


def keep(federation: Federation, silo: str, round: int, numbers: Sequence[Measured], grid: bytes) -> None:
    """Put a silo's numbers of its model of the open round into the ledger, and its grid into ``grids/``.

    Raises ProtocolError, TooLarge for what the rules do not ask for or no measurement gives, RoundClosed, NotSelected
    for a round that is over or not the silo's; then nothing is kept.
    """
    quality = federation.config.quality
    if quality is None or not federation.config.silos_measure:
        raise ProtocolError("this federation does not ask silos to measure")
    checked = [_checked(each, quality) for each in numbers]
    if len(grid) > MAX_GRID_BYTES:
        raise TooLarge(f"a grid of {len(grid)} bytes; at most {MAX_GRID_BYTES}")
    if grid and not quality.grids:
        raise ProtocolError("this federation asks for no grids")
    if grid:
        grids.check(grid)
    with federation.changed:
        _admit(federation, silo, round, quality)
        ledger = federation.ledger
        known = {(each.measured.metric, each.measured.against) for each in ledger.quality(round) if each.of == silo}
        if len(known | {(each.metric, each.against) for each in checked}) > MAX_NUMBERS:
            raise TooLarge(f"{silo} tells more than {MAX_NUMBERS} numbers of round {round}")
    # Outside the lock, for it waits for the disk. If the round is over meanwhile, a picture is left without numbers.
    if grid:
        grids.keep(federation.folder, round, silo, grid)
    with federation.changed:
        _admit(federation, silo, round, quality)
        federation.ledger.measure(round, silo, checked)


def _admit(federation: Federation, silo: str, round: int, quality: QualityConfig) -> None:
    """The lock is held. Raises as ``keep`` does."""
    federation.hear(silo)
    if federation.open_round() != round:
        raise RoundClosed(f"round {round} is over; the measurement of {silo} came too late")
    if federation.assignment(silo) is None:
        raise NotSelected(f"{silo} has no part in round {round}")
    if not quality.due(round, federation.config.rounds.count):
        raise ProtocolError(f"round {round} is not one that is measured")


def plain(text: str, length: int) -> str:
    """What a silo says of itself, fit for a log line and a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:length])


def _checked(told: Measured, quality: QualityConfig) -> Measured:
    """The same, with texts of bounded length. Raises ProtocolError, TooLarge."""
    metric = told.metric
    if metric not in METRICS:
        raise ProtocolError(f"{plain(metric, 40)!r} is no metric; known: {', '.join(METRICS)}")
    if metric in SHARES and not 0 <= told.value <= 1:  # one beyond would move the average that others are held to
        raise ProtocolError(f"{metric} is {told.value:.6g}, and a share is from 0 to 1")
    if told.digest != quality.extractor:
        raise ProtocolError(f"{metric} is not of the extractor that the rules name")
    if not math.isfinite(told.value) or not math.isfinite(told.spread or 0.0):
        raise ProtocolError(f"{metric} is {told.value} ± {told.spread}, which is no measurement")
    if told.samples != quality.samples or told.reference > MAX_COUNT:
        raise ProtocolError(f"{metric} is of {told.samples} samples; the rules ask for {quality.samples}")
    if len(told.cautions) > MAX_CAUTIONS:
        raise TooLarge(f"{metric} has {len(told.cautions)} cautions; at most {MAX_CAUTIONS}")
    return replace(
        told,
        against=plain(told.against, 40),
        extractor=plain(told.extractor, 80),
        cautions=tuple(plain(each, 300) for each in told.cautions),
    )
