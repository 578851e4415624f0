"""The federator measures the global model beside the rounds: numbers in the ledger, restarts, what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stage import FEDERATOR, TINY_UNET, Process, Stage, images

from feddiff.core import diffusion
from feddiff.core.config import load
from feddiff.core.features import Extractor
from feddiff.core.moments import Moments, fid
from feddiff.core.quality import Features, measure
from feddiff.core.segments import Layout
from feddiff.core.store import WeightsReader
from feddiff.federator import desk

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

SAMPLES, STEPS = 12, 2
SILOS = {"hospital-a": 5, "hospital-b": 9}


class Blocks(torch.nn.Module):
    """The means of four quarters of an image, and two classes: dark above, dark below."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).mean(1).flatten(1)
        return means, torch.stack([means[:, 2:].sum(1), means[:, :2].sum(1)], 1)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extractor") / "blocks.pt"
    torch.jit.save(torch.jit.script(Blocks()), path)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rules(extractor: Path, *more: str) -> str:
    digest = hashlib.sha256(extractor.read_bytes()).hexdigest()
    return "\n".join((f'[quality]\nextractor = "{digest}"\nsamples = {SAMPLES}\nsteps = {STEPS}', *more))


def hospitals(stage: Stage) -> None:
    """Two silos that learn noise, without an extractor of their own."""
    stage.layout = Layout.from_json((stage.home / "layout.json").read_text())
    for name, samples in SILOS.items():
        stage.hospital(name, samples).start()


def drawn(stage: Stage, extractor: Path, versions: dict[str, int]) -> Features:
    """Features of what the published model draws, made anew."""
    config = load(stage.rules)
    vectors = {}
    for name, version in versions.items():
        with WeightsReader(stage.home / "weights" / f"{name}@{version}.safetensors") as reader:
            vectors[name] = reader.read(name)
    pictures = diffusion.sample(config, stage.layout.scatter(vectors), SAMPLES, steps=STEPS, seed=config.seed)
    return Extractor.load(extractor).features(pictures.transpose(0, 3, 1, 2))


def readings(stage: Stage) -> dict[tuple[int, str], dict[str, Any]]:
    """(round, metric) → what ``quality --json`` tells of the global model."""
    found = json.loads(desk.quality(stage.rules, as_json=True))
    assert all(row["of"] is None for row in found)
    return {(row["round"], row["metric"]): row for row in found}


def gauge(stage: Stage) -> int | None:
    """The process that measures for this federation."""
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (each / "cmdline").read_bytes().split(b"\0")
            if b"feddiff.federator.gauge" in command and any(str(stage.home).encode() in word for word in command):
                return int(each.name)
    return None


def tied(pid: int) -> bool:
    """Whether it is past its first lines: it ignores SIGTERM from then on."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return bool(int(status.partition("SigIgn:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def held(stage: Stage) -> int:
    """The measuring process, stopped in its middle."""
    found: list[int] = []

    def stopped() -> bool:
        if (pid := gauge(stage)) and tied(pid):
            os.kill(pid, signal.SIGSTOP)
            found.append(pid)
        return bool(found)

    stage.until("a measurement begins", stopped)
    return found[0]


def test_due_rounds_have_their_quality_beside_their_bytes(stage: Stage, extractor: Path, tmp_path: Path) -> None:
    stage.found(rounds=3, silos=2, unet=TINY_UNET, more=rules(extractor, "every = 2"))
    stage.rules.write_text(stage.rules.read_text().replace("keep_versions = 100", "keep_versions = 1"))
    images(tmp_path / "reference", 20, seed=1)
    server = stage.serve("--extractor", str(extractor), "--reference", str(tmp_path / "reference"))
    hospitals(stage)
    assert server.wait() == 0, server.told()

    found = readings(stage)
    metrics = {"fid", "kid", "precision", "recall", "inception_score", "class_kl", "validation_loss"}
    assert found.keys() == {(number, metric) for number in (2, 3) for metric in metrics}
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "reference").iterdir())])
    known = Extractor.load(extractor).features(pictures[:, np.newaxis])
    for one in measure(drawn(stage, extractor, stage.opened().current), known, "reference"):
        row = found[3, one.metric]
        assert row["value"] == pytest.approx(one.value, rel=1e-3, abs=1e-6)
        assert (row["samples"], row["reference"], row["digest"]) == (SAMPLES, one.reference, known.digest)
    assert found[2, "fid"]["value"] != found[3, "fid"]["value"]
    assert {path.name for path in (stage.home / "samples").iterdir()} == {"round-0002.png", "round-0003.png"}
    assert not list((stage.home / "measuring").iterdir())
    assert server.told().count("20 of 20 reference images seen") == 1
    assert server.told().index("round 2: fid") < server.told().index("round 3: fid")

    told = f"{found[3, 'fid']['value']:.4g}"
    assert f"quality: round 3, global: FID {told}" in stage.operate("status")
    assert told in stage.operate("quality")
    stage.operate("report", "--out", str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"<td>{told}</td>" in page
    assert known.digest in page
    assert 'alt="global model, round 3"' in page


@pytest.mark.slow
def test_a_measurement_that_was_cut_off_is_made_by_the_next_process(
    stage: Stage, extractor: Path, tmp_path: Path
) -> None:
    stage.found(rounds=1, silos=2, unet=TINY_UNET, more=rules(extractor))
    images(tmp_path / "reference", 20, seed=1)
    options = ("--extractor", str(extractor), "--reference", str(tmp_path / "reference"))
    server = stage.serve(*options)
    hospitals(stage)
    child = held(stage)
    waits = "finished; still to be measured: round 1"
    stage.until("the end waits for the measurement", lambda: waits in server.told())
    assert waits in stage.status()["reason"]
    assert server.terminate() == 0
    assert not alive(child)

    server = stage.serve(*options)
    child = held(stage)
    server.kill()
    stage.until("the measurement dies with its federator", lambda: not alive(child))
    assert not readings(stage)
    assert [path.name for path in (stage.home / "measuring").iterdir()] == ["round-1"]

    server = stage.serve(*options)
    assert server.wait() == 0, server.told()
    assert (1, "fid") in readings(stage)
    assert not list((stage.home / "measuring").iterdir())
    again = stage.serve(*options)
    assert again.wait() == 0
    assert server.told().count("20 of 20 samples seen") + server.told().count("12 of 12 samples seen") == 1


def test_the_moments_of_all_silos_are_as_good_as_their_images(stage: Stage, extractor: Path) -> None:
    stage.found(rounds=1, silos=2, unet=TINY_UNET, more=rules(extractor, 'reference = "federated"'))
    random, network = np.random.default_rng(3), Extractor.load(extractor)
    pixels = {name: random.integers(0, 256, (count, 1, 8, 8), np.uint8) for name, count in SILOS.items()}
    (stage.home / "statistics").mkdir()
    for name, each in pixels.items():
        moments = network.features(each).moments()
        (stage.home / "statistics" / f"{name}.moments").write_bytes(moments.to_bytes())
    server = stage.serve("--extractor", str(extractor))
    hospitals(stage)
    assert server.wait() == 0, server.told()

    row = readings(stage)[1, "fid"]
    pooled = network.features(np.concatenate(list(pixels.values()))).moments()
    expected = fid(drawn(stage, extractor, stage.opened().current).moments(), pooled)
    assert row["value"] == pytest.approx(expected, rel=1e-3)
    assert (row["reference"], row["against"]) == (sum(SILOS.values()), "all silos")
    assert not any("without" in caution for caution in row["cautions"])


@pytest.mark.slow
def test_without_moments_and_with_old_ones(stage: Stage, extractor: Path) -> None:
    stage.found(rounds=2, silos=2, unet=TINY_UNET, more=rules(extractor, 'reference = "federated"'))
    server = stage.serve("--extractor", str(extractor))
    stage.layout = Layout.from_json((stage.home / "layout.json").read_text())
    for name, samples in SILOS.items():
        stage.hospital(name, samples)
    gate = stage.hospitals["hospital-a"].gate

    gate[2] = threading.Event()
    for hospital in stage.hospitals.values():
        hospital.start()
    stage.until("round 1 is over", lambda: "round 1 is not measured yet: no silo has sent" in server.told())
    (stage.home / "statistics").mkdir(exist_ok=True)
    features = np.random.default_rng(0).random((SILOS["hospital-a"], 4))
    digest = hashlib.sha256(extractor.read_bytes()).hexdigest()
    for name in SILOS:  # hospital-b has other images now
        (stage.home / "statistics" / f"{name}.moments").write_bytes(Moments.of(features, digest).to_bytes())
    gate[2].set()
    assert server.wait() == 0, server.told()
    for number in (1, 2):  # the first at the end, by the moments that came later
        row = readings(stage)[number, "fid"]
        assert row["reference"] == SILOS["hospital-a"]
        assert "without hospital-b" in row["cautions"]


def test_a_measurement_that_fails_costs_no_round(stage: Stage, tmp_path: Path) -> None:
    fake = tmp_path / "fake.pt"
    fake.write_text("this is no network")
    images(tmp_path / "reference", 3, seed=1)
    stage.found(rounds=2, silos=1, more=rules(fake))
    server = stage.serve("--extractor", str(fake), "--reference", str(tmp_path / "reference"))
    hospital = stage.hospital("hospital-a").start()
    assert server.wait() == 0, server.told()
    stage.until("the silo is done", lambda: hospital.finished)
    for number in (1, 2):
        assert f"round {number} is not measured: gauge: The configuration is wrong: {fake} is no Torch" in server.told()
    assert not readings(stage)
    assert not list((stage.home / "measuring").iterdir())


class TestServe:
    """Says before anything is served what is wrong with the flags."""

    def serve(self, stage: Stage, *options: str) -> str:
        done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules), *options)
        assert done.code == 78, done.err
        assert not (stage.home / "federation.db").exists()
        (said,) = done.err.splitlines()
        return str(said)

    def test_wants_what_the_rules_need(self, stage: Stage, extractor: Path, tmp_path: Path) -> None:
        stage.found(more=rules(extractor))
        digest = hashlib.sha256(extractor.read_bytes()).hexdigest()
        assert f"give --extractor FILE, the TorchScript file with SHA-256 {digest}" in self.serve(stage)
        assert "give --reference FOLDER" in self.serve(stage, "--extractor", str(extractor))
        missing = str(tmp_path / "none")
        assert "No such file" in self.serve(stage, "--extractor", missing)
        said = self.serve(stage, "--extractor", str(extractor), "--reference", missing)
        assert f"--reference {missing}: a folder of images was expected" in said

    def test_takes_only_the_rules_extractor(self, stage: Stage, extractor: Path, tmp_path: Path) -> None:
        stage.found(more=rules(extractor))
        other = tmp_path / "other.pt"
        other.write_bytes(extractor.read_bytes() + b" ")
        said = self.serve(stage, "--extractor", str(other), "--reference", str(tmp_path))
        assert hashlib.sha256(other.read_bytes()).hexdigest() in said
        assert hashlib.sha256(extractor.read_bytes()).hexdigest() in said

    @pytest.mark.parametrize("option", ["--extractor", "--reference"])
    def test_refuses_flags_without_rules(self, stage: Stage, tmp_path: Path, option: str) -> None:
        stage.found()
        assert f"{option} was given, but the federation's rules have no table [quality]" in self.serve(
            stage, option, str(tmp_path)
        )

    def test_needs_no_flag_without_a_global_model(self, stage: Stage, extractor: Path) -> None:
        server: Process = stage.found(plan="udec", more=rules(extractor)).serve()
        assert server.terminate() == 0
