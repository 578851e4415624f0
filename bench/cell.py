"""A cell of a sweep: all that decides one federation's outcome, or one baseline's, and its names for files and people.

Between bench/sweep.py, which multiplies the grid, and bench/result.py, which runs what is described here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from feddiff.bench.partition import Split
from feddiff.core.config import FederationConfig
from feddiff.core.sections import OuterConfig

Kind = Literal["federated", "centralised", "alone"]
BEFORE = "before"
"""The strategy of a federation with whose global model others begin."""


@dataclass(frozen=True)
class Cell:
    """One federation of a sweep, or one baseline."""

    kind: Kind
    config: FederationConfig
    split: Split
    silos: int
    basis: str
    """Whatever else decides the outcome: the images, how it is measured."""
    economy: str = ""
    table: Mapping[str, Any] = field(default_factory=dict)
    """The federation's file; empty for a baseline."""
    strategy: str = ""
    base: Cell | None = None
    """With whose global model it begins."""

    def finished(self, run: Path) -> bool:
        """Whether its result is in a run's folder, and the model, if others are to begin with it."""
        return (run / "cells" / f"{self.key}.json").exists() and (self.strategy != BEFORE or self.model(run).exists())

    def model(self, run: Path) -> Path:
        """The global model, kept for those that begin with it."""
        return run / "cells" / f"{self.key}.safetensors"

    @property
    def key(self) -> str:
        """Names the cell's files; the end is a digest of all that decides the outcome."""
        decisive = (
            self.kind,
            self.config.model_copy(update={"name": "cell"}).digest,
            str(self.split),
            self.silos,
            self.basis,
            *([] if self.base is None else [self.base.key]),
        )
        digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:8]
        codec = self.config.codec
        told = [self.config.plan, f"{codec.up}-{codec.down}"] if self.kind == "federated" else [self.kind]
        if self.kind != "centralised":
            taken = f"-{self.config.rounds.sampled}" if self.config.rounds.sampled else ""
            told += [f"K{self.silos}{taken}", str(self.split).replace(" ", "")]
        return "_".join((*told, f"seed{self.config.seed}", digest))

    def rules(self, quality: Mapping[str, Any] | None = None) -> str:
        """The federation's file, TOML; with a table ``[quality]`` if it measures while it trains."""
        return toml(self.table if quality is None else {**self.table, "quality": quality})

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from cell to cell, flat; None where it means nothing."""
        config, federated = self.config, self.kind == "federated"
        return {
            "kind": self.kind,
            "plan": config.plan if federated else None,
            "up": config.codec.up if federated else None,
            "down": config.codec.down if federated else None,
            "economy": self.economy if federated else None,
            "outer": config.outer.optimizer if federated else None,
            "outer_rate": config.outer.learning_rate if federated else None,
            "strategy": self.strategy or None,
            **{f"outer_{name}": value for name, value in _options(config.outer, federated).items()},
            "silos": self.silos,
            "sampled": config.rounds.sampled if federated else None,
            "split": self.split.kind if self.kind != "centralised" else None,
            "beta": self.split.beta,
            "classes": self.split.classes,
            "epochs": config.training.epochs,
            "steps": config.training.steps,
            "rounds": config.rounds.count if federated else None,
            "seed": config.seed,
        }

    def __str__(self) -> str:
        """For people, without the seed."""
        known = self.settings
        work = f"E={known['epochs']}" if known["epochs"] else f"S={known['steps']}"
        strategy = f" {self.strategy}" if self.strategy else ""
        if self.kind == "centralised":
            return f"centralised{strategy} {work}"
        if self.kind == "alone":
            return f"alone{strategy} K={self.silos} {self.split} {work}"
        codec = known["up"] if known["up"] == known["down"] else f"{known['up']}/{known['down']}"
        told = "/".join(f"{value:g}" for value in _options(self.config.outer, True).values() if value is not None)
        outer = "" if known["outer"] == "sgd" or self.economy else f" {known['outer']} {known['outer_rate']:g}/{told}"
        taken = f" {known['sampled']} sampled" if known["sampled"] else ""
        return f"{known['plan']} {self.economy or codec}{outer}{strategy} K={self.silos}{taken} {self.split} {work}"


def _options(outer: OuterConfig, federated: bool) -> dict[str, float | None]:
    """What its optimizer makes use of; None for the rest."""
    used = {"momentum": ("momentum",), "nesterov": ("momentum",), "sgd": ()}.get(
        outer.optimizer, ("beta1", "beta2", "tau")
    )
    options = ("momentum", "beta1", "beta2", "tau")
    return {name: getattr(outer, name) if federated and name in used else None for name in options}


def toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, its tables inline. Values: text, finite numbers, truth values, lists and tables."""

    def value(each: Any) -> str:
        if isinstance(each, dict):
            return "{" + ", ".join(f"{value(key)} = {value(of)}" for key, of in each.items()) + "}"
        if isinstance(each, list):
            return "[" + ", ".join(map(value, each)) + "]"
        return json.dumps(each, ensure_ascii=False)

    return "".join(f"{value(key)} = {value(of)}\n" for key, of in table.items())
