"""The whole model after a round's local training, on the silo's disk. Personal segments live here.

    trained/round-3.safetensors     a vector for each segment; "ema:<segment>" for the silo's own moving average;
                                    metadata: round, metrics

Read by the next round's start, by encoding, and by ``feddiff-silo sample`` beside a running daemon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from feddiff.core.errors import StoreError
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, save

_EMA = "ema:"


class Trained:
    """The folder of trained models; holds one, or two for a moment."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "trained"

    @property
    def round(self) -> int | None:
        """The newest round whose training is done."""
        found = [int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors")]
        return max(found, default=None)

    def open(self) -> WeightsReader:
        """The newest one. Raises StoreError if there is none."""
        newest = self.round
        if newest is None:
            raise StoreError(f"{self._folder} holds no trained model yet; it is there after the first round")
        return WeightsReader(self._path(newest))

    def keep(
        self,
        round: int,
        weights: Mapping[str, F32],
        ema: Mapping[str, F32] | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Make a round's training count; the one before is no longer needed."""
        vectors = dict(weights) | {_EMA + name: vector for name, vector in (ema or {}).items()}
        save(self._path(round), vectors, {"round": str(round), "metrics": json.dumps(dict(metrics))})
        for old in self._folder.glob("round-*.safetensors"):
            if old != self._path(round):
                old.unlink()

    def weights(self) -> dict[str, F32]:
        """By segment. Raises StoreError if there are none."""
        with self.open() as reader:
            return {name: reader.read(name) for name in reader.names if not name.startswith(_EMA)}

    def averages(self) -> dict[str, F32] | None:
        """The silo's own moving averages by segment, if it keeps any."""
        if self.round is None:
            return None
        with self.open() as reader:
            names = [name for name in reader.names if name.startswith(_EMA)]
            return {name.removeprefix(_EMA): reader.read(name) for name in names} or None

    def metrics(self) -> dict[str, float]:
        """What the training told at its end."""
        with self.open() as reader:
            return dict(json.loads(reader.metadata["metrics"]))

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round}.safetensors"
