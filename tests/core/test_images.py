"""A silo's folder of images: everything usable is read, nothing hostile does harm."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError
from feddiff.core.images import Images, read_images

SIZE = 4


def federation(
    channels: int = 1, classes: tuple[str, ...] = (), conditional: bool = False, size: int = SIZE
) -> FederationConfig:
    model: dict[str, Any] = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    if conditional:
        model["num_class_embeds"] = len(classes)
    return from_table({"model": model, "data": {"classes": list(classes)}}, "test")


def put(path: Path, value: int = 100, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def values(images: Images) -> list[int]:
    """The first pixel of each image."""
    return [int(value) for value in images.pixels[:, 0, 0, 0]]


RAMP = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * 16


@pytest.mark.parametrize(
    ("name", "image", "grey"),
    [
        ("a.png", Image.fromarray(RAMP > 100), np.where(RAMP > 100, 255, 0)),
        ("a.bmp", Image.fromarray(RAMP), RAMP),
        ("a.TIFF", Image.fromarray(RAMP), RAMP),
        ("a.tif", Image.merge("CMYK", [Image.new("L", (SIZE, SIZE))] * 3 + [Image.fromarray(255 - RAMP)]), RAMP),
        ("a.png", Image.fromarray(RAMP).convert("P"), RAMP),
        ("a.png", Image.fromarray(RAMP).convert("RGB"), RAMP),
        ("a.png", Image.merge("LA", [Image.new("L", (SIZE, SIZE), 255), Image.fromarray(RAMP)]), RAMP),
        ("a.png", Image.merge("RGBA", [Image.new("L", (SIZE, SIZE), 255)] * 3 + [Image.fromarray(RAMP)]), RAMP),
        ("a.png", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        ("a.tif", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        ("a.tif", Image.fromarray(RAMP.astype(np.int32) * 1000 - 77), np.round(RAMP / 240 * 255)),
        ("a.tif", Image.fromarray(RAMP.astype(np.float32) * 3 - 7), np.round(RAMP / 240 * 255)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_model_s(
    tmp_path: Path, name: str, image: Image.Image, grey: npt.NDArray[Any], channels: int
) -> None:
    image.save(tmp_path / name)
    images = read_images(tmp_path, federation(channels))
    assert images.pixels.shape == (1, channels, SIZE, SIZE)
    assert images.pixels.dtype == np.uint8
    assert np.abs(images.pixels[0].astype(int) - grey).max() <= 1
    assert (images.labels, images.counts, images.skipped) == (None, {"": 1}, ())


def test_a_transparent_palette_colour_lies_over_black(tmp_path: Path) -> None:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 250, 250, 250])
    image.save(tmp_path / "a.png", transparency=1)
    assert values(read_images(tmp_path, federation())) == [0]


def test_jpeg_and_colour(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / "a.JPG")
    pixels = read_images(tmp_path, federation(3)).pixels
    assert np.abs(pixels[0, :, 1, 1].astype(int) - [200, 30, 60]).max() <= 3


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RAMP, RAMP),
        (np.asfortranarray(RAMP), RAMP),
        (RAMP[..., None], RAMP),
        (np.repeat(RAMP[..., None], 3, axis=2), RAMP),
        (RAMP.astype("<u2") * 257, RAMP),
        (RAMP.astype(">u2") * 257, RAMP),
        (RAMP / 255, RAMP),
        ((RAMP / 255).astype(np.float16), RAMP),
        (RAMP.astype(np.float64) * 3 - 7, np.round(RAMP / 240 * 255)),
        (RAMP.astype(np.int16) - 100, np.round(RAMP / 240 * 255)),
        ((RAMP / 240 - 0.5) * 1.7e308 * 2, np.round(RAMP / 240 * 255)),
        (np.full((SIZE, SIZE), 1e6), np.zeros((SIZE, SIZE))),
        (np.full((SIZE, SIZE), 0.5), np.full((SIZE, SIZE), 128)),
        (RAMP > 100, np.where(RAMP > 100, 255, 0)),
    ],
)
def test_an_array_is_an_image(tmp_path: Path, array: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    images = read_images(tmp_path, federation())
    assert images.pixels.shape == (1, 1, SIZE, SIZE)
    assert np.abs(images.pixels[0, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(5, SIZE, SIZE), (5, SIZE, SIZE, 1), (5, SIZE, SIZE, 3)])
def test_each_slice_of_a_stack_is_an_image_on_one_scale(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stack = np.empty(shape)
    stack[:] = np.arange(5.0).reshape(5, *[1] * (len(shape) - 1))
    size = 5  # so that a stack of 4x4 is not taken for RGBA
    stack = np.pad(stack, [(0, 0), (0, 1), (0, 1), (0, 0)][: len(shape)], mode="edge")
    np.save(tmp_path / "b.npy", stack)
    put(tmp_path / "a.png", 9, (size, size))
    images = read_images(tmp_path, federation(size=size))
    assert values(images) == [9, 0, 64, 128, 191, 255]
    assert images.counts == {"": 6}


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5)}", bytes(19)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 9999999)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -4)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': ()}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (16,)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 4)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2, 2)}", bytes(64)),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1048577, 1, 2)}", bytes(2097154)),
        npy("{'descr': '|S1', 'fortran_order': False, 'shape': (4, 4)}", bytes(64)),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (4, 4)}", bytes(64)),
        npy("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 2)}", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}", b"cos\nsystem\n(S'touch pwned'\ntR."),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').abort()}", bytes(64)),
        npy("(" * 5000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
        b"\x93NUMPY\x09\x00",
        b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
        b"PK\x03\x04",
        b"",
    ],
)
def test_a_hostile_array_is_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    put(tmp_path / "good.png", 7)
    images = read_images(tmp_path, federation())
    assert values(images) == [7]
    assert [path for path, _ in images.skipped] == [Path("a.npy")]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_skipped(tmp_path: Path, bad: float) -> None:
    array = np.zeros((SIZE, SIZE))
    array[1, 1] = bad
    np.save(tmp_path / "a.npy", array)
    Image.fromarray(array.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="skipped: 2 x holds NaN or infinity"):
        read_images(tmp_path, federation())


def png(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is an image of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 100_000])
def test_a_decompression_bomb_is_skipped(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side))
    put(tmp_path / "good.png", 7)
    images = read_images(tmp_path, federation())
    assert values(images) == [7]
    assert "Bomb" in images.skipped[0][1]


def test_a_strip_is_cut_before_it_is_enlarged(tmp_path: Path) -> None:
    strip = Image.new("L", (1_000_000, 1))
    strip.putpixel((499_999, 0), 250)
    strip.save(tmp_path / "a.png")
    assert (read_images(tmp_path, federation(size=64)).pixels == 250).all()


def test_the_central_square_is_kept_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:12], wide[:, 12:16] = 100, 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "b.png")
    across, down = read_images(tmp_path, federation(size=8)).pixels[:, 0]
    assert np.array_equal(across, wide[:, 8:16])
    assert np.array_equal(down, across.T)
    smaller = read_images(tmp_path, federation(size=2)).pixels[0, 0]
    assert np.abs(smaller.astype(int) - [100, 200]).max() < 25


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["png", "jpg", "tif", "bmp", "npy"]))
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, RAMP)
    else:
        Image.fromarray(RAMP).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"bad.{kind}").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    put(tmp_path / "good.png", 7)
    images = read_images(tmp_path, federation())
    (tmp_path / f"bad.{kind}").unlink()
    assert len(images.pixels) + len(images.skipped) >= 2
    assert 7 in values(images)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_truncated_file_is_skipped(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 65_535, (64, 64)).astype(np.uint16)
    picture = Image.fromarray(noise) if name in ("a.png", "a.tif") else Image.fromarray((noise >> 8).astype(np.uint8))
    picture.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    put(tmp_path / "good.png", 7)
    images = read_images(tmp_path, federation())
    assert values(images) == [7]
    assert len(images.skipped) == 1


def test_another_format_under_a_known_name_is_not_parsed(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    put(tmp_path / "good.png", 7)
    images = read_images(tmp_path, federation())
    assert [path.name for path, _ in images.skipped] == ["a.png", "b.jpg"]


def test_reasons_and_logs_hold_no_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "Erika Mustermann")
    Image.fromarray(RAMP).save(tmp_path / "a.png", pnginfo=text)
    Image.fromarray(RAMP).save(tmp_path / "b.tif", tiffinfo={270: "Erika Mustermann"})
    for name, cut in (("a.png", 40), ("b.tif", 1)):
        whole = (tmp_path / name).read_bytes()
        assert b"Mustermann" in whole[:-cut]
        (tmp_path / name).write_bytes(whole[:-cut])
    Image.fromarray(RAMP).save(tmp_path / "good.tif", tiffinfo={270: "Erika Mustermann"})
    with caplog.at_level(logging.DEBUG):
        images = read_images(tmp_path, federation())
    assert len(images.skipped) == 2
    assert caplog.records
    assert "Mustermann" not in caplog.text + repr(images.skipped)


def test_order_is_that_of_the_relative_paths(tmp_path: Path) -> None:
    for value, name in enumerate(["b/2.png", "a.png", "b/10.png", "a/z.png", "B/1.png"]):
        put(tmp_path / name, value + 1)
    assert values(read_images(tmp_path, federation())) == [5, 2, 4, 3, 1]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / ".hidden.png")
    put(tmp_path / ".cache" / "a.png")
    put(tmp_path / "deep" / "er" / "a.png", 3)
    for name in ("notes.txt", "labels.csv", "README", "png"):
        (tmp_path / name).write_text("no image")
    images = read_images(tmp_path, federation())
    assert values(images) == [3]
    assert images.skipped == ()


def test_a_linked_folder_is_not_followed_and_a_pipe_not_opened(tmp_path: Path) -> None:
    put(tmp_path / "outside" / "a.png")
    put(tmp_path / "in" / "good.png", 3)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "folder.png").mkdir()
    images = read_images(tmp_path / "in", federation())
    assert values(images) == [3]
    assert [path.as_posix() for path, _ in images.skipped] == ["gone.png", "linked", "loop", "pipe.png"]


def test_the_first_folder_is_the_label(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "deep" / "1.png", 1)
    put(tmp_path / "dog" / "2.png", 2)
    put(tmp_path / "dog" / "cat" / "3.png", 3)
    put(tmp_path / "Cat" / "4.png", 4)
    put(tmp_path / "5.png", 5)
    classes = ("dog", "cat", "cow")
    images = read_images(tmp_path, federation(classes=classes))
    assert values(images) == [5, 1, 2, 3]
    assert images.labels is not None
    assert images.labels.tolist() == [-1, 1, 0, 0]
    assert images.labels.dtype == np.int64
    assert images.counts == {"": 1, "dog": 2, "cat": 1}
    assert [path.as_posix() for path, _ in images.skipped] == ["Cat/4.png"]

    strict = read_images(tmp_path, federation(classes=classes, conditional=True))
    assert values(strict) == [1, 2, 3]
    assert [path.as_posix() for path, _ in strict.skipped] == ["5.png", "Cat/4.png"]

    assert read_images(tmp_path, federation()).labels is None


def test_without_a_usable_image_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_images(tmp_path / "nothing", federation())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        read_images(tmp_path / "file", federation())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no usable image; put PNG"):
        read_images(tmp_path / "empty", federation())
    for name in ("a\nb.png", "c.png", "d.png", "e.png"):
        put(tmp_path / "x" / "mouse" / name)
    with pytest.raises(DataError, match=r"one folder for each class .cat, dog.*: 4 x is in a folder") as error:
        read_images(tmp_path / "x", federation(classes=("cat", "dog"), conditional=True))
    assert "\n" not in str(error.value)
    assert ".png" not in str(error.value), "the names of images stay in the silo's own log"


def test_images_that_may_not_be_read_are_no_missing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match="let the user that runs this read it; skipped: 1 x") as error:
        read_images(tmp_path, federation())
    assert "put PNG" not in str(error.value)


def test_one_warning_names_five_files_and_the_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "good.png")
    for index in range(7):
        (tmp_path / f"bad\n{index}.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, logger="feddiff.core.images"):
        images = read_images(tmp_path, federation())
    assert len(images.skipped) == 7
    (record,) = caplog.records
    message = record.getMessage()
    assert record.name == "feddiff.core.images"
    assert "7 files" in message
    assert "\n" not in message
    assert message.count("bad\\n") == 5
    assert "and 2 more" in message
