"""``--track tensorboard:FOLDER``: one event file, which TensorBoard reads while it grows.

A page is one record; what the file holds is read from it when it is opened, and a record that a kill cut short is cut
off. So the file itself knows what has been told, also after it was moved or deleted. Format: TFRecord (length and
masked CRC-32C around each protobuf), written and checked with TensorBoard's own package; neither torch nor TensorFlow.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from feddiff.core.errors import ConfigError
from feddiff.core.store import sync_folder

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation
    from feddiff.federator.tracking import Page

RULES = "rules"
MAX_PICTURE_BYTES = 16 << 20
_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")


class EventFile:
    """``FOLDER/NAME/events.out.tfevents…`` of one federation."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if TensorBoard is not installed."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                f"--track tensorboard:{folder}: TensorBoard is not installed here; pip install 'feddiff[tensorboard]'"
            )
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._known: set[tuple[str, int]] = set()

    def open(self, federation: Federation) -> None:
        """Raises OSError."""
        self.close(finished=False)
        config = federation.config
        folder = self._folder / config.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.0.{config.digest[:12]}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._file = os.fdopen(descriptor, "r+b")
        self._known, whole = self._read(self._file)
        self._file.truncate(whole)
        self._file.seek(whole)
        began = next((each.opened_at for each in federation.journal.rounds()[:1]), 0.0)
        if not whole:
            self._append(_event(began, 0, file_version="brain.Event:2"))
        if (RULES, 0) not in self._known:
            table = json.dumps(json.loads(config.canonical()), indent=2)
            text = "\n".join(f"    {line}" for line in table.splitlines())  # a code block in Markdown
            self._append(_event(began, 0, [_text(RULES, text)]))
            self._known.add((RULES, 0))
        sync_folder(folder)

    def has(self, page: Page) -> bool:
        return page.key in self._known

    def write(self, page: Page) -> None:
        """Raises OSError."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in page.values.items()]
        if page.picture is not None:
            name, path = page.picture
            values.append(Summary.Value(tag=name, image=_image(path)))
        self._append(_event(page.at, page.round, values))
        self._known.add(page.key)

    def close(self, finished: bool) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _append(self, event: Any) -> None:
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        assert self._file is not None
        data = event.SerializeToString()
        head = struct.pack("<Q", len(data))
        self._file.write(head + _TAIL.pack(masked_crc32c(head)) + data + _TAIL.pack(masked_crc32c(data)))
        self._file.flush()
        os.fsync(self._file.fileno())

    @staticmethod
    def _read(file: IO[bytes]) -> tuple[set[tuple[str, int]], int]:
        """(names and steps of all whole records, where they end)."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        size, whole, found = os.fstat(file.fileno()).st_size, 0, set[tuple[str, int]]()
        while whole + _HEAD.size + _TAIL.size <= size:
            head = file.read(_HEAD.size)
            length, check = _HEAD.unpack(head)
            if masked_crc32c(head[:8]) != check or whole + _HEAD.size + length + _TAIL.size > size:
                break
            data = file.read(length)
            if _TAIL.unpack(file.read(_TAIL.size))[0] != masked_crc32c(data):
                break
            event = Event.FromString(data)
            found |= {(value.tag, event.step) for value in event.summary.value}
            whole += _HEAD.size + length + _TAIL.size
        return found, whole


def _event(at: float, step: int, values: list[Any] | None = None, **more: str) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=at, step=step, summary=Summary(value=values) if values else None, **more)


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(
        tag=tag,
        metadata=metadata,
        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    )


def _image(path: Path) -> Any:
    """A PNG as it is; its size is in its header (PNG, third edition, section 11.2.1). Raises OSError."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise OSError(f"{path} has more than {MAX_PICTURE_BYTES >> 20} MiB")
    data = path.read_bytes()
    if len(data) < 26:
        raise OSError(f"{path} is no PNG")
    width, height = struct.unpack_from(">II", data, 16)
    return Summary.Image(width=width, height=height, colorspace=1 if data[25] == 0 else 3, encoded_image_string=data)
