"""What a silo does for the others while its own training goes on: a thread that asks for its duty and does it.

Average its ranges, check samples of others' results, send the federator its checkpoint. The duty is state: after any
failure it is asked for again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import (
    FedDiffError,
    FederatorUnavailable,
    NotSelected,
    PeerUnavailable,
    ProtocolError,
    RoundClosed,
)
from feddiff.core.fold import BadUpdate
from feddiff.core.peers import Dealings, Duty, Folding, Sample, lost
from feddiff.core.spool import Manifest
from feddiff.core.transfer import Sender
from feddiff.silo.peers.checker import Checker
from feddiff.silo.peers.delivery import Away, Delivery
from feddiff.silo.peers.liaison import Liaison
from feddiff.silo.peers.owner import Owner
from feddiff.silo.peers.tallies import Tallies

BEAT_S = 2.0
"""How often the federator is asked whether an average is still wanted: it also hears that this silo lives."""
WAIT_S, LONGEST_S = 1.0, 30.0
"""Between questions to a federator that does not answer."""
GRANTED_S = 10.0
"""How long an owner may not know yet that this silo is to check it."""
log = logging.getLogger("feddiff.silo")


class Errands:
    """Of one silo."""

    def __init__(
        self,
        liaison: Liaison,
        owner: Owner,
        delivery: Delivery,
        tallies: Tallies,
        state: Path,
        config: FederationConfig,
    ) -> None:
        self._liaison, self._owner, self._delivery, self._tallies = liaison, owner, delivery, tallies
        self._config = config
        self._fetched = owner.folder / "fetched"
        self._checker = Checker(state, self._fetched, config)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="errands", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stopping.set()
        self._liaison.stop()

    def join(self) -> None:
        if self.running:
            self._thread.join(10)
        self._liaison.close()

    def _run(self) -> None:
        known, wait = "", WAIT_S
        while not self._stopping.is_set():
            try:
                duty = self._liaison.duty(known)
                wait = WAIT_S
                self._owner.accept(duty)
                known = ""
                self._do(duty)
                self._liaison.tell(self._tallies)
                known = duty.id
            except FedDiffError as error:
                # The silo's own work meets a federator that is away, too, and says so.
                quiet = self._stopping.is_set() or isinstance(error, NotSelected | FederatorUnavailable | RoundClosed)
                log.log(logging.DEBUG if quiet else logging.WARNING, "%s", error.sentence)
                self._stopping.wait(wait)
                wait = min(2 * wait, LONGEST_S)

    def _do(self, duty: Duty) -> None:
        for folding in duty.folds:
            self._fold(duty, folding)
        owners: dict[str, list[Sample]] = {}
        for sample in duty.samples:
            owners.setdefault(sample.owner, []).append(sample)
        for owner, samples in owners.items():
            self._check(duty, owner, samples)
        if duty.keeps:
            silo = self._owner.name
            with contextlib.closing(Sender(duty.keeps, lambda each: self._owner.open(silo, each))) as sender:
                self._liaison.keep(duty.round, sender)

    def _fold(self, duty: Duty, folding: Folding) -> None:
        """Average a range and tell what came out, or why it cannot be."""
        beat = time.monotonic()

        def told() -> None:
            nonlocal beat
            if time.monotonic() - beat > BEAT_S:
                if self._stopping.is_set() or folding not in self._liaison.duty("", 0).folds:
                    raise CancelledError  # none of ours, which averaging would blame a sender for
                beat = time.monotonic()

        blamed, reason = "", ""
        try:
            self._bring(duty, folding)
            result = self._owner.fold(folding, self._fetched, told)
        except CancelledError:
            return
        except BadUpdate as error:
            blamed, reason = error.silo, error.reason
        except (Away, NotSelected) as error:
            if self._stopping.is_set():
                return
            if isinstance(error, Away):
                self._complain(duty.round, error)
            reason = str(error)
        except (FedDiffError, OSError) as error:
            reason = str(error)
        if reason:
            self._liaison.not_folded(duty.round, folding.result.transfer, blamed, reason)
        else:
            self._liaison.folded(duty.round, result)

    def _bring(self, duty: Duty, folding: Folding) -> None:
        """Fetch what other silos' encoding lost in a range that is this silo's now."""
        self._clean()
        sizes = {each.range.segment: each.elements for each in duty.accepts}
        for carry in folding.carries:
            if carry.silo != self._owner.name:
                segment = carry.range.segment
                manifest = carry.range.of(lost(self._config.codec, segment, sizes[segment], folding.base))
                self._take(duty, carry.silo, [manifest])

    def _check(self, duty: Duty, owner: str, samples: list[Sample]) -> None:
        """Average samples again and tell what was found."""
        self._clean()
        finding = ""
        try:
            wanted = [(sample, self._checker.wanted(sample, duty.round)) for sample in samples]
            manifests = [manifest for _, pieces in wanted for manifest, _ in pieces]
            self._take(duty, owner, manifests)
            finding = next(filter(None, (self._checker.finding(sample, pieces) for sample, pieces in wanted)), "")
        except (PeerUnavailable, NotSelected) as error:
            log.warning("%s cannot be checked: %s", owner, error)
            self._liaison.judge(duty.round, duty.id, owner, "", unreachable=True)
            return
        except ProtocolError as error:
            finding = str(error)
        self._liaison.judge(duty.round, duty.id, owner, finding, unreachable=False)

    def _take(self, duty: Duty, silo: str, manifests: list[Manifest]) -> None:
        """Fetch from a silo that may have yet to hear that it is to give."""
        dealings, until = Dealings(1, duty.addresses), time.monotonic() + GRANTED_S
        while True:
            try:
                self._delivery.take(duty.round, silo, manifests, dealings, self._fetched, lambda *_: None)
                return
            except NotSelected:
                if time.monotonic() > until or self._stopping.wait(0.3):
                    raise

    def _complain(self, round: int, error: Away) -> None:
        for silo, reason in error.silos.items():
            self._liaison.complain(round, silo, reason)

    def _clean(self) -> None:
        shutil.rmtree(self._fetched, ignore_errors=True)
        self._fetched.mkdir(parents=True)
