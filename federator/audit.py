"""The audit log's form: entries, each bound to the one before by its hash and signed; what is wrong with a log.

    {"at": …, "facts": {…}, "id": …, "key": …, "kind": …, "number": 7, "previous": …, "signature": …}

One line is one entry in canonical JSON (sorted keys, no spaces, ASCII). ``previous`` is the SHA-256 of the line before,
without its newline; the signature is Ed25519 (RFC 8032) over the entry without it. The first entry holds the public
key, so that a copy of the file alone can be verified, anywhere, against the key's fingerprint. Pure functions:
federator/notary.py writes the file, federator/examiner.py reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from feddiff.core.errors import AuditError

MAX_LINE = 1 << 20
"""Bytes of an entry, newline included."""
NOTHING = "0" * 64
"""What the first entry follows on."""
FOUNDED = "founded"
"""The kind of the first entry, whose facts hold the public key, raw, hexadecimal."""
_CONTEXT = b"feddiff audit entry\n"
_HASH, _SIGNATURE = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{128}")


@dataclass(frozen=True)
class Entry:
    """One fact, as it is signed. ``at``: RFC 3339, UTC. ``id``: of the event, also where it was written down twice."""

    number: int
    at: str
    id: str
    kind: str
    facts: Mapping[str, Any]
    previous: str
    key: str
    """The first 16 digits of the fingerprint of the key that signed."""


@dataclass(frozen=True)
class Verified:
    """A whole log: how many entries, its head (the hash of the last line), the key's fingerprint, from when to when."""

    entries: int
    head: str
    key: str
    first: str
    last: str
    restored: tuple[int, ...]
    """Entries that say that the database was put back to an older state than the log's."""


def canonical(thing: object) -> bytes:
    return json.dumps(thing, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def hash_of(line: bytes) -> str:
    """Of a line without its newline."""
    return hashlib.sha256(line).hexdigest()


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 5280 4.1), hexadecimal."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def seal(entry: Entry, key: Ed25519PrivateKey) -> bytes:
    """An entry's line, without newline."""
    said = asdict(entry)
    return canonical({**said, "signature": key.sign(_CONTEXT + canonical(said)).hex()})


def founding(key: Ed25519PrivateKey, at: str, id: str, **facts: object) -> Entry:
    """The first entry of a log."""
    public, print_ = key.public_key(), fingerprint(key.public_key())
    return Entry(1, at, id, FOUNDED, {**facts, "public_key": public.public_bytes_raw().hex()}, NOTHING, print_[:16])


def parse(line: bytes) -> tuple[Entry, bytes]:
    """An entry and its signature, which is not looked at. Raises ValueError for what is not a line of this form."""
    try:
        found = json.loads(line)
        signature = found.pop("signature")
        entry = Entry(**found)
        whole = isinstance(entry.number, int) and not isinstance(entry.number, bool) and isinstance(entry.facts, dict)
        texts = (entry.at, entry.id, entry.kind, entry.key, entry.previous, signature)
        if not whole or not all(isinstance(each, str) for each in texts) or not _HASH.fullmatch(entry.previous):
            raise ValueError
        # Of the signature nothing else is signed: there must be one way to write it.
        if not _SIGNATURE.fullmatch(signature) or canonical({**found, "signature": signature}) != line:
            raise ValueError
        return entry, bytes.fromhex(signature)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise ValueError("this is not an entry") from None


def check(lines: Iterable[bytes], key: str | None = None, noted: Collection[str] = ()) -> Verified:
    """Check a whole log, line after line with their newlines, each at most ``MAX_LINE`` + 1 bytes.

    ``key``: the fingerprint of the one that must have signed, or its first 16 digits or more; None: the first entry's.
    ``noted``: heads that were noted once, or their first 16 digits or more: there must be a line for each of them.
    Raises AuditError that names the first broken line and says what is wrong with it.
    """
    rest = enumerate(lines, 1)
    signer: Ed25519PublicKey | None = None
    entry, head, print_, first, restored, missing = None, NOTHING, "", "", [], set(noted)
    for number, line in rest:
        if not line.endswith(b"\n"):
            what = "truncated: the line has no end" if len(line) <= MAX_LINE else "garbage: the line is too long"
            raise AuditError(f"line {number}: {what}")
        try:
            entry, signature = parse(line[:-1])
        except ValueError:
            raise AuditError(f"line {number}: garbage: {_shown(line)} is not an entry of an audit log") from None
        if signer is None:
            signer, print_, first = _signer(entry, key), entry.key, entry.at
            print_ = fingerprint(signer)
        if entry.number != number:
            raise AuditError(f"line {number}: {_disorder(number, entry.number, rest)}")
        if entry.previous != head:
            told = f"{entry.previous[:16]}, and the line before has {head[:16]}"
            raise AuditError(f"line {number}: hash: entry {number} follows on {told}: one of the two was changed")
        if entry.key != print_[:16]:
            raise AuditError(f"line {number}: wrong key: signed by {entry.key:.16}, the log by {print_[:16]}")
        try:
            signer.verify(signature, _CONTEXT + canonical(asdict(entry)))
        except InvalidSignature:
            told = f"signature: entry {number} ({entry.kind:.40}) was changed, or another key signed it"
            raise AuditError(f"line {number}: {told}") from None
        head = hash_of(line[:-1])
        missing = {each for each in missing if not head.startswith(each)}
        if entry.kind == "restored":
            restored.append(number)
    if entry is None:
        raise AuditError("line 1: missing: the log is empty")
    if missing:
        told = f"no entry has the hash {min(missing)[:16]} that was noted"
        raise AuditError(f"after line {entry.number}: truncated or rewritten: {told}")
    return Verified(entry.number, head, print_, first, entry.at, tuple(restored))


def _signer(entry: Entry, key: str | None) -> Ed25519PublicKey:
    """The key of the whole log, by its first entry. Raises AuditError."""
    if entry.number != 1 or entry.kind != FOUNDED:
        raise AuditError(
            f"line 1: missing: the log begins with entry {entry.number} ({entry.kind:.40}), not with its key"
        )
    try:
        found = Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry.facts["public_key"]))
    except (ValueError, KeyError, TypeError):
        raise AuditError("line 1: garbage: the first entry holds no public key") from None
    if key is not None and not fingerprint(found).startswith(key):
        raise AuditError(f"line 1: wrong key: the log is signed by {fingerprint(found)[:16]}, expected was {key[:16]}")
    return found


def _disorder(wanted: int, found: int, rest: Iterator[tuple[int, bytes]]) -> str:
    """What it means that another number stands where ``wanted`` should."""
    if found == wanted - 1:
        return f"duplicate: entry {found} stands here again"
    if found < wanted:
        return f"order: entry {found} stands behind entry {wanted - 1}"
    for place, line in rest:
        try:
            if parse(line.removesuffix(b"\n"))[0].number == wanted:
                return f"order: entry {found} stands before entry {wanted}, which is line {place}"
        except ValueError:
            continue
    last = f" to {found - 1}" if found - 1 > wanted else ""
    return f"gap: entry {wanted}{last} is missing, entry {found} stands here"


def _shown(line: bytes) -> str:
    return ascii(line[:40].decode("ascii", "replace").rstrip("\n"))
