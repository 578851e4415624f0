"""What a doctor says: one plain sentence for each thing that was looked at, and what to do about it.

At the end of both doctors' way (silo/doctor.py, federator/doctor.py): facts are gathered, pure functions make findings
of them, and here the findings become lines for a person, JSON for a program and an exit code for a script.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from feddiff.core.errors import (
    ConfigError,
    DataError,
    FedDiffError,
    FederatorUnavailable,
    IdentityError,
    ProtocolError,
    StoreError,
    TransferError,
)

Level = Literal["ok", "warning", "problem"]
GRAVITY: tuple[type[FedDiffError], ...] = (
    ConfigError,
    StoreError,
    IdentityError,
    ProtocolError,
    DataError,
    FederatorUnavailable,
    TransferError,
)
"""Gravest first: what a person has to put right here comes before what the other side must, or time may heal."""
_MARKS: Mapping[Level, str] = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}
_INDENT = 25
MAX_SENTENCE = 1000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Sentences may quote the other end: what a terminal would obey is taken out."""

    level: Level
    subject: str
    sentence: str
    advice: str = ""
    """What to do; empty if there is nothing."""
    kind: type[FedDiffError] = FedDiffError
    """Of a problem: the error that the daemon would end with."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What was measured, for programs; names carry the unit."""

    def __post_init__(self) -> None:
        for name in ("sentence", "advice"):
            words = " ".join(str(getattr(self, name)).split())[:MAX_SENTENCE]
            object.__setattr__(self, name, "".join(each if each.isprintable() else "?" for each in words))


def ok(subject: str, sentence: str, **numbers: float) -> Finding:
    return Finding("ok", subject, sentence, numbers=numbers)


def warning(subject: str, sentence: str, advice: str, **numbers: float) -> Finding:
    return Finding("warning", subject, sentence, advice, numbers=numbers)


def problem(kind: type[FedDiffError], subject: str, sentence: str, advice: str) -> Finding:
    return Finding("problem", subject, sentence, advice, kind)


def refusal(subject: str, error: FedDiffError, advice: str = "") -> Finding:
    """The problem that an error is."""
    return problem(type(error), subject, error.sentence, advice)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a problem; else that of the gravest problem's class (core/errors.py)."""
    kinds = [each.kind for each in findings if each.level == "problem"]
    for grave in GRAVITY:
        if any(issubclass(kind, grave) for kind in kinds):
            return grave.exit_code
    return FedDiffError.exit_code if kinds else 0


def text(finding: Finding, width: int = 110) -> str:
    """A mark, the subject and the sentence; below it, indented, what to do."""
    head = f"{_MARKS[finding.level]:<8} {finding.subject:<15} "
    lines = _wrapped(finding.sentence, head, width)
    if finding.advice:
        lines += _wrapped(finding.advice, " " * _INDENT + "-> ", width)
    return "\n".join(lines)


def _wrapped(words: str, head: str, width: int) -> list[str]:
    fold = textwrap.TextWrapper(max(width, 60), head, " " * len(head), break_long_words=False, break_on_hyphens=False)
    return fold.wrap(words)


def summary(findings: Iterable[Finding]) -> str:
    """How many of each level, in one line."""
    levels = [each.level for each in findings]
    counts = ((levels.count(level), level) for level in ("problem", "warning"))
    told = [f"{count} {level}{'s' if count > 1 else ''}" for count, level in counts if count]
    return ", ".join([*(told or ["no problem"]), f"{levels.count('ok')} ok"])


def tell(findings: Iterable[Finding], software: str, as_json: bool) -> int:
    """Print each as it comes, or all as JSON; returns the exit code."""
    kept = []
    for each in findings:
        kept.append(each)
        if not as_json:
            print(text(each, shutil.get_terminal_size((110, 24)).columns), flush=True)
    print(to_json(kept, software) if as_json else f"\n{summary(kept)}")
    return exit_code(kept)


def to_json(findings: Iterable[Finding], software: str) -> str:
    """An object of software, exit_code and findings: level, subject, sentence, advice, error , numbers."""
    found = list(findings)
    rows = [
        {
            "level": each.level,
            "subject": each.subject,
            "sentence": each.sentence,
            "advice": each.advice,
            "error": each.kind.__name__ if each.level == "problem" else None,
            "numbers": dict(each.numbers),
        }
        for each in found
    ]
    return json.dumps({"software": software, "exit_code": exit_code(found), "findings": rows}, indent=1)
