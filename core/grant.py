"""Enrolment by files, where no token may be pasted: the request that a silo carries out, the grant that it carries in.

    silo                                  federator
    request (key made here) ──── file ──► approve, having heard the request's fingerprint by telephone
    install                 ◄─── file ─── grant

Neither file is secret. What protects them is that people compare: the operator the fingerprint of the silo's key, the
silo's administrator that of the federation's CA, each on another way than the file's.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Self

from feddiff.core import trust
from feddiff.core.errors import ConfigError, IdentityError
from feddiff.core.identity import check_name

MAX_BYTES = 64 << 10
LEAST_DIGITS = 32
"""Of a fingerprint are compared: 128 bits, eight groups on the telephone."""


@dataclass(frozen=True)
class Request:
    """``authority``: hexadecimal, what the silo was told of the CA's fingerprint. ``request``: PKCS#10, PEM."""

    name: str
    authority: str
    request: str

    def to_bytes(self) -> bytes:
        return _packed(self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises IdentityError for what is no request, ConfigError for a name or fingerprint that is none."""
        found = _unpacked(data, "request")
        made = cls(found.get("name", ""), fingerprint(found.get("authority", "")), found.get("request", ""))
        check_name(made.name)
        return made


@dataclass(frozen=True)
class Grant:
    """A certificate for a request, and the one CA that issued it, PEM."""

    name: str
    federation: str
    certificate: str
    authority: str

    def to_bytes(self) -> bytes:
        return _packed(self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises IdentityError for what is no grant."""
        found = _unpacked(data, "grant")
        made = cls(*(found.get(key, "") for key in ("name", "federation", "certificate", "authority")))
        trust.load_authority(made.authority.encode())
        return made


def fingerprint(text: str) -> str:
    """A fingerprint as it was typed: 32 to 64 hexadecimal digits, colons and spaces aside. Raises ConfigError."""
    digits = re.sub(r"[\s:]", "", text).lower()
    if not re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},64}}", digits):
        raise ConfigError(f"{text[:80]!r} is no fingerprint: {LEAST_DIGITS} to 64 hexadecimal digits are needed")
    return digits


def spoken(digest: str) -> str:
    """The digits of a fingerprint that people compare, in groups."""
    return " ".join(digest[start : start + 4] for start in range(0, LEAST_DIGITS, 4))


def _packed(thing: Request | Grant) -> bytes:
    return json.dumps({"feddiff": type(thing).__name__.lower(), **asdict(thing)}, indent=1).encode() + b"\n"


def _unpacked(data: bytes, kind: str) -> dict[str, str]:
    try:
        if len(data) > MAX_BYTES:
            raise ValueError
        found = json.loads(data)
        if found.pop("feddiff") != kind or not all(isinstance(each, str) for each in found.values()):
            raise ValueError
        return dict(found)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise IdentityError(f"this is not a feddiff {kind}; it may have been damaged on the way") from None
