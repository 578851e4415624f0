"""The grids of samples that a federation has so far, for the page: of the global model, and of silos' own.

Drawn by federator/gauge.py, sent by silos (federator/grids.py). Only what was found in the folders is ever opened, so a
name that somebody asks for is no path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddiff.federator.ledger import GLOBAL


class Pictures:
    """The grids of samples that there are, by model and round; looked for again where a folder has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, Mapping[str, Path]]] = {}
        self._grids: dict[str, dict[int, Path]] = {}

    def update(self) -> bool:
        """Whether there are others than before."""
        found: dict[str, dict[int, Path]] = {}
        for path in self._files(self._folder / "samples").values():
            if path.suffix == ".png" and (number := _number(path.stem)) is not None:
                found.setdefault(GLOBAL, {})[number] = path
        for folder in self._files(self._folder / "grids").values():
            if (number := _number(folder.name)) is not None:
                for path in self._files(folder).values():
                    if path.suffix == ".png":
                        found.setdefault(path.stem, {})[number] = path
        changed = found != self._grids
        self._grids = found
        return changed

    def told(self) -> list[dict[str, Any]]:
        """The global model, whose name is empty, first."""
        return [{"of": name, "rounds": sorted(self._grids[name])} for name in sorted(self._grids)]

    def path(self, of: str, round: int) -> Path | None:
        """Where a grid is; never made of what somebody asked for."""
        return self._grids.get(of, {}).get(round)

    def _files(self, folder: Path) -> Mapping[str, Path]:
        try:
            changed = folder.stat().st_mtime_ns
            if folder not in self._read or self._read[folder][0] != changed:
                self._read[folder] = (changed, {each.name: each for each in folder.iterdir()})
        except OSError:
            return {}
        return self._read[folder][1]


def _number(stem: str) -> int | None:
    text = stem.removeprefix("round-")
    return int(text) if text.isdecimal() and text != stem else None
