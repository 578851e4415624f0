"""What a cell comes to when its training is done: its models, still on disk, and what they cost.

Between the training (bench/trial.py, bench/baseline.py) and what is measured and drawn of the models. The bytes are the
ledger's, of every round and before the first; the quality of a round is what the federation itself measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddiff.bench.cell import Cell
from feddiff.core.config import FederationConfig
from feddiff.core.segments import F32, Layout
from feddiff.core.spool import POOL

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

GLOBAL = "global"
WAYS = ("down", "up")
State = Callable[[], dict[str, F32]]
"""Reads a model's weights."""


@dataclass(frozen=True)
class Outcome:
    """A cell whose training is done."""

    config: FederationConfig
    models: Mapping[str, State]
    """The global one, or that of each silo where there is none."""
    data: Path
    """SILO/LABEL/IMAGE: what each silo trained on."""
    told: Mapping[str, Any]
    """What the training cost and told: rounds, totals, segments."""
    own: Mapping[str, State] = field(default_factory=dict)
    """The silos' own last models, where there is a global one too."""
    before: State | None = None
    """The global model that it began with, if a federation trained that before."""

    @property
    def personal(self) -> Mapping[str, State]:
        """The silos' own last models."""
        return self.own if GLOBAL in self.models else self.models

    @property
    def of(self) -> str:
        """Whose quality it is."""
        return "global" if GLOBAL in self.models else "silos"


def federated(config: Path, names: Sequence[str], folder: Path) -> Outcome:
    """Of a finished federation, by its file; ``folder`` is the cell's."""
    from feddiff.federator import desk
    from feddiff.silo.trained import Trained

    federation = desk.opened(config)
    rules, layout = federation.config, federation.layout
    # A silo that no round took has trained nothing.
    trained = [name for name in names if Trained(folder / "silos" / name).round is not None]
    own = {name: _silo_model(layout, folder / "silos" / name) for name in trained}
    if not rules.has_global_model:
        return Outcome(rules, own, folder / "data", _cost(federation))
    models = {GLOBAL: lambda: desk.global_state(federation)}
    return Outcome(rules, models, folder / "data", _cost(federation), own)


def baseline(cell: Cell, metrics: Mapping[str, Mapping[str, float]], folder: Path) -> Outcome:
    """Of models that were trained without a federation; ``metrics`` of each."""
    from feddiff.core import network

    layout = network.of(cell.config).layout(cell.config)
    models = {
        GLOBAL if cell.kind == "centralised" else name: _silo_model(layout, folder / "silos" / name) for name in metrics
    }
    told = {
        "parameters": layout.size,
        "rounds": [],
        "segments": {},
        "totals": {"down": 0, "up": 0, "encoded_down": 0, "encoded_up": 0, "down_parameters": 0, "up_parameters": 0}
        | {"raw": 0, "images": int(sum(each["images"] for each in metrics.values()))}
        | {"seconds": sum(each["seconds"] for each in metrics.values())}
        | {"loss": finite(float(np.mean([each["loss"] for each in metrics.values()])))},
    }
    return Outcome(cell.config, models, folder / "data", told)


def _silo_model(layout: Layout, state: Path) -> State:
    from feddiff.silo.trained import Trained

    def read() -> dict[str, F32]:
        trained = Trained(state)
        # Not its moving averages, if it keeps any: a global model has none to be held against.
        return layout.scatter(trained.weights())

    return read


def _cost(federation: Federation) -> dict[str, Any]:
    """Bytes by round, by segment and in all, both ways; losses and quality beside. ``raw``: FULL without a codec."""
    from feddiff.federator.gauge import HELD
    from feddiff.federator.ledger import GLOBAL as NOBODY
    from feddiff.federator.measure import mean

    entries, metrics = list(federation.ledger.entries()), federation.journal.metrics()

    def sizes(round: int | None = None, segment: str | None = None) -> dict[str, int]:
        chosen = [e for e in entries if round in (None, e.round) and segment in (None, e.segment)]
        by = {way: [e for e in chosen if e.direction == way] for way in WAYS}
        return (
            {way: sum(e.wire for e in some) for way, some in by.items()}
            | {f"encoded_{way}": sum(e.encoded for e in some) for way, some in by.items()}
            | {f"{way}_parameters": sum(e.parameters for e in some) for way, some in by.items()}
        )

    rounds: list[dict[str, Any]] = []
    for each in federation.journal.rounds():
        of = metrics.get(each.round, {})
        losses = {silo: of[silo]["loss"] for silo in each.silos if "loss" in of.get(silo, {})}
        quality = [
            {"of": GLOBAL if reading.of == NOBODY else reading.of, **asdict(reading.measured)}
            # What the federator of a cell holds are the run's test images.
            | ({"against": "test"} if reading.measured.against == HELD else {})
            for reading in federation.ledger.quality(each.round)
            if math.isfinite(reading.measured.value)
        ]
        rounds.append(
            {
                "round": each.round,
                "silos": len(each.silos),
                **sizes(each.round),
                "raw": 8 * federation.layout.size * len(each.plan.assignments),
                "loss": finite(mean(losses, each.weights)),
                "losses": {silo: finite(loss) for silo, loss in losses.items()},
                "images": int(sum(of.get(silo, {}).get("images", 0) for silo in each.silos)),
                "seconds": round((each.closed_at or each.opened_at) - each.opened_at, 3),
                **({"quality": quality} if quality else {}),
            }
        )
    totals: dict[str, Any] = sizes() | {
        name: sum(each[name] for each in rounds) for name in ("raw", "images", "seconds")
    }
    totals["loss"] = rounds[-1]["loss"] if rounds else None
    public = [POOL] if any(each.segment == POOL for each in entries) else []
    segments = {name: sizes(segment=name) for name in (*federation.layout.names, *public, "")}
    return {"parameters": federation.layout.size, "rounds": rounds, "segments": segments, "totals": totals}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
