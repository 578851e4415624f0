"""What comes before the first round where the rules share a pool: the set G is drawn, and a model warmed up on it.

    all silos are here ──► G drawn ──► model trained on G ──► its weights are version 0 ──► round 1 opens

Each step is a child process, because neither images nor torch are to be in the daemon's memory, and counts once the
journal says so: after a crash at any moment the same federation begins with the same G and the same weights. How many
images G has follows from those of the silos that are here when the first round would open; it is drawn only then.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError, FedDiffError
from feddiff.core.store import WeightsReader, write_atomic
from feddiff.federator.federation import Federation
from feddiff.federator.pool import RULES
from feddiff.federator.rounds import Decision

_FACT = "warm-up"
LOG = "preparing.log"
"""What the child says; its last line is how far it is, or why it failed."""

log = logging.getLogger("feddiff.federator")


def check(config: FederationConfig, images: Path | None) -> None:
    """Raises ConfigError unless ``serve`` was given a pool where the rules share one, and only there."""
    if config.pool is None and images is not None:
        raise ConfigError("--pool was given, but the federation's rules have no table [pool]; leave it out")
    if config.pool is not None and images is None:
        raise ConfigError(
            "the rules have a table [pool], so images of the federator go to the silos; give --pool FOLDER with public"
            " images, one sub-folder for each class: that is the consent to give them away"
        )
    if images is not None and not images.is_dir():
        raise ConfigError(f"--pool {images}: a folder of images was expected, one sub-folder for each class")


class Warmup:
    """The preparations of one federation, asked by the loop that advances the rounds."""

    def __init__(self, federation: Federation, images: Path | None) -> None:
        """With what ``check`` lets pass."""
        self._federation, self._images = federation, images
        self._rules = federation.config.pool
        self._child: subprocess.Popen[bytes] | None = None
        self._doing = ""
        self._drawn_for = (0, 0)
        """Images and silos that the set under way is drawn for."""
        self._ready = self._rules is None

    def before(self, decision: Decision) -> Decision:
        """The same decision; or to wait, where it opens the first round and that is not prepared yet.

        Raises DataError if the images do not do, FedDiffError if a process fails.
        """
        if self._child is not None:
            if self._child.poll() is None:
                waits = Decision("wait", f"round 1 waits for {self._doing}: {self._last_line() or 'it begins'}")
                return waits if decision.action == "open" else decision
            self._settle(self._child.returncode)
        if self._ready or decision.action != "open":
            return decision
        self._begin(decision.silos)
        return decision if self._ready else Decision("wait", f"round 1 waits for {self._doing}")

    def close(self) -> None:
        """End the child; the next ``serve`` goes on where it was."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _begin(self, silos: tuple[str, ...]) -> None:
        """Start the next step, if there is one."""
        from feddiff.core.pool import WARMED, part

        federation, rules = self._federation, self._rules
        assert rules is not None
        if federation.pool.chosen is None:
            images = sum(each.samples for each in federation.roster.silos() if each.name in silos)
            count, self._drawn_for = part(rules.beta, images), (images, len(silos))
            federation.pool.folder.mkdir(exist_ok=True)
            write_atomic(federation.pool.folder / RULES, federation.config.canonical())
            self._doing = f"the shared set of {count} images, {rules.beta:g} of the {images} of {len(silos)} silos"
            self._start("feddiff.federator.pool", str(self._images), str(count))
        elif rules.warmup and federation.journal.fact(_FACT) is None:
            if (federation.pool.folder / WARMED).exists():
                self._publish()
                self._ready = True
                return
            self._doing = f"the warm-up model, {rules.warmup} epochs on {federation.pool.chosen.count} images"
            # The training is a silo's, in a program of its own: this package knows nothing of it.
            self._start("feddiff.silo.warmup")
        else:
            self._ready = True

    def _start(self, module: str, *arguments: str) -> None:
        folder = self._federation.pool.folder
        command = [sys.executable, "-m", module, str(folder), *arguments, "--parent", str(os.getpid())]
        with (folder / LOG).open("wb") as said:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def _settle(self, code: int) -> None:
        """A step has ended. Raises DataError if G cannot be drawn, FedDiffError if the training failed."""
        self._child, pool = None, self._federation.pool
        if code:
            why = self._last_line() if code > 0 else f"its process was killed by signal {-code}"
            kind = DataError if pool.chosen is None and code > 0 else FedDiffError
            facts = why.rpartition(kind("").sentence)[2]  # which says the sentence again
            raise kind(f"{self._doing}: {facts}; `serve` again goes on from here")
        if pool.chosen is None:
            log.info("the shared set is drawn: %s", pool.choose(*self._drawn_for))

    def _publish(self) -> None:
        """Make the warm-up model version 0. No silo has that of before: no round has opened yet."""
        from feddiff.core.pool import WARMED

        federation = self._federation
        with WeightsReader(federation.pool.folder / WARMED) as reader:
            for segment in federation.layout.names:
                federation.versions.publish_initial(segment, reader)
        federation.journal.note("initial", federation.versions.initial_digest())
        federation.journal.note(_FACT, federation.versions.initial_digest())
        log.info("the warm-up model is what the first round starts from")

    def _last_line(self) -> str:
        try:
            with (self._federation.pool.folder / LOG).open("rb") as said:
                said.seek(max(said.seek(0, os.SEEK_END) - 1000, 0))
                lines = said.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " ".join(lines[-1].split())[-500:] if lines else ""
