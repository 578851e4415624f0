"""A silo measures its own model on its own images: with its extractor, once, and never at the cost of the round."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from feddiff.core import diffusion
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import (
    ConfigError,
    DataError,
    FederatorUnavailable,
    ProtocolError,
    Revoked,
    RoundClosed,
    StoreError,
)
from feddiff.core.features import Extractor
from feddiff.core.images import Images
from feddiff.core.moments import Moments, fid
from feddiff.core.quality import OWN_IMAGES, Measured
from feddiff.core.segments import F32
from feddiff.core.wire import MAX_GRID_BYTES
from feddiff.federator import grids
from feddiff.silo.client import Client
from feddiff.silo.gauge import Abandoned, Gauge, Told, open_extractor
from feddiff.silo.local import Local
from feddiff.silo.readings import Reading
from feddiff.silo.witness import ATTEMPTS, Witness

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Quarters(torch.nn.Module):
    """The mean of each quarter of an image, and whether its upper half is the brighter one."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return found, found[:, :2] - found[:, 2:]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "quarters.pt"
    torch.jit.script(Quarters()).save(str(path))
    return path


def rules(network: Path, classes: int = 0, plan: str = "udec", **quality: object) -> FederationConfig:
    names = [f"class-{number}" for number in range(classes)]
    table: dict[str, Any] = {
        "plan": plan,
        "model": {**TINY, **({"num_class_embeds": classes} if classes else {})},
        "data": {"classes": names},
        "training": {"epochs": 1, "batch_size": 8},
        "quality": {"extractor": Extractor.load(network).digest, "samples": 20, "steps": 2, **quality},
        "rounds": {"count": 5},
    }
    return from_table(table, "test")


def images(count: int = 12, labels: list[int] | None = None, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), np.uint8)
    return Images(pixels, None if labels is None else np.array(labels), {}, ())


def gauge(network: Path, config: FederationConfig, shown: Images) -> Gauge:
    found = open_extractor(config, network)
    assert found is not None
    return Gauge(config, shown, found)


def vectors(config: FederationConfig) -> dict[str, F32]:
    state = diffusion.initial_state(config)
    return {each.name: each.gather(state) for each in diffusion.layout(config).segments}


def on(*_: object) -> bool:
    return True


def test_the_numbers_are_of_the_silos_samples_against_its_images(tmp_path: Path, network: Path) -> None:
    config, told = rules(network, grids=True), list[tuple[int, int, str]]()

    def tell(step: int, steps: int, what: str) -> bool:
        told.append((step, steps, what))
        return True

    reading = gauge(network, config, images()).measure(vectors(config), 7, tmp_path / "features", tell)
    found = {each.metric: each for each in reading.numbers}
    assert {"fid", "kid", "precision", "recall", "inception_score", "class_kl"} == found.keys()
    assert {(each.samples, each.digest) for each in reading.numbers} == {(20, Extractor.load(network).digest)}
    assert (found["fid"].reference, found["fid"].against) == (12, OWN_IMAGES)

    drawn = diffusion.sample(config, diffusion.initial_state(config), 20, steps=2, seed=7, batch=8)
    seen = Extractor.load(network).features(drawn.transpose(0, 3, 1, 2)).moments()
    own = Extractor.load(network).features(images().pixels).moments()
    assert found["fid"].value == pytest.approx(fid(seen, own), rel=1e-6)
    grids.check(reading.grid)
    with Image.open(io.BytesIO(reading.grid)) as grid:
        assert np.array_equal(np.asarray(grid)[:8, :8], drawn[0, :, :, 0])

    assert [what for _, _, what in told if what == "sampling"] == ["sampling"] * 6, "each step of each batch"
    assert {what for _, _, what in told} == {"sampling", "features of samples", "features of the silo's images"}
    assert not gauge(network, rules(network), images()).measure(vectors(config), 7, tmp_path / "f", on).grid


def test_features_of_the_images_are_made_once_and_anew_for_other_images(tmp_path: Path, network: Path) -> None:
    config = rules(network)
    told: list[str] = []

    def tell(step: int, steps: int, what: str) -> bool:
        told.append(what)
        return True

    first = gauge(network, config, images()).reference(tmp_path / "f", tell)
    again = gauge(network, config, images()).reference(tmp_path / "f", tell)
    assert len(told) == 1
    assert np.array_equal(first.values, again.values)
    assert first.probabilities is not None
    assert again.probabilities is not None
    assert np.array_equal(first.probabilities, again.probabilities)
    assert (again.extractor, again.digest) == ("quarters", config.quality.extractor if config.quality else "")
    other = gauge(network, config, images(seed=1)).reference(tmp_path / "f", tell)
    assert len(told) == 2
    assert not np.array_equal(first.values, other.values)
    (kept,) = (tmp_path / "f").iterdir()
    kept.write_bytes(b"rotten")
    assert np.array_equal(gauge(network, config, images(seed=1)).reference(tmp_path / "f", tell).values, other.values)
    assert len(told) == 3


def test_statistics_are_the_moments_of_all_images_and_the_same_bytes_each_time(tmp_path: Path, network: Path) -> None:
    config = rules(network, plan="full", reference="federated")
    made = gauge(network, config, images(31)).statistics(tmp_path / "f", on)
    assert gauge(network, config, images(31)).statistics(tmp_path / "f", on) == made
    found, own = Moments.from_bytes(made), Extractor.load(network).features(images(31).pixels).moments()
    assert (found.count, found.digest, found.size) == (31, own.digest, 4)
    assert np.allclose(found.outer, own.outer, rtol=1e-12)
    assert gauge(network, config, images(30)).statistics(tmp_path / "f", on) != made


def test_moments_that_give_the_features_away_are_not_made(tmp_path: Path, network: Path) -> None:
    config = rules(network, plan="full", reference="federated")
    with pytest.raises(DataError, match=r"moments of 4 images give their features away.*at least 5 images"):
        gauge(network, config, images(4)).statistics(tmp_path / "f", on)
    assert Moments.from_bytes(gauge(network, config, images(5)).statistics(tmp_path / "f", on)).count == 5


@pytest.mark.parametrize(
    ("plan", "quality", "tells"),
    [
        ("udec", {"grids": True}, "the quality of this silo's model and a grid of its model's samples"),
        ("full", {"reference": "federated", "grids": True}, "statistics of its images"),
        ("full", {}, "nothing of its quality"),
    ],
)
def test_what_will_be_told_is_said_at_the_start(
    network: Path, caplog: pytest.LogCaptureFixture, plan: str, quality: dict[str, object], tells: str
) -> None:
    with caplog.at_level(logging.INFO, "feddiff.silo"):
        open_extractor(rules(network, plan=plan, **quality), network)
    assert f"this silo will tell the federator {tells}" in caplog.text


def test_a_conditional_model_draws_the_silos_own_classes_in_their_proportions(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = rules(network, classes=4), list[int]()
    real = diffusion.sample

    def sample(*arguments: Any, labels: list[int], **options: Any) -> Any:
        asked.extend(labels)
        return real(*arguments, labels=labels, **options)

    monkeypatch.setattr(diffusion, "sample", sample)
    shown = images(10, [3, 0, 0, 3, 0, 0, 0, 0, 1, 3])
    gauge(network, config, shown).measure(vectors(config), 1, tmp_path / "f", on)
    assert Counter(asked) == {0: 12, 1: 2, 3: 6}
    assert asked != sorted(asked)


def test_a_measurement_stops_when_it_is_told_to(tmp_path: Path, network: Path) -> None:
    config = rules(network)
    calls: list[int] = []

    def tell(step: int, steps: int, what: str) -> bool:
        calls.append(step)
        return len(calls) < 2

    with pytest.raises(Abandoned):
        gauge(network, config, images()).measure(vectors(config), 1, tmp_path / "f", tell)
    assert len(calls) == 2


def test_a_grid_of_large_samples_has_as_many_as_fit(network: Path) -> None:
    config = rules(network, grids=True)
    noise = np.random.default_rng(0).integers(0, 256, (24, 300, 300, 3), np.uint8)
    picture = gauge(network, config, images())._grid(noise)
    assert 0 < len(picture) <= MAX_GRID_BYTES
    grids.check(picture)


def test_when_a_round_is_due(network: Path) -> None:
    every = gauge(network, rules(network, every=2), images())
    assert [number for number in range(1, 6) if every.due(number)] == [2, 4, 5]
    assert not gauge(network, rules(network, plan="full"), images()).due(5)
    assert gauge(network, rules(network, plan="full", silos=True), images()).due(5)


def test_another_extractor_is_refused_in_a_sentence(tmp_path: Path, network: Path) -> None:
    config = rules(network)
    other = replace_digest(config, "00" * 32)
    with pytest.raises(ConfigError, match="is not the federation's extractor"):
        open_extractor(other, network)
    note = tmp_path / "x.pt"
    note.write_bytes(b"no network")
    with pytest.raises(ConfigError, match="no TorchScript"):
        open_extractor(replace_digest(config, hashlib.sha256(b"no network").hexdigest()), note)


@pytest.mark.parametrize(
    ("plan", "quality", "asks"),
    [
        ("udec", {}, "the quality of this silo's model;"),
        ("full", {"silos": True, "reference": "federated"}, "model and statistics of its images;"),
        ("full", {}, ""),
    ],
)
def test_who_gives_no_extractor_hears_once_what_is_asked(
    network: Path, caplog: pytest.LogCaptureFixture, plan: str, quality: dict[str, object], asks: str
) -> None:
    with caplog.at_level(logging.WARNING, "feddiff.silo"):
        assert open_extractor(rules(network, plan=plan, **quality), None) is None
        assert len(caplog.records) == bool(asks)
        assert not asks or (asks in caplog.text and "give --extractor FILE" in caplog.text)


def test_an_extractor_is_of_no_use_where_nothing_is_measured(network: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = from_table({"model": TINY}, "test")
    with caplog.at_level(logging.WARNING, "feddiff.silo"):
        assert open_extractor(config, network) is None
    assert "no [quality]" in caplog.text


def replace_digest(config: FederationConfig, digest: str) -> FederationConfig:
    assert config.quality is not None
    return config.model_copy(update={"quality": config.quality.model_copy(update={"extractor": digest})})


# -- what is told, and how often

NUMBER = Measured("fid", 3.0, None, 20, 12, OWN_IMAGES, "tiny", "ab" * 32, ("biased",))
READING = Reading((NUMBER, replace(NUMBER, metric="kid", spread=0.5)), b"a picture")


class Scales:
    """A gauge that counts; ``fails`` is what it raises."""

    def __init__(self) -> None:
        self.weighed = 0
        self.fails: BaseException | None = None

    def due(self, round: int) -> bool:
        return True

    def measure(self, vectors: object, seed: int, folder: Path, told: Told) -> Reading:
        self.weighed += 1
        if self.fails:
            raise self.fails
        return READING

    def statistics(self, folder: Path, told: Told) -> bytes:
        if self.fails:
            raise self.fails
        return b"moments"


class Ear:
    """A client that keeps what it is told; ``fails`` is what it raises."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Reading]] = []
        self.given: list[bytes] = []
        self.fails: BaseException | None = None

    def measure(self, round: int, reading: Reading) -> None:
        if self.fails:
            raise self.fails
        self.heard.append((round, reading))

    def contribute(self, data: bytes) -> None:
        if self.fails:
            raise self.fails
        self.given.append(data)


class Booth:
    """A witness between the two, over a state folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scales, self.ear = folder, Scales(), Ear()
        self.local = Local(folder)
        self.local.trained.keep(4, {"decoder.0": np.zeros(3, np.float32)}, None, {})

    def measure(self, round: int = 4) -> bool:
        witness = Witness(cast(Gauge, self.scales), self.local, cast(Client, self.ear))
        return witness.measure(round, 1, on)

    @property
    def measured(self) -> int | None:
        return self.local.progress().measured


@pytest.fixture
def booth(tmp_path: Path) -> Booth:
    return Booth(tmp_path / "state")


def test_a_round_is_measured_once_and_told(booth: Booth) -> None:
    assert booth.measured is None
    assert booth.measure()
    assert booth.ear.heard == [(4, READING)]
    assert booth.measured == 4
    assert booth.measure(5)
    assert booth.measured == 5
    assert booth.scales.weighed == 2


def test_what_was_measured_is_told_later_if_the_federator_is_away(booth: Booth) -> None:
    booth.ear.fails = FederatorUnavailable("away")
    with pytest.raises(FederatorUnavailable):
        booth.measure()
    assert booth.measured is None
    booth.ear.fails = None
    assert booth.measure()
    assert booth.ear.heard == [(4, READING)]
    assert booth.scales.weighed == 1, "it was on the disk"


@pytest.mark.parametrize(
    "error", [DataError("too few"), ConfigError("wrong size"), RuntimeError("CUDA out of memory\nmore"), MemoryError()]
)
def test_a_failing_measurement_is_a_warning(booth: Booth, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    booth.scales.fails = error
    with caplog.at_level(logging.WARNING, "feddiff.silo"):
        assert booth.measure()
    assert booth.ear.heard == []
    assert booth.measured == 4
    assert [record.getMessage().startswith("round 4 is not measured: ") for record in caplog.records] == [True]


@pytest.mark.parametrize("error", [ProtocolError("the federator does not understand this silo"), DataError("no")])
def test_a_refused_measurement_is_a_warning(booth: Booth, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    booth.ear.fails = error
    with caplog.at_level(logging.WARNING, "feddiff.silo"):
        assert booth.measure()
    assert booth.measured == 4
    assert str(error) in caplog.text


@pytest.mark.parametrize("error", [RoundClosed("over"), Revoked("out")])
def test_what_concerns_the_whole_silo_is_passed_on(booth: Booth, error: Exception) -> None:
    booth.ear.fails = error
    with pytest.raises(type(error)):
        booth.measure()
    assert booth.measured is None


def test_an_abandoned_measurement_is_not_done(booth: Booth) -> None:
    booth.scales.fails = Abandoned()
    assert not booth.measure()
    assert booth.measured is None


@pytest.mark.parametrize("who", ["scales", "ear"])
def test_what_fails_again_and_again_is_given_up(booth: Booth, who: str, caplog: pytest.LogCaptureFixture) -> None:
    part = {"scales": booth.scales, "ear": booth.ear}[who]
    killed: Callable[[], BaseException] = KeyboardInterrupt if who == "scales" else lambda: FederatorUnavailable("x")
    part.fails = killed()  # the one as good as a kill: nothing in the process catches it
    for _ in range(ATTEMPTS):
        with pytest.raises(type(part.fails)):
            booth.measure()
    with caplog.at_level(logging.WARNING, "feddiff.silo"):
        assert booth.measure()
    assert "goes on without its measurement" in caplog.text
    assert booth.measured == 4
    part.fails = None
    assert booth.measure(5)
    assert [round for round, _ in booth.ear.heard] == [5]


def test_a_damaged_note_means_measuring_anew(booth: Booth) -> None:
    assert booth.measure()
    (booth.folder / "measured.json").write_text("{")
    assert booth.measured is None
    assert booth.measure()
    assert booth.scales.weighed == 2


def test_statistics_are_contributed_unless_they_are_known(booth: Booth) -> None:
    witness = Witness(cast(Gauge, booth.scales), booth.local, cast(Client, booth.ear))
    data = witness.statistics(on)
    witness.contribute(data, "00" * 32)
    assert booth.ear.given == [data]
    witness.contribute(data, hashlib.sha256(data).hexdigest())
    assert len(booth.ear.given) == 1
    booth.ear.fails = ProtocolError("no")
    witness.contribute(data, "")
    for error in (StoreError("full"), Abandoned()):
        booth.scales.fails = error
        assert witness.statistics(on) == b""
    witness.contribute(b"", "")
    assert len(booth.ear.given) == 1
