"""bench/archive.py: archives become folders of images, and hostile ones become nothing."""

from __future__ import annotations

import io
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddiff.bench import archive, cli, dataset
from feddiff.core.errors import DataError


def png(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestZip:
    @pytest.mark.parametrize("around", ["", "cifar/"])
    def test_labels_are_folders_with_or_without_one_around(self, around: str, tmp_path: Path) -> None:
        members = {f"{around}cat/1.png": png(1), f"{around}dog/1.JPG": png(2), f"{around}cat/deep/2.png": png(3)}
        members |= {f"{around}README.txt": b"no image", f"{around}cat/.hidden.png": b"", "__MACOSX/cat/1.png": b""}
        home = archive.unpack(zipped(tmp_path / "a.zip", members), tmp_path / "data")
        assert files(home) == ["cat/1.png", "cat/deep/2.png", "dog/1.JPG"]
        assert (home / "cat/1.png").read_bytes() == png(1)

    def test_silos_are_folders_too(self, tmp_path: Path) -> None:
        members = {"site/north/cat/1.png": png(), "site/south/cat/1.png": png()}
        home = archive.unpack(zipped(tmp_path / "a.zip", members), tmp_path / "data", by_silo=True)
        assert dataset.folder(home, by_silo=True).silos == ("north", "south")

    def test_one_label_is_no_folder_around(self, tmp_path: Path) -> None:
        home = archive.unpack(zipped(tmp_path / "a.zip", {"cat/1.png": png(), "cat/2.png": png()}), tmp_path / "data")
        assert files(home) == ["cat/1.png", "cat/2.png"]

    def test_it_is_unpacked_once_and_anew_when_it_changed(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", {"cat/1.png": png(1)})
        first = archive.unpack(path, tmp_path / "data")
        inode = (first / "cat/1.png").stat().st_ino
        assert archive.unpack(path, tmp_path / "data") == first
        assert (first / "cat/1.png").stat().st_ino == inode
        second = archive.unpack(zipped(path, {"cat/1.png": png(2)}), tmp_path / "data")
        assert second != first
        assert (second / "cat/1.png").read_bytes() == png(2)

    @pytest.mark.parametrize("name", ["../1.png", "cat/../../1.png", "/cat/1.png", "cat\\..\\..\\1.png"])
    def test_nothing_lies_outside(self, name: str, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", {"cat/1.png": png(), name: png()})
        with pytest.raises(DataError, match="outside"):
            archive.unpack(path, tmp_path / "data")
        assert files(tmp_path) == ["a.zip"]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @given(st.lists(st.text("a./\\:é ", min_size=1, max_size=9), min_size=1, max_size=4))
    def test_whatever_the_names_are(self, names: list[str]) -> None:
        with tempfile.TemporaryDirectory() as place:
            tmp = Path(place)
            path = zipped(tmp / "a.zip", {f"{name}.png": b"image" for name in names})
            try:
                home = archive.unpack(path, tmp / "inner" / "data")
            except DataError:
                assert files(tmp) == ["a.zip"]
            else:
                assert all(file == "a.zip" or file.startswith(f"inner/data/{home.name}/") for file in files(tmp))

    def test_links_are_refused(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            info = zipfile.ZipInfo("cat/1.png")
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            out.writestr(info, "/etc/passwd")
        with pytest.raises(DataError, match="link"):
            archive.unpack(tmp_path / "a.zip", tmp_path / "data")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize(
        "names", [("cat/1.png", "cat/1.png"), ("cat.png", "cat.png/1.png"), ("c.png/d.png", "c.png")]
    )
    def test_two_files_of_one_name_are_refused(self, names: tuple[str, str], tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            for name in names:
                out.writestr(name, png())
        with pytest.raises(DataError, match="twice"):
            archive.unpack(tmp_path / "a.zip", tmp_path / "data")
        assert files(tmp_path) == ["a.zip"]

    @pytest.mark.parametrize(
        ("bound", "value"), [("MOST_IMAGES", 1), ("LARGEST_IMAGE", 10), ("LARGEST_SUM", 2 * len(png()) - 1)]
    )
    def test_too_much_is_refused_before_it_is_unpacked(
        self, bound: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = zipped(tmp_path / "a.zip", {"cat/1.png": png(), "cat/2.png": png()})
        monkeypatch.setattr(archive, bound, value)
        with pytest.raises(DataError, match=r"too much|too many"):
            archive.unpack(path, tmp_path / "data")
        assert files(tmp_path) == ["a.zip"]

    def test_a_member_that_is_longer_than_it_says_is_refused(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", {"cat/1.png": bytes(5000)})
        raw = bytearray(path.read_bytes())
        directory = raw.index(b"PK\x01\x02")
        raw[directory + 24 : directory + 28] = (100).to_bytes(4, "little")  # its size, uncompressed
        path.write_bytes(raw)
        with pytest.raises(DataError, match="damaged"):
            archive.unpack(path, tmp_path / "data")
        assert files(tmp_path) == ["a.zip"]

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"zip" * 100])
    def test_what_is_no_archive_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.zip"):
            archive.unpack(tmp_path / "a.zip", tmp_path / "data")

    def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            archive.unpack(tmp_path / "a.zip", tmp_path / "data")


def npz(path: Path, **arrays: npt.NDArray[Any]) -> Path:
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return path


PIXELS = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)


class TestArrays:
    @pytest.mark.parametrize(
        ("labels", "names"),
        [(np.array([1, 0, 10, 1]), ("1", "0", "10", "1")), (np.array(["b", "a", "é", "b"]), ("b", "a", "é", "b"))],
    )
    @pytest.mark.parametrize("channels", [(), (1,), (3,)])
    def test_npz_becomes_the_same_pixels(
        self, labels: npt.NDArray[Any], names: tuple[str, ...], channels: tuple[int, ...], tmp_path: Path
    ) -> None:
        images = PIXELS if not channels else np.repeat(PIXELS[..., None], channels[0], axis=3)
        home = archive.unpack(npz(tmp_path / "a.npz", images=images, labels=labels), tmp_path / "data")
        assert files(home) == sorted(f"{name}/{number}.png" for number, name in enumerate(names))
        for number, name in enumerate(names):
            with Image.open(home / name / f"{number}.png") as picture:
                found = np.asarray(picture)
            np.testing.assert_array_equal(found, images[number].squeeze())

    def test_npy_has_its_labels_beside_it_or_none(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", PIXELS)
        assert files(archive.unpack(tmp_path / "a.npy", tmp_path / "data")) == ["0.png", "1.png", "2.png", "3.png"]
        np.save(tmp_path / "a.labels.npy", np.array([0, 0, 1, 1]))
        assert files(archive.unpack(tmp_path / "a.npy", tmp_path / "data"))[0] == "0/0.png"

    @pytest.mark.parametrize(
        ("arrays", "names"),
        [
            ({"labels": np.zeros(4, np.int64)}, "no array 'images'"),
            ({"images": PIXELS.astype(np.float32)}, "uint8"),
            ({"images": PIXELS[0]}, "uint8 of N x H x W"),
            ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "N x H x W"),
            ({"images": PIXELS[:0]}, "none"),
            ({"images": PIXELS, "labels": np.zeros(3, np.int64)}, "labels must be 4"),
            ({"images": PIXELS, "labels": np.zeros(4)}, "labels must be 4"),
            ({"images": PIXELS, "labels": np.array([None] * 4)}, "a.npz"),
            ({"images": np.array([PIXELS, None], object)}, "a.npz"),
            ({"images": PIXELS, "labels": np.array(["../x"] * 4)}, "cannot be the name of a folder"),
            ({"images": PIXELS, "labels": np.array([".x"] * 4)}, "cannot be the name of a folder"),
            ({"images": PIXELS, "labels": np.array([""] * 4)}, "cannot be the name of a folder"),
        ],
    )
    def test_other_arrays_are_refused(self, arrays: dict[str, npt.NDArray[Any]], names: str, tmp_path: Path) -> None:
        path = npz(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=names):
            archive.unpack(path, tmp_path / "data")
        assert files(tmp_path) == ["a.npz"]

    def test_a_header_is_believed_as_far_as_the_file_is_long(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 64, 64)}
        )
        path = zipped(tmp_path / "a.npz", {"images.npy": buffer.getvalue() + bytes(100)})
        with pytest.raises(DataError, match="damaged"):
            archive.unpack(path, tmp_path / "data")


class TestUse:
    def test_an_archive_and_its_folder_are_one_dataset(self, tmp_path: Path) -> None:
        members = {f"{label}/{number}.png": png(number) for label in ("a", "b") for number in range(10)}
        packed = zipped(tmp_path / "a.zip", members)
        for name, data in members.items():
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(data)
        given = (5, None, False)
        one = dataset.stage(str(packed), None, *given, tmp_path / "one")
        other = dataset.stage(str(tmp_path / "folder"), None, *given, tmp_path / "other")
        assert (one.digest, one.train.images) == (other.digest, other.train.images)
        held = dataset.stage(str(packed), str(packed), *given, tmp_path / "one")
        assert len(held.train.images) == len(files(held.test)) == 20
        assert dataset.staged(one.digest, False, tmp_path / "one") == one

    def test_partition_takes_an_archive_and_leaves_nothing_beside(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = zipped(tmp_path / "a.zip", {f"ct/{label}/{at}.png": png() for label in ("a", "b") for at in range(4)})
        out = tmp_path / "new" / "out"
        assert cli.main(["partition", "--data", str(path), "--silos", "2", "--out", str(out)]) == 0
        assert len(files(out)) == 8
        assert "silo-1: 4 images (a 2, b 2)" in capsys.readouterr().out
        assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zip", "new"]
