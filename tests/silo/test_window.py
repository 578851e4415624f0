"""Windows are DICOM's (PS3.3 C.11.2.1.2, C.11.2.1.3), and what is typed is one of them or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels.processing import apply_windowing

from feddiff.core.errors import ConfigError
from feddiff.silo.window import PRESETS, Window, parse, stretch

numbers = st.floats(-3000, 3000)


@given(numbers, st.floats(1.5, 4000), st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]), st.data())
def test_a_window_is_the_standard_s(center: float, width: float, function: str, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(-4096, 4095), min_size=1, max_size=20)), np.int16)
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth = f"{center:.6f}", f"{width:.6f}"
    dataset.VOILUTFunction, dataset.PhotometricInterpretation = function, "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 16, 0
    theirs = apply_windowing(values, dataset) / 65535 * 255
    ours = Window(float(dataset.WindowCenter), float(dataset.WindowWidth), function).apply(values)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(float) - theirs).max() <= 0.6


def test_presets_show_what_they_are_named_after() -> None:
    def shades(preset: str, *values: float) -> list[int]:
        return PRESETS[preset].apply(np.array(values)).tolist()

    assert shades("lung", -1350, -600, 150) == [0, 128, 255]
    assert shades("mediastinum", -160, 40, 240) == [0, 128, 255]
    assert shades("brain", 0, 39.5, 80) == [0, 128, 255]
    assert shades("bone", -500, 399.5, 1300) == [0, 128, 255]


def test_a_preset_is_of_ct_alone() -> None:
    assert parse("lung").of("CT") == PRESETS["lung"]
    assert parse("lung").of("MR") is None
    assert parse("file").of("CT") is None
    assert parse("-600,1500").of("MR") == Window(-600, 1500)


@pytest.mark.parametrize("text", ["", "liver", "40", "40,0", "40,-400", "nan,400", "40,inf", "1,2,3", "lung,brain"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--window must be lung, mediastinum, brain, bone, file, or CENTER,WIDTH"):
        parse(text)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=50))
def test_any_values_become_pixels(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(all="ignore"):
        pixels = stretch(array).apply(array)
    assert pixels.shape == array.shape
    assert pixels.dtype == np.uint8


def test_extremes_do_not_darken_the_rest() -> None:
    values = np.concatenate([np.linspace(0, 100, 1000), [30_000]])
    pixels = stretch(values).apply(values)
    assert 120 < pixels[500] < 135
