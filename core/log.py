"""How a daemon's log lines look: for a person, for the journal, or for a machine that reads logs.

Between Python's logging and stderr. The journal adds time, unit and process itself, and takes a line's priority from
``<N>`` in front of it (sd-daemon(3)); JSON is one object a line, for whatever collects logs elsewhere.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Of syslog(3), by level."""


def to_journal() -> bool:
    """Whether stderr is the journal, and not a file that somebody put there for a child of a service."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def prefix(level: int) -> str:
    """What stands before a line of this level: nothing, or its priority for the journal."""
    return f"<{PRIORITIES.get(level, 6)}>" if to_journal() else ""


class Journal(logging.Formatter):
    """``<4>message``, on each line of a message that has several."""

    def format(self, record: logging.LogRecord) -> str:
        before = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return before + super().format(record).replace("\n", f"\n{before}")


class Json(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}``, and ``"traceback"`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(told, ensure_ascii=False)


def structured() -> bool:
    """Whether log lines are JSON, since ``--log json``."""
    return any(isinstance(each.formatter, Json) for each in logging.getLogger().handlers)


def formatter(form: str) -> logging.Formatter:
    """``form``: "json", or "text", which is the journal's own where stderr is the journal."""
    if form == "json":
        return Json()
    if to_journal():
        return Journal("%(message)s")
    return logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
