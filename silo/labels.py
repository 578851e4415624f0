"""What class an image is of: its sub-folder says it, a CSV, or an attribute of its DICOM file.

A part of a silo's collection. An attribute that may identify a patient is refused: its values would be compared with
class names and counted, and a count of one is a person.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.images import folder_label
from feddiff.silo.dicom import digest
from feddiff.silo.slices import NO_LABEL, OTHER_LABEL

PREFIX = "dicom:"
SPEAKING = {0x0008, 0x0018, 0x0020, 0x0028, 0x0054}
"""Groups of attributes of an examination and its pictures; PS3.15 table E.1-1 names no code string (CS) of these."""
KEYS = ("path", "series", "study")
MAX_CSV_BYTES = 1 << 28


def attribute(label_from: str) -> str:
    """The keyword of ``--label-from dicom:KEYWORD``. Raises ConfigError for one that is unknown or may identify."""
    if not label_from.startswith(PREFIX):
        raise ConfigError(f"--label-from must be dicom:KEYWORD, e.g. dicom:BodyPartExamined (got {label_from!r:.60})")
    keyword = label_from.removeprefix(PREFIX)
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ConfigError(
            f"--label-from: DICOM has no attribute {keyword!r:.60}; give a keyword, e.g. BodyPartExamined"
        )
    if dictionary_VR(tag) != "CS" or tag >> 16 not in SPEAKING:
        raise ConfigError(
            f"--label-from: {keyword} may identify a patient or is free text (PS3.15 annex E), and is not read; give an"
            " attribute of codes of the examination, e.g. BodyPartExamined, or --labels FILE.csv"
        )
    return keyword


class Labels:
    """Tells each image's place in ``data.classes``."""

    def __init__(self, config: FederationConfig, table: Path | None, by_attribute: bool, key: bytes) -> None:
        """``table``: a CSV; ``key``: of the digests of UIDs. Raises ConfigError for a CSV that is none."""
        self._config, self._by_attribute, self._key = config, by_attribute, key
        self._names = {name: place for place, name in enumerate(config.data.classes)}
        self._column, self._table = "", dict[str, str]()
        self.used = set[str]()
        if table is not None:
            self._column, self._table = _read(table)
            if self._column != "path":
                self._table = {digest(uid, key): label for uid, label in self._table.items()}

    @property
    def rows(self) -> int:
        """Of the CSV, if there are classes at all."""
        return len(self._table) if self._names else 0

    def of(self, parts: Sequence[str], archive: int | None, label: int, series: str, study: str) -> int:
        """A place in ``data.classes``, or -1. Raises DataError for an image that cannot be trained on.

        ``parts``: the file's relative path, of which the one at ``archive`` is a zip file's name; ``label`` from its
        attribute; ``series``, ``study``: digests.
        """
        if not self._column and not self._by_attribute:
            return folder_label([part for at, part in enumerate(parts[:-1]) if at != archive], self._config)
        if not self._names:
            return NO_LABEL
        if self._column:
            name = self._said(parts, series, study)
            label = NO_LABEL if name is None else self._names.get(name, OTHER_LABEL)
        if label == OTHER_LABEL:
            raise DataError("has a label that is not one of data.classes")
        if label == NO_LABEL and self._config.conditional and self._config.null_class is None:
            raise DataError("has no label")
        return label

    def _said(self, parts: Sequence[str], series: str, study: str) -> str | None:
        """What the CSV says of a file: of itself, its series or study, or the folder next above it."""
        keys = [series] if self._column == "series" else [study]
        if self._column == "path":
            keys = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
        for key in keys:
            if key in self._table:
                self.used.add(key)
                return self._table[key]
        return None


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """(what the first column is, its values with their labels) of a CSV. Raises ConfigError, naming a line at most."""
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise ConfigError(f"--labels {path} is larger than {MAX_CSV_BYTES >> 20} MiB")
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            head = [name.strip().lower() for name in next(rows, [])]
            columns = [name for name in head if name in KEYS]
            if len(columns) != 1 or head.count("label") != 1:
                raise ConfigError(
                    f"--labels {path}: its first line must name a column label and one of {', '.join(KEYS)}"
                )
            at, says = head.index(columns[0]), head.index("label")
            table: dict[str, str] = {}
            for row in rows:
                if not any(each.strip() for each in row):
                    continue
                if len(row) <= max(at, says):
                    raise ConfigError(f"--labels {path}, line {rows.line_num}: has fewer columns than the first line")
                name, label = row[at].strip(), row[says].strip()
                name = name.replace("\\", "/").strip("/").removeprefix("./") if columns[0] == "path" else name
                if table.setdefault(name, label) != label:
                    raise ConfigError(f"--labels {path}, line {rows.line_num}: gives another label than a line before")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "is not a CSV file in UTF-8"
        raise ConfigError(f"--labels {path}: {why}") from None
    return columns[0], table
