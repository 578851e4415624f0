"""bench/partition.py and bench/dataset.py: every image goes to one silo, and each split keeps its promise."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from feddiff.bench import dataset, partition
from feddiff.bench.partition import Split
from feddiff.core.errors import ConfigError, DataError

LABELS = st.lists(st.integers(0, 6), min_size=40, max_size=200).map(lambda each: np.array(each, np.int64))
SILOS = st.integers(1, 6)
SEED = st.integers(0, 1 << 40)
SPLITS = st.sampled_from(
    [Split("iid"), Split("dirichlet", beta=0.5), Split("dirichlet", beta=5.0), Split("quantity", beta=1.0)]
)


@given(LABELS, SILOS, SEED, SPLITS)
def test_every_image_is_dealt_once(labels: np.ndarray, silos: int, seed: int, split: Split) -> None:
    dealt = split.deal(labels, silos, seed)
    assert len(dealt) == silos
    assert min(part.size for part in dealt) >= 1
    assert np.sort(np.concatenate(dealt)).tolist() == list(range(labels.size))
    assert all((np.diff(part) > 0).all() for part in dealt)


@given(LABELS, SILOS, SEED, SPLITS)
@settings(max_examples=30)
def test_a_seed_is_a_deal(labels: np.ndarray, silos: int, seed: int, split: Split) -> None:
    once, again = split.deal(labels, silos, seed), split.deal(labels, silos, seed)
    assert [part.tolist() for part in once] == [part.tolist() for part in again]


@pytest.mark.parametrize("split", [Split("iid"), Split("dirichlet", beta=1.0), Split("k-class", classes=2)])
def test_another_seed_is_another_deal(split: Split) -> None:
    labels = np.arange(300) % 5
    dealt = {tuple(map(tuple, split.deal(labels, 4, seed))) for seed in range(5)}
    assert len(dealt) == 5


@given(LABELS, SILOS, SEED)
def test_iid_shares_are_equal_to_one(labels: np.ndarray, silos: int, seed: int) -> None:
    sizes = [part.size for part in partition.iid(labels, silos, seed)]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), SEED)
def test_k_class_gives_at_most_k_and_leaves_no_class_out(silos: int, most: int, classes: int, seed: int) -> None:
    labels = np.arange(classes * 40) % classes
    if silos * min(most, classes) < classes:
        with pytest.raises(ConfigError, match="to nobody"):
            partition.k_class(labels, silos, most, seed)
        return
    dealt = partition.k_class(labels, silos, most, seed)
    assert np.sort(np.concatenate(dealt)).tolist() == list(range(labels.size))
    assert {np.unique(labels[part]).size for part in dealt} == {min(most, classes)}


def test_beta_decides_how_unequal() -> None:
    labels = np.arange(5000) % 10

    def unequal(beta: float) -> float:
        dealt = partition.quantity(labels, 5, beta, seed=1)
        return float(np.std([part.size for part in dealt]))

    assert unequal(0.3) > 5 * unequal(100.0)


@pytest.mark.parametrize(
    ("split", "silos", "least", "why"),
    [
        (Split("iid"), 0, 1, "0 silos"),
        (Split("iid"), 11, 10, "110|at least 10"),
        (Split("dirichlet", beta=0.0), 2, 1, "beta"),
        (Split("dirichlet", beta=0.01), 5, 19, "raise beta"),
        (Split("quantity", beta=0.01), 5, 19, "raise beta"),
        (Split("k-class", classes=1), 4, 24, "24"),
        (Split("folders"), 2, 1, "folder"),
    ],
)
def test_what_cannot_be_is_said(split: Split, silos: int, least: int, why: str) -> None:
    labels = np.array([0] * 80 + [1] * 20)
    with pytest.raises(ConfigError, match=why):
        split.deal(labels, silos, 0, least)


@pytest.mark.parametrize(("kind", "beta", "k"), [("ring", 0.5, 2), ("dirichlet", 0.0, 2), ("k-class", 0.5, 0)])
def test_splits_that_there_are_not(kind: str, beta: float, k: int) -> None:
    with pytest.raises(ConfigError):
        partition.split(kind, beta, k)


def labelled(root: Path, counts: dict[str, int]) -> Path:
    """A folder LABEL/NUMBER.png; every picture is another."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), (len(label) * 50 + number) % 256).save(root / label / f"{number}.png")
    return root


class TestFolders:
    def test_images_are_linked_below_silo_and_label(self, tmp_path: Path) -> None:
        source = labelled(tmp_path / "ct", {"a": 6, "b": 4})
        counts = dataset.folder(source).deal(Split("iid"), 3, 0, 1, tmp_path / "out")
        assert list(counts) == ["silo-1", "silo-2", "silo-3"]
        files = sorted((tmp_path / "out").rglob("*.png"))
        assert len(files) == 10
        for file in files:
            assert file.samefile(source / file.relative_to(tmp_path / "out" / file.parts[-3]))
            assert counts[file.parts[-3]][file.parts[-2]] > 0
        assert sum(sum(each.values()) for each in counts.values()) == 10

    def test_they_are_copied_where_links_fail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        source = labelled(tmp_path / "ct", {"a": 2})
        monkeypatch.setattr(os, "link", refuse)
        dataset.folder(source).deal(Split("iid"), 1, 0, 1, tmp_path / "out")
        copy = tmp_path / "out" / "silo-1" / "a" / "0.png"
        assert not copy.samefile(source / "a" / "0.png")
        assert copy.read_bytes() == (source / "a" / "0.png").read_bytes()

    def test_each_folder_is_a_silo_if_asked(self, tmp_path: Path) -> None:
        labelled(tmp_path / "all" / "north", {"a": 2, "b": 1})
        labelled(tmp_path / "all" / "south", {"b": 3})
        images = dataset.folder(tmp_path / "all", by_silo=True)
        counts = images.deal(Split("folders"), 2, 0, 1, tmp_path / "out")
        assert counts == {"north": {"a": 2, "b": 1}, "south": {"b": 3}}
        pooled = images.deal(Split("iid"), 1, 0, 1, tmp_path / "pooled")
        assert pooled == {"silo-1": {"a": 2, "b": 4}}

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for root in (tmp_path / "empty", tmp_path / "nowhere"):
            with pytest.raises(DataError, match=root.name):
                dataset.folder(root)

    def test_what_is_held_out_is_never_trained_on_and_staged_once(self, tmp_path: Path) -> None:
        source = labelled(tmp_path / "ct", {"a": 20, "b": 10})
        staged = dataset.stage(str(source), None, 5, None, False, tmp_path / "run")
        train = {path.as_posix() for path in staged.train.images}
        test = {path.relative_to(staged.test).as_posix() for path in staged.test.rglob("*.png")}
        assert (len(train), len(test), train & test) == (24, 6, set())
        again = dataset.stage(str(source), None, 5, None, False, tmp_path / "run")
        assert again == staged
        picture = (source / "a" / "1.png").read_bytes()
        (source / "a" / "1.png").write_bytes(picture[:-1] + bytes([picture[-1] ^ 1]))  # of the same name and size
        assert dataset.stage(str(source), None, 5, None, False, tmp_path / "run").digest != staged.digest
        (source / "a" / "1.png").write_bytes(picture)
        (source / "a" / "0.png").unlink()
        assert dataset.stage(str(source), None, 5, None, False, tmp_path / "run").digest != staged.digest

    @pytest.mark.parametrize(("pool", "public"), [(0.25, {"a": 4, "b": 2}), (9, {"a": 6, "b": 3})])
    def test_public_images_are_no_silos_and_of_all_labels(
        self, pool: float, public: dict[str, int], tmp_path: Path
    ) -> None:
        source = labelled(tmp_path / "ct", {"a": 16, "b": 8})
        labelled(tmp_path / "test", {"a": 2, "b": 2})
        given = (str(source), str(tmp_path / "test"), 5, None, False, tmp_path / "run")
        staged = dataset.stage(*given, pool)
        assert staged.pool is not None
        found = {path.relative_to(staged.pool).as_posix() for path in staged.pool.rglob("*.png")}
        train = {path.as_posix() for path in staged.train.images}
        assert Counter(path.split("/")[0] for path in found) == public
        assert (len(train) + len(found), train & found) == (24, set())
        assert dataset.stage(*given, pool) == staged
        assert dataset.staged(staged.digest, False, tmp_path / "run") == staged
        plain = dataset.stage(*given)
        assert (plain.pool, len(plain.train.images)) == (None, 24)
        assert plain.digest != staged.digest
        with pytest.raises(ConfigError, match="takes 24 of 24 training images"):
            dataset.stage(*given, 24)

    def test_arrays_among_images_are_refused_in_a_sentence(self, tmp_path: Path) -> None:
        source = labelled(tmp_path / "ct", {"a": 2})
        (source / "a" / "stack.npy").write_bytes(b"")
        with pytest.raises(DataError, match=r"holds 1 \.npy files, which silos read"):
            dataset.folder(source)

    def test_no_more_than_asked_for(self, tmp_path: Path) -> None:
        source = labelled(tmp_path / "ct", {"a": 20})
        labelled(tmp_path / "test", {"a": 9})
        staged = dataset.stage(str(source), str(tmp_path / "test"), 5, 7, False, tmp_path / "run")
        assert len(staged.train.images) == 7
        assert len(list(staged.test.rglob("*.png"))) == 7


def test_the_chart_says_every_number() -> None:
    counts = {"silo-1": {"0": 12, "10": 3}, "silo-2": {"2": 1234}}
    (axes, _) = partition.chart(counts, "ct: iid").axes
    told = [text.get_text() for text in axes.texts]
    assert sorted(told) == sorted(["12", "3", "1234", "15", "1,234", "all"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "2", "10"]
