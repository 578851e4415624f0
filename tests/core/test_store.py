from __future__ import annotations

import hashlib
import json
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feddiff.core.errors import StoreError, WrongShape
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, WeightsWriter, save, write_atomic

VECTOR = np.arange(100, dtype=np.float32)
names = st.text("abcdefg.0123@:", min_size=1, max_size=12)
models = st.dictionaries(names, hnp.arrays(np.float32, st.integers(0, 50)), max_size=5)


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@given(models, st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
@settings(max_examples=40, deadline=None)
def test_what_is_saved_is_read_bit_for_bit(model: dict[str, F32], metadata: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "model"), model, metadata)
        with WeightsReader(path) as reader:
            assert set(reader.names) == set(model)
            assert {**reader.metadata, **metadata} == reader.metadata
            assert reader.metadata.keys() - metadata.keys() <= {"sha256"}
            for name, vector in model.items():
                assert reader.size(name) == vector.size
                assert reader.read(name).tobytes() == vector.tobytes()
                assert reader.read(name).dtype == np.float32


def test_others_can_read_it_and_it_reads_theirs(tmp_path: Path) -> None:
    model = {"decoder.0": VECTOR, "encoder.in": -VECTOR[:7]}
    save(tmp_path / "ours", model, {"round": "3"})
    found = safetensors.numpy.load_file(tmp_path / "ours")
    assert found.keys() == model.keys()
    assert all(np.array_equal(found[name], model[name]) for name in model)
    safetensors.numpy.save_file(model, tmp_path / "theirs", {"round": "3"})
    with WeightsReader(tmp_path / "theirs") as reader:
        assert all(np.array_equal(reader.read(name), model[name]) for name in model)
        assert reader.metadata == {"round": "3"}


@given(st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_ranges(start: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "model"), {"before": VECTOR[:3], "segment": VECTOR, "after": -VECTOR[:3]})
        with WeightsReader(path) as reader:
            if start + count <= 100:
                assert np.array_equal(reader.read("segment", start, count), VECTOR[start : start + count])
            else:
                with pytest.raises(WrongShape, match="segment"):
                    reader.read("segment", start, count)
            assert np.array_equal(reader.read("segment", start), VECTOR[start:])


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (101, None), (5, -1), (0, 1 << 60)])
def test_ranges_that_are_none(tmp_path: Path, start: int, count: int | None) -> None:
    with WeightsReader(save(tmp_path / "model", {"segment": VECTOR})) as reader, pytest.raises(WrongShape):
        reader.read("segment", start, count)


def test_pieces_may_be_written_in_any_order(tmp_path: Path) -> None:
    with WeightsWriter(tmp_path / "model", {"a": 100, "b": 10}) as writer:
        for start in (70, 0, 40):
            writer.write("a", start, VECTOR[start : start + 40])
        writer.write("b", 0, VECTOR[:10])
        assert not (tmp_path / "model").exists()
        writer.commit()
    with WeightsReader(tmp_path / "model") as reader:
        assert np.array_equal(reader.read("a"), VECTOR)
        assert np.array_equal(reader.read("b"), VECTOR[:10])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("start", "count"), [(61, 40), (-1, 4), (100, 1)])
def test_writing_beside_a_vector_is_refused(tmp_path: Path, start: int, count: int) -> None:
    with WeightsWriter(tmp_path / "model", {"a": 100, "b": 10}) as writer, pytest.raises(WrongShape, match="a has 100"):
        writer.write("a", start, VECTOR[:count])


def test_without_commit_the_old_file_stays_and_nothing_is_left_behind(tmp_path: Path) -> None:
    save(tmp_path / "model", {"a": VECTOR})
    with pytest.raises(WrongShape), WeightsWriter(tmp_path / "model", {"a": 100}) as writer:
        writer.write("a", 1, -VECTOR)
    with WeightsWriter(tmp_path / "model", {"a": 100}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with WeightsReader(tmp_path / "model") as reader:
        assert np.array_equal(reader.read("a"), VECTOR)


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    killed = WeightsWriter(tmp_path / "model", {"a": 1000})
    killed.write("a", 900, VECTOR)
    assert not (tmp_path / "model").exists()
    save(tmp_path / "model", {"a": VECTOR})
    with WeightsReader(tmp_path / "model") as reader:
        assert np.array_equal(reader.read("a"), VECTOR)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_reader_keeps_what_it_opened(tmp_path: Path) -> None:
    save(tmp_path / "model", {"a": VECTOR})
    with WeightsReader(tmp_path / "model") as reader:
        save(tmp_path / "model", {"a": -VECTOR[:2]})
        assert np.array_equal(reader.read("a"), VECTOR)


def test_a_segment_that_is_not_there(tmp_path: Path) -> None:
    with WeightsReader(save(tmp_path / "model", {"a": VECTOR})) as reader, pytest.raises(StoreError, match="'b'"):
        reader.read("b")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="model"):
        WeightsReader(tmp_path / "model")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\2",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        file_of(b"{"),
        file_of(b"\xff\xfe"),
        file_of(b"[" * 100_000),
        file_of([]),
        file_of({"a": 1}),
        file_of({"a": []}),
        file_of({"a": {"dtype": "F32", "shape": [1]}}),
        file_of({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(8)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)),
        file_of({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}, bytes(7)),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="model"):
        WeightsReader(path)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_file_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "model"), {"a": VECTOR, "b": VECTOR})
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(StoreError):
            WeightsReader(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "model", {"a": VECTOR})
    with WeightsReader(path) as reader:
        path.open("rb+").truncate(path.stat().st_size - 4)
        with pytest.raises(StoreError, match="cut short"):
            reader.read("a")


def test_write_atomic_replaces_with_the_mode_that_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_atomic(path, b"old")
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key.pem"]


def test_write_atomic_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="taken"):
        write_atomic(tmp_path / "taken", b"data")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(StoreError):
        write_atomic(tmp_path / "missing" / "file", b"data")


def test_a_file_of_one_vector_carries_the_digest_of_its_bytes(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    with WeightsWriter(tmp_path / "one", {"s": 1000}) as writer:
        writer.write("s", 0, values[:300])
        writer.write("s", 300, values[300:])
        writer.commit()
    with WeightsReader(tmp_path / "one") as reader:
        assert reader.digest == hashlib.sha256(values.tobytes()).hexdigest()
    with WeightsWriter(tmp_path / "other", {"s": 1000}) as writer:  # out of order: no digest rather than a wrong one
        writer.write("s", 300, values[300:])
        writer.write("s", 0, values[:300])
        writer.commit()
    with WeightsReader(tmp_path / "other") as reader:
        assert reader.digest == ""
        assert reader.read("s").tobytes() == values.tobytes()
    save(tmp_path / "two", {"s": values, "t": values})
    with WeightsReader(tmp_path / "two") as reader:
        assert reader.digest == ""
