"""The tables of a sweep's file, one class each (bench/sweep.py makes cells of them)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from feddiff.bench.reference import QualitySection
from feddiff.core.sections import Count, Seconds, Section

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in the file."""


class DataSection(Section):
    """Which images, and which of them are held out."""

    path: str = "digits"
    """A folder LABEL/IMAGE (split "folders": SILO/LABEL/IMAGE), or the built-in digits."""
    test: str | None = None
    """A folder of held-out images; without it one in ``held_out`` is held out."""
    held_out: Annotated[int, Field(ge=2, le=1000)] = 5
    images: Count | None = None
    """Train on so many of them at most, and hold out as many at most."""
    pool: Annotated[float, Field(ge=0)] = 0.0
    """Training images, or below 1 the share of them, that no silo has: what the federator of cells with a table
    [pool] shares. The same in all cells."""
    least: Count = 1
    """Images that every silo gets at least."""

    @model_validator(mode="after")
    def _pool_is_images(self) -> Self:
        if self.pool >= 1 and not self.pool.is_integer():
            raise ValueError("pool is a number of images, or a share of them below 1")
        return self


class SamplesSection(Section):
    """The pictures that each finished model draws."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 64
    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] = "ddim"


class GridSection(Section):
    """Lists of which every combination is a cell; what is not given is as in [federation]."""

    plan: Several[str] = ()
    codec: Several[str] = ()
    economy: Several[str] = ()
    """Presets over that of [federation]; "" is none."""
    outer: Several[str | dict[str, Any]] = ()
    """Names of optimizers, or tables as in [outer]."""
    silos: Several[Count] = ()
    participants: Several[Count] = ()
    """Silos that each round takes (``rounds.sampled``); all, if it is not given."""
    split: Several[str] = ("iid",)
    beta: Several[float | int] = (0.5,)
    """Of the splits dirichlet and quantity."""
    classes: Several[Count] = (2,)
    """Of the split k-class."""
    epochs: Several[Count] = ()
    strategy: Several[str] = ()
    """Names of [strategies]; "" is none."""
    seed: Several[Annotated[int, Field(ge=0, lt=1 << 63)]] = (0,)


class SweepSection(Section):
    """The whole file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "sweep"
    passes: Count | None = None
    baselines: Several[Literal["centralised", "alone"]] = ("centralised", "alone")
    processes: Annotated[int, Field(ge=1, le=256)] = 4
    """That the silos of a cell share, but no more than its share of the CPUs."""
    patience: Seconds = 3600.0
    """Seconds that a round of a cell may take before the cell is given up."""
    initial: str | None = None
    """A published model that every cell begins with: a folder or a file, relative to this one."""
    federation: dict[str, Any]
    strategies: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9. =-]{0,38}$")], dict[str, Any]] = Field({})
    """By name: tables that lie over [federation] (docs/strategies.md)."""
    before: dict[str, Any] | None = None
    """Lies over [federation] too: the federation that is run once for each seed, number of silos and split, and with
    whose global model the others of those begin."""
    data: DataSection = DataSection()
    samples: SamplesSection = SamplesSection()
    quality: QualitySection | None = None
    """Without it models are measured by their validation loss alone."""
    grid: Annotated[tuple[GridSection, ...], Field(strict=False, min_length=1)] = (GridSection(),)

    @model_validator(mode="after")
    def _the_grid_decides(self) -> Self:
        for name, table in self.strategies.items():
            rounds = table.get("rounds")
            if "seed" in table or (isinstance(rounds, dict) and "participants" in rounds):
                raise ValueError(f"strategies.{name}: seeds and numbers of silos are the grid's: grid.seed, grid.silos")
        return self
