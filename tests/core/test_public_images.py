"""core/pool.py: public images are drawn by the seed, survive as bytes, and are believed only as far as checked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.core.codec import UINT8, pack
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError, FedDiffError, ProtocolError, TooLarge
from feddiff.core.images import Images
from feddiff.core.pool import (
    CHUNK,
    MAX_BYTES,
    Portion,
    chosen,
    decode,
    draw,
    encode,
    from_bytes,
    image_bytes,
    mixed,
    part,
    portion,
    to_bytes,
)
from feddiff.core.spool import Manifest, Spool, checksum
from feddiff.core.transfer import Receiver, Sender


def rules(classes: int = 0, conditional: bool = False, size: int = 4, channels: int = 3) -> FederationConfig:
    model = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    more = {"num_class_embeds": classes} if conditional else {}
    table = {"model": {**model, **more}, "data": {"classes": [f"c{each}" for each in range(classes)]}}
    return from_table({**table, "pool": {"alpha": 0.5, "beta": 0.5}}, "rules.toml")


def pictures(config: FederationConfig, count: int, seed: int = 0) -> Images:
    random, size = np.random.default_rng(seed), config.model["sample_size"]
    pixels = random.integers(0, 256, (count, config.model["in_channels"], size, size), np.uint8)
    labels = random.integers(0, len(config.data.classes), count) if config.data.classes else None
    return Images(pixels, labels, {}, ())


@pytest.mark.parametrize(
    ("share", "of", "count"),
    [(0.25, 2000, 500), (0.29, 100, 29), (0.1, 138, 13), (0.5, 13, 6), (1, 7, 7), (0.001, 10, 1), (0, 10, 0)],
)
def test_a_share_is_what_it_is_in_decimals_rounded_down(share: float, of: int, count: int) -> None:
    assert part(share, of) == count


@given(st.integers(0, 1 << 40), st.integers(1, 300), st.data())
def test_a_draw_is_without_repeats_and_by_seed_and_name(seed: int, of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, of))
    found = draw(seed, "hospital-a", of, count)
    assert len(set(found.tolist())) == count
    assert np.array_equal(found, np.sort(found))
    assert 0 <= found[0] <= found[-1] < of
    assert np.array_equal(found, draw(seed, "hospital-a", of, count))


def test_two_silos_share_as_many_as_chance_has_it() -> None:
    """Two draws of n out of N have n^2 / N in common, hypergeometric: 250 here, standard deviation 8."""
    sets = [set(draw(0, f"hospital-{each}", 1000, 500).tolist()) for each in range(20)]
    common = [len(one & two) for at, one in enumerate(sets) for two in sets[:at]]
    assert np.mean(common) == pytest.approx(250, abs=3)
    assert all(210 < each < 290 for each in common)
    assert draw(1, "hospital-0", 1000, 500).tolist() != draw(0, "hospital-0", 1000, 500).tolist()


@pytest.mark.parametrize("classes", [0, 3])
def test_images_become_bytes_and_back(classes: int) -> None:
    config = rules(classes)
    images = pictures(config, 5)
    data = to_bytes(images)
    assert len(data) == 5 * image_bytes(config) == 5 * (48 + (4 if classes else 0))
    found = from_bytes(data, config)
    assert np.array_equal(found.pixels, images.pixels)
    if images.labels is None:
        assert (found.labels, found.counts) == (None, {"": 5})
    else:
        assert np.array_equal(found.labels, images.labels)
        assert sum(found.counts.values()) == 5
        assert found.counts.keys() <= set(config.data.classes)


def test_images_without_a_label_only_where_the_model_needs_none() -> None:
    images = replace(pictures(rules(3), 2), labels=np.array([-1, 2]))
    assert from_bytes(to_bytes(images), rules(3)).counts == {"": 1, "c2": 1}
    with pytest.raises(DataError, match="labels -1 to 2, of 3"):
        from_bytes(to_bytes(images), rules(3, conditional=True))


@given(st.binary(max_size=400))
def test_any_bytes_are_images_or_an_error(data: bytes) -> None:
    config = rules(3, conditional=True)
    try:
        found = from_bytes(data, config)
    except FedDiffError:
        return
    assert to_bytes(found) == data
    assert found.labels is not None
    assert set(found.labels.tolist()) <= {0, 1, 2}


def test_mixed_are_the_silos_own_then_the_public_ones() -> None:
    config = rules(3)
    own, public = pictures(config, 4), from_bytes(to_bytes(pictures(config, 3, seed=1)), config)
    both = mixed(replace(own, counts={"c0": 4}), public)
    assert np.array_equal(both.pixels, np.concatenate([own.pixels, public.pixels]))
    assert own.labels is not None
    assert public.labels is not None
    assert both.labels is not None
    assert both.labels.tolist() == [*own.labels.tolist(), *public.labels.tolist()]
    assert sum(both.counts.values()) == 7
    assert mixed(pictures(rules(), 1), pictures(rules(), 1)).labels is None


def test_a_portion_travels_by_the_transfers_of_weights(tmp_path: Path) -> None:
    config = rules(size=256)
    data = to_bytes(chosen(pictures(config, 9), np.array([0, 2, 3, 7, 8])))
    offered = portion("hospital-a", data)
    assert (offered.manifest.raw, offered.manifest.parameters, offered.count(config)) == (len(data), 0, 5)
    assert offered.digest == hashlib.sha256(data).hexdigest()
    offered.check(config)
    (tmp_path / "there").mkdir()
    encode(offered, data, tmp_path / "here")

    from feddiff.core.spool import Transfer

    sender = Sender([offered.manifest], lambda manifest: Transfer(manifest.path(tmp_path / "here")))
    receiver = Receiver(tmp_path / "there", [offered.manifest])
    for each in sender.parts(receiver.standing()):
        receiver.commit(each) if not hasattr(each, "payload") else receiver.chunk(each)
    sender.close()
    assert decode(offered, tmp_path / "there", config) == data


def test_a_manifest_of_weights_is_never_one_of_images() -> None:
    with pytest.raises(ProtocolError, match="no codec 'uint8'"):
        Manifest("down.decoder.0.x-1", "decoder.0", -1, 1, UINT8, 10, 10)
    assert not Manifest("pool.a", "pool", -1, 0, "fp32", 10, 10).public


def manifest(elements: int = 5 * 48, segment: str = "pool", base: int = -1, codec: str = UINT8) -> Manifest:
    return Manifest("pool.a", segment, base, 0, codec, elements, CHUNK)


class TestOffers:
    """What a federator offers, before a byte of it is fetched."""

    @pytest.mark.parametrize(
        ("offered", "why"),
        [
            (Portion(manifest(5 * 48 + 1), "0" * 64), "not whole images"),
            (Portion(manifest(MAX_BYTES // 48 * 48 + 48), "0" * 64), "not whole images of 48, or more than"),
            (Portion(manifest(codec="fp32"), "0" * 64), "no transfer of public images"),
            (Portion(manifest(segment="decoder.0", codec="fp32"), "0" * 64), "no transfer of public images"),
            (Portion(manifest(), "../../etc"), "no transfer of public images"),
            (Portion(manifest(), ""), "no transfer of public images"),
        ],
    )
    def test_that_cannot_be_are_refused(self, offered: Portion, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            offered.check(rules())

    def test_are_refused_where_the_rules_share_nothing(self) -> None:
        for pool in (None, {"alpha": 0.0, "beta": 0.5, "warmup": 1}):
            table = {"preset": "digits-8", **({"pool": pool} if pool else {})}
            with pytest.raises(ProtocolError, match="the rules know nothing of"):
                Portion(manifest(), "0" * 64).check(from_table(table, "rules.toml"))


class TestTransfers:
    """What a federator sends, which every chunk's checksum and the commit agree with."""

    def sent(self, folder: Path, payload: bytes, offered: Portion) -> None:
        spool = Spool(offered.manifest.path(folder), offered.manifest)
        spool.append(0, payload, checksum(payload))
        spool.commit(spool.digest())

    def test_of_other_bytes_are_refused(self, tmp_path: Path) -> None:
        offered = portion("a", bytes(5 * 48))
        self.sent(tmp_path, pack(np.ones(5 * 48, np.uint8)), offered)
        with pytest.raises(ProtocolError, match="other bytes than were offered"):
            decode(offered, tmp_path, rules())

    def test_that_unpack_to_more_are_refused_before_they_are(self, tmp_path: Path) -> None:
        offered = portion("a", bytes(5 * 48))
        self.sent(tmp_path, pack(np.zeros(1 << 28, np.uint8))[:900], offered)
        with pytest.raises(ProtocolError, match="states 268435456 bytes"):
            decode(offered, tmp_path, rules())

    def test_of_labels_that_there_are_not_are_refused(self, tmp_path: Path) -> None:
        data = np.array([0, 3], "<i4").tobytes() + bytes(2 * 48)
        offered = portion("a", data)
        encode(offered, data, tmp_path)
        with pytest.raises(ProtocolError, match="labels 0 to 3, of 3 classes"):
            decode(offered, tmp_path, rules(3))

    def test_of_too_much_payload_are_refused_as_they_come(self, tmp_path: Path) -> None:
        offered = portion("a", bytes(5 * 48))
        spool = Spool(offered.manifest.path(tmp_path), offered.manifest)
        with pytest.raises(TooLarge):
            spool.append(0, bytes(2000), checksum(bytes(2000)))
        spool.close()
