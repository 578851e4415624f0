"""federator/publisher.py: what is folded ahead counts only if the round ends with it, and never outlives the round."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feddiff.core.codec import CODECS
from feddiff.core.config import from_table
from feddiff.core.fold import BadUpdate
from feddiff.core.sections import WeightsConfig
from feddiff.core.segments import F32, cut
from feddiff.core.spool import Spool, checksum
from feddiff.core.store import WeightsReader, save
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import Entry
from feddiff.federator.publisher import Publisher
from feddiff.federator.weighting import LOSS

LAYOUT = cut([("conv_in.weight", (30,)), ("mid_block.a", (2500,)), ("up_blocks.0.a", (1500,))])
SILOS = ("clinic-a", "clinic-b", "clinic-c")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """In round 1, with three clinics of 1, 2 and 3 images."""
    rules = {
        "model": {"sample_size": 8, "in_channels": 1, "out_channels": 1},
        "codec": {"chunk_elements": 1024},
        "rounds": {"count": 3, "participants": 3, "quorum": 1},
    }
    federation = Federation(tmp_path, from_table(rules, "test"), LAYOUT, Database(tmp_path / "federation.db"))
    with WeightsReader(save(tmp_path / "initial", {each.name: zeros(each.size) for each in LAYOUT.segments})) as reader:
        for name in LAYOUT.names:
            federation.versions.publish_initial(name, reader)
    federation.journal.publish(dict.fromkeys(LAYOUT.names, 0), None, (), time.time())
    federation.current = federation.journal.current()
    for samples, silo in enumerate(SILOS, start=1):
        federation.roster.invite(silo, b"pem", silo, time.time() + 60)
        federation.roster.enroll(silo, silo, f"key of {silo}", samples, time.time())
        federation.join(silo, samples, {}, dict.fromkeys(LAYOUT.names, 0), "cpu", "feddiff")
    federation.begin_round(SILOS, "all are here")
    return federation


def zeros(size: int) -> F32:
    return np.zeros(size, np.float32)


def hand_in(federation: Federation, silo: str, value: float) -> None:
    """An update that moves every weight to a value."""
    for manifest in federation.uploads(silo):
        spool = Spool(manifest.path(federation.spool(manifest.version)), manifest)
        for index in range(manifest.chunks):
            values = np.full(manifest.count(index), value, np.float32)
            payload = CODECS[manifest.codec].encode(values, zeros(values.size))
            spool.append(index, payload, checksum(payload))
        digest = spool.digest()
        spool.commit(digest)
        cost = Entry(manifest.version, silo, manifest.segment, "up")
        federation.committed_segment(silo, manifest.version, manifest.segment, digest, cost)


def published(federation: Federation, segment: str, version: int) -> float:
    with WeightsReader(federation.versions.weights(segment, version)) as reader:
        (value,) = set(reader.read(segment).tolist())
    return float(value)


class Slow:
    """Folds that wait until they are let go."""

    def __init__(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.ended = threading.Event(), threading.Event(), 0
        publish = federation.versions.publish

        def slowly(*arguments: object) -> None:
            self.begun.set()
            self.go.wait(30)
            publish(*arguments)  # type: ignore[arg-type]
            self.ended += 1

        monkeypatch.setattr(federation.versions, "publish", slowly)


def test_what_is_complete_is_folded_before_the_round_ends(federation: Federation) -> None:
    publisher = Publisher(federation)
    hand_in(federation, SILOS[0], 6.0)
    publisher.ahead([])
    assert not federation.versions.weights("bottleneck", 1).exists(), "others have yet to report it"
    for silo in SILOS[1:]:
        hand_in(federation, silo, 6.0)
    publisher.ahead([])
    publisher.close()
    assert federation.versions.weights("bottleneck", 1).exists()
    assert federation.current["bottleneck"] == 0, "the journal has not said so"


def test_a_silo_that_drops_out_is_not_in_the_average_though_it_was_folded_ahead(federation: Federation) -> None:
    publisher = Publisher(federation)
    for silo, value in zip(SILOS, (3.0, 6.0, 600.0), strict=True):
        hand_in(federation, silo, value)
    publisher.ahead([])
    assert federation.round is not None
    assert publisher.publish(federation.round, SILOS[:2]) == dict.fromkeys(LAYOUT.names, 1)
    assert {published(federation, name, 1) for name in LAYOUT.names} == {5.0}


def test_a_round_that_ends_without_a_change_leaves_no_fold_at_work(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, publisher = Slow(federation, monkeypatch), Publisher(federation)
    for silo in SILOS:
        hand_in(federation, silo, 6.0)
    publisher.ahead([])
    assert slow.begun.wait(10)
    threading.Timer(0.2, slow.go.set).start()
    assert federation.round is not None
    assert publisher.publish(federation.round, ()) == {}
    assert slow.ended == len(LAYOUT.names)


def test_a_bad_update_is_named_and_the_others_can_go_on(federation: Federation) -> None:
    publisher = Publisher(federation)
    for silo in SILOS:
        hand_in(federation, silo, 6.0)
    assert federation.round is not None
    spooled = federation.versions.upload(1, SILOS[1], "bottleneck", 0).path(federation.spool(1))
    spooled.write_bytes(spooled.read_bytes()[:-1])
    publisher.ahead([])
    with pytest.raises(BadUpdate, match=SILOS[1]):
        publisher.publish(federation.round, SILOS)
    assert set(publisher.publish(federation.round, (SILOS[0], SILOS[2]))) == set(LAYOUT.names)


def weighed(federation: Federation, **keys: Any) -> None:
    federation.config = federation.config.model_copy(update={"weights": WeightsConfig.model_validate(keys)})


def tell(federation: Federation, silo: str, loss: float) -> None:
    assert federation.report(silo, 1, "submitting", 0, 0, {LOSS: loss})


class TestWeights:
    """Clinics of 1, 2 and 3 images, which move every weight to 3, 6 and 12."""

    VALUES = (3.0, 6.0, 12.0)

    def publish(self, federation: Federation, silos: tuple[str, ...] = SILOS) -> set[float]:
        assert federation.round is not None
        Publisher(federation).publish(federation.round, silos)
        return {published(federation, name, 1) for name in LAYOUT.names}

    def test_uniform(self, federation: Federation) -> None:
        weighed(federation, by="uniform")
        for silo, value in zip(SILOS, self.VALUES, strict=True):
            hand_in(federation, silo, value)
        assert self.publish(federation) == {7.0}

    def test_by_loss(self, federation: Federation) -> None:
        """q = 2, losses 2, 1, 2: weights 4, 2, 12; (4 3 + 2 6 + 12 12) / 18."""
        weighed(federation, by="loss", q=2.0)
        for silo, value, loss in zip(SILOS, self.VALUES, (2.0, 1.0, 2.0), strict=True):
            tell(federation, silo, loss)
            hand_in(federation, silo, value)
        (value,) = self.publish(federation)
        assert value == pytest.approx(168 / 18, rel=1e-6)

    def test_who_told_no_loss_is_named_and_the_others_go_on(self, federation: Federation) -> None:
        weighed(federation, by="loss", q=1.0)
        for silo, value in zip(SILOS, self.VALUES, strict=True):
            if silo != SILOS[1]:
                tell(federation, silo, 1.0)
            hand_in(federation, silo, value)
        with pytest.raises(BadUpdate, match=f"{SILOS[1]}: it told no"):
            self.publish(federation)
        assert self.publish(federation, (SILOS[0], SILOS[2])) == {(3 + 3 * 12) / 4}

    def test_a_loss_told_again_counts_also_in_what_was_folded_ahead(self, federation: Federation) -> None:
        """All segments have the same weights, also those that were complete before the silo thought better of it."""
        weighed(federation, by="loss", q=1.0)
        publisher = Publisher(federation)
        for silo, value in zip(SILOS, self.VALUES, strict=True):
            federation.journal.measure(1, silo, {LOSS: 6.0 if silo == SILOS[0] else 1.0})
            hand_in(federation, silo, value)
        publisher.ahead([])
        federation.journal.measure(1, SILOS[0], {LOSS: 1.0})
        assert federation.round is not None
        publisher.publish(federation.round, SILOS)
        assert {published(federation, name, 1) for name in LAYOUT.names} == {(3 + 2 * 6 + 3 * 12) / 6}

    def test_after_all_is_committed_nothing_is_heard_any_more(self, federation: Federation) -> None:
        weighed(federation, by="loss", q=1.0)
        tell(federation, SILOS[0], 2.0)
        hand_in(federation, SILOS[0], 3.0)
        assert not federation.report(SILOS[0], 1, "submitting", 0, 0, {LOSS: 9.0})
        assert federation.journal.metrics(1)[1][SILOS[0]] == {LOSS: 2.0}
