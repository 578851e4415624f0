"""A federation on this machine for a test: folders, processes, silos in threads; mutual TLS on loopback.

The model is a flat one of given sizes unless a test wants the real thing, so that neither the federator nor the silos
need torch.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from noise import Noise
from tiny import TINY

from feddiff.bench.cell import toml
from feddiff.core import wire
from feddiff.core.identity import Invitation
from feddiff.core.segments import F32, Layout, cut
from feddiff.core.store import WeightsReader, save
from feddiff.federator import desk, site
from feddiff.federator.federation import Federation
from feddiff.silo import enroll
from feddiff.silo.client import Client
from feddiff.silo.daemon import Silo
from feddiff.silo.display import Display
from feddiff.silo.learner import training_seed
from feddiff.silo.local import Local
from feddiff.silo.peers.circle import Circle
from feddiff.v1 import federation_pb2_grpc

FEDERATOR, SILO = "feddiff.federator.cli", "feddiff.silo.cli"
PATIENCE_S = 90.0
SEED = 5
PARTS = {
    "conv_in.weight": 700,
    "down_blocks.0.weight": 2500,
    "mid_block.weight": 1300,
    "up_blocks.0.weight": 3100,
    "conv_out.weight": 300,
}
"""Parameters of the flat model: three parts of different sizes, some of several chunks."""
TINY_UNET = toml(TINY)
_RULES = """\
name = "trial"
plan = "{plan}"
seed = {seed}
keep_versions = 100

[model]
{model}
[training]
{training}
batch_size = 8
threads = 1

[codec]
chunk_elements = {chunk}

[rounds]
count = {rounds}
participants = {silos}
{more}
"""


class Process:
    """A child of the test. What it says on stdout and stderr is in ``log``, that of earlier lives included."""

    def __init__(self, log: Path, *command: str, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("a") as lines:
            self._child = subprocess.Popen(
                [sys.executable, *command], stdout=lines, stderr=lines, env={**os.environ, **(env or {})}
            )

    @property
    def code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._child.poll()

    def kill(self) -> None:
        """kill -9."""
        self._child.kill()
        self._child.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code. Fails if it waits for the end of a long poll (25 s)."""
        self._child.terminate()
        return self._child.wait(20)

    def limit_files(self, most: int) -> None:
        """From now on it may have so many files open, connections included."""
        resource.prlimit(self._child.pid, resource.RLIMIT_NOFILE, (most, most))

    def wait(self) -> int:
        return self._child.wait(PATIENCE_S)

    def told(self) -> str:
        return self.log.read_text()


class Hospital:
    """A silo in a thread of the test: production classes, a learner without torch. May be started again."""

    def __init__(self, stage: Stage, name: str, samples: int) -> None:
        self.name, self.samples, self.state = name, samples, stage.folder / name
        self._stage = stage
        self.gate: dict[int, threading.Event] = {}
        """Round → what its training waits for."""
        self.learner = Noise(samples, stage.layout.digest, self._hold)
        self.accept_pool = False
        self.listen = ""
        """Its port for other silos, where the stage's rules want that."""
        self.meet: Callable[[Circle], None] = lambda circle: None
        """Called with what it has of other silos, before it runs."""
        self._silo: Silo | None = None
        self.error: BaseException | None = None
        self.finished = False

    def start(self) -> Hospital:
        self._stage.enrol(self.name)
        local, client = Local(self.state), Client(self._stage.address, self.state)
        circle = self.circle = Circle(
            self.name, local, self._stage.address, self.listen, accept=self._stage.peers, renewal=client.renewal
        )
        self.meet(circle)
        silo = self._silo = Silo(
            self.name, local, client, lambda _: self.learner, Display(bars=False), self.accept_pool, circle
        )
        self._stopping = threading.Event()

        def run() -> None:
            try:
                self.finished = silo.run()
            except BaseException as error:
                self.error = error
            finally:
                client.close()
                local.close()

        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._silo is not None:
            self._stopping.set()
            self._silo.stop()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive(), f"{self.name} does not stop"

    def start_of(self, round: int) -> Mapping[str, F32]:
        """The weights its training of a round began with."""
        return self.learner.starts[training_seed(SEED, round, self.name)]

    def result_of(self, round: int) -> Mapping[str, F32]:
        """The weights its training of a round gave."""
        return self.learner.results[training_seed(SEED, round, self.name)]

    def training(self, round: int) -> bool:
        return training_seed(SEED, round, self.name) in self.learner.starts

    def _hold(self, seed: int) -> None:
        for number, gate in self.gate.items():
            if seed == training_seed(SEED, number, self.name):
                while not gate.is_set() and not self._stopping.is_set():
                    gate.wait(0.05)


class Stage:
    """One federation and everything that runs for it; ``close`` ends it all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder / "federator"
        self.rules = self.home / "federation.toml"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.peers = False
        """Whether silos listen for each other."""
        self.layout: Layout
        self.processes: list[Process] = []
        self.hospitals: dict[str, Hospital] = {}
        self._channels: list[grpc.Channel] = []

    # -- before it runs

    def found(
        self,
        plan: str = "full",
        rounds: int = 3,
        silos: int = 2,
        more: str = "",
        scale: int = 1,
        chunk: int = 1024,
        unet: str = "",
        training: str = "epochs = 1",
        lifetime: str = "30d",
    ) -> Stage:
        """Make the federator's folder. ``scale`` enlarges the flat model; ``unet`` is a real one instead of it.
        ``lifetime``: of certificates."""
        site.init(self.home, "trial", "digits-16", self.address, [], lifetime)
        model = unet or "sample_size = 8\nin_channels = 1\nout_channels = 1\n"
        self.rules.write_text(
            _RULES.format(
                plan=plan,
                seed=SEED,
                model=model,
                training=training,
                rounds=rounds,
                silos=silos,
                more=more,
                chunk=chunk,
            )
        )
        if not unet:
            self.layout = cut((name, [size * scale]) for name, size in PARTS.items())
            random = np.random.default_rng(SEED)
            vectors = {each.name: random.standard_normal(each.size, np.float32) for each in self.layout.segments}
            save(self.home / "initial.safetensors", vectors)
            (self.home / "layout.json").write_text(self.layout.to_json())
        return self

    def invite(self, name: str, expires: str = "7d") -> str:
        return site.invite(self.rules, name, expires)

    def enrol(self, name: str) -> Path:
        """Make a silo's state folder, with its certificate, unless it is there."""
        state = self.folder / name
        if not (state / "identity.json").exists():
            enroll.join(Invitation.parse(self.invite(name)), state, self.address)
        return state

    # -- processes

    def run(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Process:
        process = Process(self.folder / f"{name}.log", *command, env=env)
        self.processes.append(process)
        return process

    def serve(self, *more: str) -> Process:
        """The federator as a process, with more options; returns when it listens."""
        log = self.folder / "federator.log"
        before = log.read_text().count(f"port {self.port}") if log.exists() else 0
        process = self.run("federator", "-m", FEDERATOR, "serve", "--config", str(self.rules), *more)
        ready = lambda: process.code is not None or process.told().count(f"port {self.port}") > before  # noqa: E731
        self.until("the federator listens", ready)
        assert process.code is None, process.told()
        return process

    def hospital(self, name: str, samples: int = 1) -> Hospital:
        """A silo in a thread, not started yet."""
        found = self.hospitals[name] = Hospital(self, name, samples)
        if self.peers:
            found.listen = f"127.0.0.1:{free_port()}"
        return found

    def noise(self, name: str, samples: int = 1, seconds: float = 0.0, *more: str) -> Process:
        """A silo without torch as a process."""
        state = self.enrol(name)
        script = str(Path(__file__).with_name("noise.py"))
        options = ("--samples", str(samples), "--digest", self.layout.digest, "--seconds", str(seconds))
        if self.peers:
            options += ("--listen", f"127.0.0.1:{free_port()}")
        return self.run(name, script, str(state), self.address, *options, *more)

    def call(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> SimpleNamespace:
        """A command to its end: code, out, err."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=self.folder,
            env={**os.environ, **(env or {})},
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    def operate(self, command: str, *arguments: str) -> str:
        """An operator's command that must succeed; returns what it prints."""
        done = self.call(FEDERATOR, command, *arguments, "--config", str(self.rules))
        assert done.code == 0, done.err
        return str(done.out)

    # -- looking

    def until(self, what: str, condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Wait for a condition; fails saying ``what`` did not come."""
        end = time.monotonic() + seconds
        while not condition():
            for hospital in self.hospitals.values():
                assert hospital.error is None, f"{hospital.name}: {hospital.error!r}"
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.01)

    def status(self) -> dict[str, Any]:
        """What ``status --json`` tells."""
        return dict(json.loads(desk.status(self.rules, as_json=True)))

    def silo_status(self, name: str) -> dict[str, Any]:
        return next((dict(each) for each in self.status()["silos"] if each["name"] == name), {})

    def ledger(self) -> list[dict[str, Any]]:
        """What ``ledger --json`` prints."""
        return list(json.loads(self.operate("ledger", "--json")))

    def opened(self) -> Federation:
        """The federation as it is on disk."""
        return desk.opened(self.rules)

    def published(self, segment: str, version: int) -> F32:
        with WeightsReader(self.home / "weights" / f"{segment}@{version}.safetensors") as reader:
            return reader.read(segment)

    def stub(self, folder: Path) -> federation_pb2_grpc.FederationStub:
        """The Federation service, called with the certificate of a silo's state folder."""
        return federation_pb2_grpc.FederationStub(self.channel(folder))

    def channel(self, folder: Path) -> grpc.Channel:
        names = ("authority.pem", "key.pem", "certificate.pem")
        return self.secured(*((folder / name).read_bytes() for name in names))

    def secured(self, root: bytes, key: bytes | None, certificate: bytes | None) -> grpc.Channel:
        options = [*wire.CLIENT_OPTIONS, ("grpc.max_send_message_length", -1)]
        channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(root, key, certificate), options)
        self._channels.append(channel)
        return channel

    def close(self) -> str:
        """End everything; returns all logs."""
        for hospital in self.hospitals.values():
            hospital.stop()
        for channel in self._channels:
            channel.close()
        for process in self.processes:
            if process.code is None:
                process.kill()
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def images(folder: Path, count: int, seed: int) -> None:
    """Grey PNG files of noise, 8 x 8."""
    from PIL import Image

    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")
