"""Orders about certificates, which hold whether or not the federator is running: revoke, replace the CA."""

from __future__ import annotations

import time
from pathlib import Path

from feddiff.core import trust
from feddiff.core.config import load
from feddiff.core.errors import ConfigError, FederatorUnavailable, StoreError
from feddiff.federator import desk, notary, outbox, site
from feddiff.federator.authority import DAY_S, Authority
from feddiff.federator.measure import seconds
from feddiff.federator.operators import CONSOLE, Operators
from feddiff.federator.orders import Orders
from feddiff.federator.roster import Roster
from feddiff.federator.upkeep import attest, left_behind, rotation


def revoke(config: Path, name: str, reason: str) -> str:
    """Take back what was given to a name: a silo's certificate, an invitation, or an operator's token.

    Raises ConfigError if it has none of these."""
    folder = _folder(config)
    with notary.attended(folder) as database:
        roster = Roster(database)
        if Operators(database).revoke(name):
            return f"the token of {name} no longer holds"
        if not roster.silos(name):
            if roster.withdraw(name):
                return f"the invitation of {name} no longer holds"
            known = ", ".join(each.name for each in roster.silos()) or "none"
            raise ConfigError(f"there is no silo, invitation or operator {name!r}; enrolled: {known}")
        try:
            return desk.order(config, "evict", {"silo": name, "reason": reason})  # which cuts its streams
        except FederatorUnavailable:
            pass
        try:
            Orders(desk.opened(config)).give(CONSOLE, "evict", name, reason)
        except StoreError:  # it has not begun yet
            with database.transaction() as change:
                outbox.note(change, "order", by=outbox.console(), what="evict", silo=name, reason=reason)
                roster.evict(name, reason)
    return f"{name} is evicted: {reason}; no federator is running"


def rotate(config: Path, within: str | None, finish: bool) -> str:
    """Begin to replace the CA, or end that now; returns what follows. Raises ConfigError."""
    folder = _folder(config)
    authority = Authority(folder)
    if finish:
        with notary.attended(folder) as database:
            roster = Roster(database)
            roster.certificates.stage = authority.stage
            behind = left_behind(authority, roster, time.time())
        authority.finish()
    else:
        authority.replace(authority.lifetime_days * DAY_S if within is None else seconds(within, "--within"))
    with notary.attended(folder) as database:
        roster = Roster(database)
        with database.transaction() as change:
            outbox.note(change, "order", by=outbox.console(), what="rotate-ca --finish" if finish else "rotate-ca")
            attest(authority, roster)
        told = rotation(authority, roster, time.time())
    if finish:
        told = f"the CA is {trust.fingerprint(authority.current.certificate).hex()} now; the old one is gone"
        return f"{told}\na new invitation is needed by {', '.join(behind)}" if behind else told
    return f"{told}\nthe federator ends this by itself, at once when all do; `rotate-ca --finish` does it now"


def _folder(config: Path) -> Path:
    load(config)
    folder = config.resolve().parent
    site.address(folder)
    return folder
