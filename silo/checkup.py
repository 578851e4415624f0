"""What is typed at ``feddiff-silo doctor``: the options of the daemon, so that its own command can be examined.

Parses and prints; silo/doctor.py looks. Loads nothing heavy.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core import console
from feddiff.silo.source import Source, add_options

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands, state: argparse.ArgumentParser) -> None:
    """The command's options; ``state``: those of the state folder."""
    doctor = commands.add_parser(
        "doctor",
        parents=[state],
        help="say what is wrong, and what to do: images, state, certificates, network, rules, time of a round",
        description="Looks at everything that a silo needs and says what is wrong and what to do. Give it what the"
        " daemon is given. It may run before enrolment and beside the daemon, and spends no invitation.",
    )
    unset = argparse.SUPPRESS  # the same options before the command keep their values
    doctor.add_argument("--data", type=Path, metavar="FOLDER", default=unset, help="images")
    doctor.add_argument("--federator", metavar="HOST:PORT", default=unset, help="default: as enrolled, or invited")
    doctor.add_argument("--join", metavar="TOKEN", default=unset, help="an invitation, which is not spent")
    doctor.add_argument("--extractor", type=Path, metavar="FILE.pt", default=unset, help="as for the daemon")
    doctor.add_argument("--accept-pool", action="store_true", default=unset, help="as for the daemon")
    doctor.add_argument("--processes", type=int, metavar="N", default=unset, help="as for the daemon")
    doctor.add_argument("--verbose", action="store_true", default=unset, help="name files that are left out")
    doctor.add_argument("--json", action="store_true", help="findings as JSON")
    add_options(doctor, command=True)


def run(options: argparse.Namespace, state: Callable[[str | None], Path]) -> int:
    """Look, and print findings; returns the exit code. ``state``: the state folder for a federator's address."""
    from feddiff.core import finding
    from feddiff.core.identity import Invitation
    from feddiff.core.wire import SOFTWARE
    from feddiff.silo import doctor

    console.log_lines(options.verbose)
    if not options.verbose:  # what is wrong is a finding; which files cannot be used is said nowhere
        logging.getLogger("feddiff").setLevel(logging.ERROR)
    invitation = None if options.join is None else Invitation.parse(options.join)
    address = options.federator or (invitation.address if invitation else "")
    patient = doctor.Patient(
        state(address or None),
        address,
        None if options.data is None else Source.chosen(options.data, options),
        invitation,
        options.extractor,
        options.accept_pool,
        options.processes,
    )
    return finding.tell(doctor.examine(patient), SOFTWARE, options.json)
