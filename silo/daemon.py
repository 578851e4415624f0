"""The silo as a long-running process: asks for its task, does the next step, and outlasts everything else.

A federator that is away is waited for, with back-off, for as long as it takes; a round that is over is let go; only
what a person must act on (refused identity, no images, changed rules, full disk) ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from feddiff.core import console, notify
from feddiff.core.config import FederationConfig
from feddiff.core.errors import (
    FederatorUnavailable,
    NotFinite,
    ProtocolError,
    RoundError,
    StoreError,
    TransferError,
)
from feddiff.core.sharing import stays
from feddiff.core.transfer import Chunk, Commit, Sender
from feddiff.silo.arrivals import Arrivals
from feddiff.silo.client import Client
from feddiff.silo.display import Display
from feddiff.silo.doing import Doing
from feddiff.silo.learner import Learner, Lesson, training_seed
from feddiff.silo.local import Local
from feddiff.silo.peers.circle import Circle
from feddiff.silo.pooled import admitted, agreed
from feddiff.silo.pulse import Pulse
from feddiff.silo.session import RoundWork, Task, next_step
from feddiff.silo.witness import Witness

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
LONGEST_REPORT_WAIT_S = 30.0

log = logging.getLogger("feddiff.silo")


class Silo:
    """One institution's daemon. ``make_learner`` is called once, when the federation's rules are known."""

    def __init__(
        self,
        name: str,
        local: Local,
        client: Client,
        make_learner: Callable[[FederationConfig], Learner],
        display: Display,
        accept_pool: bool = False,
        circle: Circle | None = None,
    ) -> None:
        """``accept_pool``: consent to train on public images of the federator's. ``circle``: this silo among others;
        without one it takes part in no federation whose silos send to each other."""
        self.name, self._local, self._client, self._display = name, local, client, display
        self._circle = circle or Circle(name, local, "")
        self._make_learner, self._arrivals = make_learner, Arrivals(local, client, display, self._circle)
        self.doing = Doing()
        self._learner: Learner | None = None
        self._witness: Witness | None = None
        self._accepts = accept_pool
        self._config: FederationConfig
        self._feedback, self._report_wait = True, LONGEST_REPORT_WAIT_S
        self._stays: Callable[[str], bool] = lambda segment: False
        self._stopping = threading.Event()
        self._failures = 0

    def stop(self) -> None:
        """Make ``run`` return within seconds. Safe in a signal handler."""
        notify.stopping("told to stop")
        self._stopping.set()
        self._client.stop()
        self._circle.stop()

    def run(self) -> bool:
        """Take part until the federation is finished (True) or ``stop`` is called (False).

        Raises IdentityError, ConfigError, ProtocolError, DataError, StoreError: what a person must act on.
        """
        with contextlib.closing(self._circle):
            return self._run()

    def _run(self) -> bool:
        joined, known = False, ""
        notify.ready("calling the federator")
        while not self._stopping.is_set():
            notify.alive()
            try:
                if not joined:
                    self._join()
                    joined = True
                self.doing.phase = "waiting"
                task = admitted(self._client.task(known, self._local.held()), self._config, self._accepts)
                self._failures = 0
                if task.id != known:
                    log.info("task %s: %s", task.id, task.reason)
                    notify.status(task.reason)
                known = task.id if task.work is None else ""
                if task.finished:
                    return True
                self._circle.tell()
                if task.work is not None and not self._do(task, task.work):
                    known = ""
            except FederatorUnavailable as error:
                self._client.check_dates()
                self._wait(f"the federator is away ({error})")
            except RoundError as error:
                log.warning("%s", error)
                self._wait(None)
            except TransferError as error:
                self._wait(f"{error.sentence}")
        return False

    def _join(self) -> None:
        local = self._local
        welcome = self._client.join(0, {}, {}, "", "")
        config = self._config = local.adopt(welcome.rules)
        self._circle.begin(config)
        self._feedback, self.doing.rounds = config.codec.feedback, config.rounds.count
        self._stays = lambda segment: stays(segment, config.plan, config.personal)
        self._report_wait = min(LONGEST_REPORT_WAIT_S, config.rounds.deadline / 4)
        if self._learner is None:
            self._learner = self._make_learner(config)
            if self._learner.gauge is not None:
                self._witness = Witness(self._learner.gauge, local, self._client)
            self._accepts = agreed(config, self._accepts)
            if not self._accepts:
                local.pooled.forget()
        learner, statistics = self._learner, b""
        self.doing.images = dict(learner.labels) or {"": learner.samples}
        if self._witness is not None and config.wants_statistics:
            # Before the silo is there: a round would wait for it.
            self._display.begin("features of the images", 1)
            statistics = self._witness.statistics(self._show)
            self._display.end()
        if config.initial == "seed" and not local.held():
            made = learner.initial()
            if local.keep_initial(made, welcome.initial_digest):
                log.info("the initial model is made here from the seed, bit for bit the federator's")
            else:
                log.warning("the initial model made here is not the federator's: it is fetched")
        welcome = self._client.join(
            *(learner.samples, learner.labels, local.held(), learner.device, learner.layout_digest),
            accepts_pool=self._accepts,
            advertise=self._circle.advertise,
        )
        self._circle.joined()
        if self._witness is not None:
            self._witness.contribute(statistics, welcome.statistics)
        log.info("%s is in %s with %d images (%s)", self.name, config.name, learner.samples, learner.device)

    def _do(self, task: Task, work: RoundWork) -> bool:
        """All steps of a round, from wherever the disk says we are. False if the round lost interest.

        Raises ProtocolError for a task that asks for what stays here, whatever the task says of it.
        """
        if asked := [each.segment for each in work.up if self._stays(each.segment)]:
            raise ProtocolError(f"the federator asks for {', '.join(asked)}, which by the rules never leaves a silo")
        self._local.tidy(work)
        while not self._stopping.is_set():
            step = next_step(task, self._local.progress(), self._due)
            log.debug("%s: %s", step.action, step.reason)
            self.doing.begin(step.action, work.round)
            if step.action == "fetch":
                self._arrivals.fetch(work, step.manifests)
            elif step.action == "accept" and work.pool is not None:
                self._arrivals.accept(work.round, work.pool, self._config)
            elif step.action == "train":
                if not self._train(work):
                    return False
            elif step.action == "measure":
                if not self._measure(work):
                    return False
            elif step.action == "wait":
                return True
            else:
                return self._submit(work)
        return False

    def _train(self, work: RoundWork) -> bool:
        assert self._learner is not None
        console.give_back()
        self._display.begin(f"round {work.round} training", 1)
        pulse = self._pulse(work, "training")

        def told(step: int, steps: int, loss: float, speed: float) -> bool:
            self.doing.at(step, steps, loss, speed)
            return pulse(step, steps, f"loss {loss:.4f}, {speed:.0f} images/s", {"loss": loss})

        lesson = Lesson(
            work.round,
            self._local.start(work),
            self._local.trained.averages(),
            training_seed(work.seed, work.round, self.name),
            self._local.checkpoint,
            [segment for segment in work.start if segment not in work.personal],
            None if work.pool is None else self._local.pooled.images(work.pool, self._config),
        )
        learned = self._learner.learn(lesson, told)
        self._display.end()
        if learned is None:
            if not pulse.wanted:
                log.warning("round %d went on without this silo; its training is dropped", work.round)
            return False
        for segment, vector in learned.weights.items():
            # By the extremes, which NaN and infinity reach: a mask would take a quarter of the model's memory.
            if vector.size and not np.isfinite((vector.min(), vector.max())).all():
                raise NotFinite(f"{segment} after the training of round {work.round}; lower training.learning_rate?")
        self._local.trained.keep(work.round, learned.weights, learned.ema, learned.metrics)
        self._local.checkpoint.unlink(missing_ok=True)
        log.info("round %d trained: loss %.4f", work.round, learned.metrics.get("loss", float("nan")))
        return True

    def _measure(self, work: RoundWork) -> bool:
        """How good the trained model is. False if the round is over meanwhile, or the silo is stopping."""
        assert self._witness is not None
        self._display.begin(f"round {work.round} measuring", 1)
        pulse = self._pulse(work, "measuring")
        try:
            return self._witness.measure(work.round, training_seed(work.seed, work.round, self.name), pulse)
        finally:
            self._display.end()

    def _due(self, round: int) -> bool:
        return self._witness is not None and self._witness.due(round)

    def _pulse(self, work: RoundWork, phase: str) -> Pulse:
        return Pulse(self._client, self._display, work.round, phase, self._report_wait, self._stopping.is_set)

    def _show(self, step: int, steps: int, note: str) -> bool:
        self._display.at(step / max(steps, 1), note)
        return not self._stopping.is_set()

    def _submit(self, work: RoundWork) -> bool:
        metrics = self._local.trained.metrics()
        if not self._client.report(work.round, "submitting", metrics=metrics):
            return False

        def told(part: Chunk | Commit) -> None:
            if isinstance(part, Chunk):
                self._display.advance(work.up[part.offer].count(part.index))

        self._display.begin(f"round {work.round} submitting", sum(each.elements for each in work.up))
        # Encoding runs ahead of the network, on its own thread, from the first segment that is not in the outbox yet.
        encoder = ThreadPoolExecutor(1, "encode")
        ready = {each: encoder.submit(self._local.outgoing, work, each, self._feedback) for each in work.up}
        try:
            if work.dealings is not None:
                self._circle.deliver(work, lambda manifest: ready[manifest].result().path, self._arrivals.advance)
            else:
                with contextlib.closing(Sender(work.up, lambda manifest: ready[manifest].result())) as sender:
                    self._client.submit(work.round, sender, told)
        except StoreError as error:
            encoder.shutdown(cancel_futures=True)
            if any(each.done() and not each.cancelled() and each.exception() for each in ready.values()):
                raise  # what it is encoded from is damaged, which a person must act on
            log.warning("%s; it is encoded again", error)
            self._local.discard(work.up)
            self._wait(None)
            return False
        finally:
            encoder.shutdown(cancel_futures=True)
            for each in ready.values():
                if each.done() and not each.cancelled() and each.exception() is None:
                    each.result().close()
            self._display.end()
        log.info("round %d is handed in", work.round)
        return True

    def _wait(self, why: str | None) -> None:
        """Back off: 1, 2, 4 … 60 seconds, each up to a quarter longer so that silos do not return in step."""
        pause = min(FIRST_WAIT_S * 2**self._failures, LONGEST_WAIT_S) * random.uniform(1, 1.25)
        self._failures += 1
        self.doing.phase = "retrying"
        if why and not self._stopping.is_set():
            log.warning("%s; next try in %.0f s", why, pause)
            notify.status(why)
        self._stopping.wait(pause)
