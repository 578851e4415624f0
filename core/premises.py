"""What both doctors find of a machine: the state folder, its disk, the memory, the clock, a certificate's dates.

Pure functions of facts (core/machine.py gathers them) that return findings; each knows which error the daemon would end
with.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509

from feddiff.core.amounts import amount
from feddiff.core.errors import CertificateExpired, IdentityError, StoreError
from feddiff.core.finding import Finding, ok, problem, warning
from feddiff.core.identity import load_certificate
from feddiff.core.machine import Folder, Machine

LEAST_FREE = 64 << 20
"""Bytes on a disk below which logs and databases are in danger, whatever the model."""
SKEW_S, GRAVE_SKEW_S = 60.0, 3600.0
"""A clock may differ so much; certificates are dated an hour back, beyond that new ones are refused."""
LATE = 0.2
"""Share of a certificate's life that is left when a warning is due: its renewal should have come before."""


def folder(found: Folder, user: int) -> Iterator[Finding]:
    """Whether state can be kept there, by ``user`` (the id that the doctor runs as)."""
    where = f"{found.path}"
    if found.unwritable:
        yield problem(
            StoreError,
            "state folder",
            f"nothing can be written in {where}: {found.unwritable}",
            "give the folder to the user that runs the daemon, or name another with --state",
        )
    elif not found.exists:
        yield ok("state folder", f"{where} does not exist yet and can be made")
    elif user == 0 and found.owner not in (0, None):
        yield warning(
            "state folder",
            f"{where} belongs to user {found.owner} and this is root, who may write everywhere",
            "run the doctor as the user that runs the daemon",
        )
    else:
        yield ok("state folder", f"{where} can be written; it holds {amount(found.used)}")
    if found.open_files:
        yield warning(
            "private key",
            f"others than its owner may read {', '.join(found.open_files)} in {where}",
            f"chmod 600 {' '.join(str(found.path / name) for name in found.open_files)}",
        )


def disk(found: Folder, need: int | None) -> Finding:
    """Whether there is room for ``need`` bytes in all; None: nobody knows yet how much that is."""
    free = f"{amount(found.free)} free"
    if need is None:
        if found.free >= LEAST_FREE:
            return ok("disk", f"{free}; how much is needed is known once the rules are", free_bytes=found.free)
        need = LEAST_FREE
    more = max(need - found.used, LEAST_FREE)
    numbers = {"free_bytes": found.free, "needed_bytes": more}
    wanted = f"the federation's model wants up to {amount(need)} here, of which {amount(found.used)} are there"
    advice = f"make room, or put the folder on another disk with --state: {amount(more)} should be free"
    if found.free < more:
        return Finding("problem", "disk", f"only {free}; {wanted}", advice, StoreError, numbers)
    if found.free < 2 * more:
        return warning("disk", f"{free}, which is just enough; {wanted}", advice, **numbers)
    return ok("disk", f"{free}; {wanted}", **numbers)


def memory(machine: Machine, need: int, of: str) -> Finding:
    """Whether there is memory for ``need`` bytes, which ``of`` takes."""
    numbers = {"available_bytes": machine.available, "needed_bytes": need}
    has = f"{amount(machine.available)} of {amount(machine.memory)} memory are free"
    if need > machine.memory:
        advice = "this machine is too small for the model; take another, or raise the limit of its container or unit"
        return Finding(
            "problem", "memory", f"{has}; at least {amount(need)} are needed for {of}", advice, StoreError, numbers
        )
    if need > machine.available:
        advice = "end other programs, or raise the limit of the container or unit"
        return warning("memory", f"{has}; at least {amount(need)} are needed for {of}", advice, **numbers)
    return ok("memory", f"{has}; at least {amount(need)} are needed for {of}", **numbers)


def clock(machine: Machine, ahead_s: float | None, whose: str) -> Finding:
    """``ahead_s``: by how much the clock of ``whose`` is ahead of this one's; None: nobody could be asked."""
    service = {True: "a time service keeps it", False: "no time service keeps it", None: ""}[machine.synchronised]
    advice = "set the clock and let a time service keep it: timedatectl set-ntp true, or chrony with your own server"
    if ahead_s is None:
        if machine.synchronised is False:
            return warning("clock", f"there was nobody to compare the clock with, and {service}", advice)
        return ok("clock", f"there was nobody to compare the clock with{f'; {service}' if service else ''}")
    words = f"this clock is {_time(abs(ahead_s))} {'behind' if ahead_s > 0 else 'ahead of'} {whose}"
    if abs(ahead_s) > GRAVE_SKEW_S:
        return Finding("problem", "clock", words, advice, CertificateExpired, {"ahead_s": -ahead_s})
    if abs(ahead_s) > SKEW_S:
        return warning("clock", f"{words}{f'; {service}' if service else ''}", advice, ahead_s=-ahead_s)
    return ok("clock", f"this clock and {whose} differ by {_time(abs(ahead_s))}", ahead_s=-ahead_s)


def certificate(pem: bytes, now: datetime, subject: str, whose: str, advice: str, early: str = "") -> Finding:
    """Its dates. ``advice``: how to get a new one; ``early``: what to do when it soon ends; empty: nothing yet."""
    try:
        found = load_certificate(pem)
    except IdentityError as error:
        return problem(IdentityError, subject, f"{whose} cannot be read: {error}", advice)
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    left = (ends - now).total_seconds() / 86400
    here = f"this clock says {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if now < begins:
        return problem(
            CertificateExpired, subject, f"{whose} begins on {begins:%Y-%m-%d %H:%M} UTC, {here}", "set the clock"
        )
    if now > ends:
        ended = f"{whose} ended on {ends:%Y-%m-%d %H:%M} UTC, {here}"
        return problem(CertificateExpired, subject, ended, f"if the clock is right: {advice}")
    words = f"{whose} is good for {_days(left)}, until {ends:%Y-%m-%d}"
    if early and left * 86400 < LATE * (ends - begins).total_seconds():
        return warning(subject, words, early, days_left=round(left, 2))
    return ok(subject, words, days_left=round(left, 2))


def hosts(certificate: x509.Certificate) -> list[str]:
    """DNS names and IP addresses that a certificate is for (RFC 5280 4.2.1.6)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return [name.lower() for name in found]


def answers_to(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for a host; ``*.`` stands for one label (RFC 9525)."""
    names = hosts(certificate)
    return host.lower() in names or f"*.{host.lower().partition('.')[2]}" in names


def _days(days: float) -> str:
    return f"{days:.0f} more days" if days >= 2 else f"{days * 24:.0f} more hours"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    raise AssertionError
