"""The chain in closed form: what is whole is found whole, and every kind of tampering is found and named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from feddiff.core.errors import AuditError
from feddiff.federator import audit
from feddiff.federator.audit import Entry, check, fingerprint, founding, hash_of, parse, seal

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
AT = "2026-05-01T00:00:00.000Z"


def chain(count: int, key: Ed25519PrivateKey = KEY) -> list[bytes]:
    """A log of so many entries; lines with their newlines."""
    entry = founding(key, AT, "id1", software="test")
    lines = [seal(entry, key)]
    while len(lines) < count:
        number = len(lines) + 1
        facts = {"silo": "clinic-a", "round": number}
        lines.append(seal(replace(entry, number=number, id=f"id{number}", kind="update", facts=facts,
                                  previous=hash_of(lines[-1])), key))  # fmt: skip
    return [line + b"\n" for line in lines]


def flaw(lines: list[bytes], key: str | None = None, noted: tuple[str, ...] = ()) -> str:
    with pytest.raises(AuditError) as caught:
        check(lines, key, noted)
    return str(caught.value)


def changed(line: bytes, before: str, after: str) -> bytes:
    assert before.encode() in line
    return line.replace(before.encode(), after.encode(), 1)


def test_a_line_is_the_canonical_entry_bound_to_the_line_before_and_signed() -> None:
    first, second = chain(2)
    told = json.loads(second)
    assert told["previous"] == hashlib.sha256(first[:-1]).hexdigest()
    assert json.loads(first)["previous"] == "0" * 64
    signature = bytes.fromhex(told.pop("signature"))
    body = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    KEY.public_key().verify(signature, b"feddiff audit entry\n" + body)
    assert json.loads(first)["facts"]["public_key"] == KEY.public_key().public_bytes_raw().hex()
    entry = parse(second[:-1])[0]
    assert (entry.number, entry.kind, entry.facts) == (2, "update", {"silo": "clinic-a", "round": 2})


def test_a_whole_log_is_whole() -> None:
    lines = chain(5)
    found = check(iter(lines), fingerprint(KEY.public_key()), [hash_of(lines[2][:-1])])
    assert (found.entries, found.head, found.first, found.last) == (5, hash_of(lines[4][:-1]), AT, AT)
    assert found.key == fingerprint(KEY.public_key())
    assert check(lines, found.key[:16], [found.head[:16]]).restored == ()


def test_a_changed_fact_breaks_the_signature_of_its_line() -> None:
    lines = chain(5)
    lines[2] = changed(lines[2], "clinic-a", "clinic-b")
    assert flaw(lines).startswith("line 3: signature: entry 3 (update) was changed")


def test_a_change_that_is_signed_anew_breaks_the_chain() -> None:
    lines = chain(5)
    entry = parse(lines[2][:-1])[0]
    lines[2] = seal(replace(entry, facts={"silo": "clinic-b"}), KEY) + b"\n"
    assert flaw(lines).startswith("line 4: hash: entry 4 follows on")


def test_a_removed_line_is_a_gap() -> None:
    lines = chain(6)
    assert flaw(lines[:2] + lines[3:]) == "line 3: gap: entry 3 is missing, entry 4 stands here"
    assert flaw(lines[:2] + lines[5:]) == "line 3: gap: entry 3 to 5 is missing, entry 6 stands here"
    assert flaw(lines[1:]).startswith("line 1: missing: the log begins with entry 2")


def test_swapped_and_repeated_lines_are_named() -> None:
    lines = chain(5)
    swapped = [*lines[:2], lines[3], lines[2], lines[4]]
    assert flaw(swapped) == "line 3: order: entry 4 stands before entry 3, which is line 4"
    assert flaw([*lines[:3], lines[2], *lines[3:]]) == "line 4: duplicate: entry 3 stands here again"
    assert flaw([*lines[:4], lines[1]]) == "line 5: order: entry 2 stands behind entry 4"


def test_a_cut_tail_is_found_by_any_later_head() -> None:
    lines = chain(5)
    noted = hash_of(lines[4][:-1])
    assert check(lines[:4]).entries == 4  # nothing in the file itself can tell
    assert flaw(lines[:4], noted=(noted,)).startswith("after line 4: truncated or rewritten: no entry has the hash")
    assert flaw([*lines[:4], lines[4][:-1]]) == "line 5: truncated: the line has no end"
    assert flaw([*lines[:4], lines[4][:50]]) == "line 5: truncated: the line has no end"
    assert flaw([]) == "line 1: missing: the log is empty"


def test_a_history_that_was_written_anew_with_the_very_key_lacks_the_heads_of_the_true_one() -> None:
    true = chain(5)
    entry = parse(true[1][:-1])[0]
    forged = true[:1]
    for number in range(2, 6):
        next_ = replace(entry, number=number, facts={"silo": "clinic-z"}, previous=hash_of(forged[-1][:-1]))
        forged.append(seal(next_, KEY) + b"\n")
    assert check(forged).entries == 5
    assert "truncated or rewritten" in flaw(forged, noted=(hash_of(true[3][:-1]),))


def test_a_foreign_key_is_named() -> None:
    lines, print_ = chain(5), fingerprint(KEY.public_key())
    assert flaw(chain(3, OTHER), print_).startswith("line 1: wrong key: the log is signed by ")
    entry = parse(lines[2][:-1])[0]
    theirs = seal(replace(entry, key=fingerprint(OTHER.public_key())[:16]), OTHER) + b"\n"
    assert flaw([*lines[:2], theirs, *lines[3:]]).startswith("line 3: wrong key: signed by")
    assert flaw([*lines[:2], seal(entry, OTHER) + b"\n", *lines[3:]]).startswith("line 3: signature: ")


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"rubbish\n", b"{}\n", b"[]\n", b"\x00\xff\n", b"null\n", b'{"number":3}\n', b"[" * 100_000 + b"\n"],
)
def test_garbage_is_named_wherever_it_stands(garbage: bytes) -> None:
    lines = chain(4)
    for place in range(5):
        assert flaw([*lines[:place], garbage, *lines[place:]]).startswith(f"line {place + 1}: garbage: ")


def test_other_bytes_for_the_same_entry_are_garbage() -> None:
    lines = chain(3)
    spaced = json.dumps(json.loads(lines[2]), sort_keys=True).encode() + b"\n"
    assert flaw([*lines[:2], spaced]).startswith("line 3: garbage: ")


def test_a_signature_is_written_in_one_way() -> None:
    lines = chain(3)
    signature = json.loads(lines[2])["signature"]
    lines[2] = changed(lines[2], signature, signature.upper())
    assert flaw(lines).startswith("line 3: garbage: ")


def test_a_line_without_bound_is_not_taken() -> None:
    assert flaw([*chain(2), b"x" * (audit.MAX_LINE + 1)]) == "line 3: garbage: the line is too long"


def test_a_first_line_without_a_key_is_none() -> None:
    bad = Entry(1, AT, "id", audit.FOUNDED, {"public_key": "zz"}, audit.NOTHING, "0" * 16)
    assert flaw([seal(bad, KEY) + b"\n"]) == "line 1: garbage: the first entry holds no public key"


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 5), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_can_change_unseen(place: int, at: int, bit: int) -> None:
    """In the last line too: nothing follows on it. What is named is the line itself, or the first that misses it."""
    lines = chain(6)
    broken = bytearray(lines[place])
    broken[at % len(broken)] ^= 1 << bit
    text = flaw(b"".join([*lines[:place], bytes(broken), *lines[place + 1 :]]).splitlines(keepends=True))
    assert text.startswith(f"line {place + 1}: ")
