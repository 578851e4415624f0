"""What every command of feddiff does the same: log lines, one-line errors, exit codes.

Exit codes follow sysexits.h: 0 done, 2 wrong usage, 65 update rejected, 66 no images, 69 federator away, 70 a defect of
feddiff, 74 state folder, 75 try again, 76 protocol, 77 refused identity, 78 configuration; 130 interrupted.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import resource
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable

from feddiff.core import notify
from feddiff.core.errors import FedDiffError, StoreError
from feddiff.core.log import formatter, prefix, structured

INTERRUPTED = 130
DEFECT = 70

log = logging.getLogger("feddiff")


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command; an error becomes one line on stderr and its exit code. ``FEDDIFF_DEBUG=1`` shows tracebacks."""
    try:
        return command()
    except FedDiffError as error:
        if os.environ.get("FEDDIFF_DEBUG"):
            raise
        _say(f"{program}: {' '.join(error.sentence.split())}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, sqlite3.Error) as error:  # a full or failing disk, no more open files
        if os.environ.get("FEDDIFF_DEBUG"):
            raise
        _say(f"{program}: The machine refuses: {' '.join(str(error).split())}")
        return StoreError.exit_code
    except Exception:
        if structured():
            log.exception("a defect of feddiff")
        else:
            traceback.print_exc()
        _say(f"{program}: a defect of feddiff; please report it with the lines above")
        return DEFECT


def _say(line: str) -> None:
    """The last words of a command, as `systemctl status` shows them too."""
    notify.status(line)
    if structured():
        log.error("%s", line)
    else:
        print(prefix(logging.ERROR) + line, file=sys.stderr)


def tell(line: str) -> None:
    """What a daemon says to people on stdout: not between the objects of a log that a machine reads, but in one."""
    if structured():
        log.info("%s", line)
    else:
        print(line, flush=True)


def one_heap() -> None:
    """Let all threads share glibc's first heap: with one each, every thread keeps megabytes of its own."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX, malloc.h


def give_back() -> None:
    """Return freed memory to the system (glibc keeps it): before a training that will need it for hours."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cpus() -> int:
    """CPUs that this process may use, one at least: those of its affinity, and no more than Slurm gave its task."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(min(found, int(task)), 1) if task.isdecimal() else found


def tie(parent: int) -> None:
    """Die with the process that started this one, even with one that is killed; it says itself when this is to end."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux
    # Ctrl-C and systemd tell both at once, and a daemon kills its child when it stops.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def many_files() -> None:
    """Take all the open files that the system allows: every silo needs a socket, and its spools."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def log_lines(verbose: bool, form: str = "text") -> None:
    """Log to stderr, each line as core/log.py says; ``form`` is "text" or "json"."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(formatter(form))
    logging.basicConfig(handlers=[lines], level=logging.WARNING, force=True)
    logging.getLogger("feddiff").setLevel(logging.DEBUG if verbose else logging.INFO)
    if "WATCHDOG_USEC" in os.environ:
        faulthandler.enable()  # the watchdog's SIGABRT then shows where every thread hangs
