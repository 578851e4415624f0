"""What the federator does for its certificates by itself while it serves: renews, finishes a rotation, warns ahead."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from feddiff.core import trust
from feddiff.core.errors import FedDiffError, StoreError
from feddiff.federator.authority import Authority, clock_time
from feddiff.federator.roster import Roster

WARN_CA_DAYS = 90.0
LOOK_S, WARN_S = 1.0, 60.0
"""How often files and rosters are looked at."""
RENEWAL_S = 60.0
"""Within which a silo that is here has renewed: it asks for its task every 25 s."""
EVERY_S = 86400.0
"""How often a warning is repeated."""

log = logging.getLogger("feddiff.federator")


@dataclass(frozen=True)
class Outlook:
    """How long the federation's own certificates are good. NaN and "" in a folder without any."""

    server_days: float = math.nan
    authority_days: float = math.nan
    authority: str = ""
    """SHA-256 of the CA's certificate, hexadecimal."""
    rotation: str = ""
    """How far the CA's replacement is, in words; empty if none is under way."""


class Upkeep:
    """One look after another, from the daemon's own thread."""

    def __init__(self, authority: Authority, roster: Roster, clock: Callable[[], float] = time.time) -> None:
        self._authority, self._roster, self._clock = authority, roster, clock
        self._next_look = self._next_warning = 0.0
        self._warned: dict[str, float] = {}

    def look(self) -> None:
        """Do what is due, once a second at most. What fails is logged, and tried again at the next look."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + LOOK_S
        try:
            if self._authority.until is not None:
                self._rotate(self._authority.until, self._authority.halfway or 0.0)
            if self._authority.renew_server():
                log.info("the server's certificate is renewed: good for %.3g days", self._authority.server_days)
            self._roster.certificates.stage = self._authority.stage
            attest(self._authority, self._roster)
            if now >= self._next_warning:
                self._next_warning = now + WARN_S
                self._warn()
        except (FedDiffError, OSError, sqlite3.Error) as error:
            self._say("upkeep", f"certificates cannot be looked after: {error}")

    def _rotate(self, until: float, halfway: float) -> None:
        self._roster.certificates.stage = self._authority.stage
        now, behind = self._clock(), stale(self._roster)
        in_time = now < until
        if not self._authority.signs and (not behind or now >= halfway):
            # If no federator ran for all of the second half, nobody could renew: they get as much time again.
            self._authority.change_signer(until if in_time else now + max(until - halfway, RENEWAL_S))
            return
        if in_time and behind:
            return
        waiting = sorted({*behind, *self._roster.invited(now)})
        if in_time and waiting:
            return
        self._authority.finish()
        if waiting:
            log.warning("the time for replacing the CA is up; a new invitation is needed by %s", ", ".join(waiting))
        log.warning("the new CA has taken the old one's place")

    def _warn(self) -> None:
        if (left := self._authority.days) < WARN_CA_DAYS:
            self._say("ca", f"the CA ends in {left:.0f} days: `feddiff-federator rotate-ca` makes a new one")
        warned_at = self._authority.lifetime_days / 4
        for silo in self._roster.silos():
            left = self._roster.certificates.days(silo.name, silo.serial)
            if silo.evicted is None and not math.isnan(left) and left < warned_at:
                told = "has ended" if left <= 0 else f"ends in {left:.3g} days"
                self._say(
                    f"{silo.name} {left <= 0}",
                    f"the certificate of {silo.name} {told}, not renewed: start the silo, or invite it anew",
                )

    def _say(self, what: str, text: str) -> None:
        now = self._clock()
        if now - self._warned.get(what, -math.inf) >= EVERY_S:
            self._warned[what] = now
            log.warning("%s", text)


def attest(authority: Authority, roster: Roster) -> None:
    """Put on record which certificates the federation itself shows and trusts, if they have changed."""
    coming = authority.next
    ours = {"ca": authority.current.certificate, "server": authority.server[1]}
    roster.certificates.attest(**ours, next=coming.certificate if coming else b"")


def stale(roster: Roster) -> list[str]:
    """Silos that are in and have yet to renew, because the federation's CAs have changed."""
    return [each.name for each in roster.silos() if each.evicted is None and roster.stale(each.name)]


def left_behind(authority: Authority, roster: Roster, now: float) -> list[str]:
    """Who would need a new invitation if the CA's replacement ended now."""
    silos = stale(roster) if authority.signs else [each.name for each in roster.silos() if each.evicted is None]
    return sorted({*silos, *roster.invited(now)})


def rotation(authority: Authority, roster: Roster, now: float) -> str:
    """``Outlook.rotation``."""
    until = authority.until
    if until is None:
        return ""
    roster.certificates.stage = authority.stage
    waiting = sorted({*stale(roster), *roster.invited(now)})
    told = f"the CA is being replaced until {clock_time(until)}"
    return f"{told}; waiting for {', '.join(waiting)} to renew" if waiting else f"{told}; all have renewed"


def outlook(folder: Path, roster: Roster) -> Outlook:
    """For the status, from the files."""
    authority = Authority(folder)
    try:
        fingerprint = trust.fingerprint(authority.current.certificate).hex()
        told = rotation(authority, roster, time.time())
        return Outlook(authority.server_days, authority.days, fingerprint, told)
    except StoreError:
        return Outlook()
