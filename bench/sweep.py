"""A sweep file becomes cells: every combination of its grid, each a federation, and the baselines beside them.

Only parses and multiplies; nothing is run here. What decides a cell's outcome decides its key, so
that a finished cell is known again and a changed one is another.

    passes = 20                      # optional: over the images in all; the rounds follow from the local epochs
    [federation]                     # as in federation.toml
    preset = "digits-8"
    [data]
    path = "digits"                  # or a folder, relative to this file
    [grid]                           # or [[grid]], several products
    plan = ["full", "udec"]
    codec = ["fp32", "int8/fp32"]    # both directions, or up/down
    strategy = ["", "fedprox"]       # tables [strategies.NAME], each laid over [federation]
    [before]                         # optional: over [federation], the one whose global model the others begin with
    [quality]                        # optional: image quality, not the validation loss alone
    extractor = "convnet"            # trained on these images, or a TorchScript file
    [smoke.grid]                     # with --smoke: lies over everything above
    seed = [0]
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feddiff.bench.cell import BEFORE, Cell, Kind
from feddiff.bench.dataset import BUILT_IN, Dataset, stage
from feddiff.bench.partition import Split, split
from feddiff.bench.reference import QualitySection
from feddiff.bench.sections import DataSection, GridSection, SamplesSection, SweepSection
from feddiff.core.config import FederationConfig, from_table, read_toml
from feddiff.core.errors import ConfigError, DataError
from feddiff.core.published import weights_file
from feddiff.core.sections import LONE, Section

MOST_CELLS = 10_000
SHIPPED = Path(__file__).parent / "sweeps"
"""The literature's, by name."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read."""

    file: Path
    rules: SweepSection

    @property
    def where(self) -> str:
        return str(self.file)

    def sources(self) -> tuple[str, str | None]:
        """Where the images are, and held-out ones; paths are relative to the sweep's file. Raises DataError."""
        data, home = self.rules.data, self.file.parent
        path = data.path if data.path == BUILT_IN else str(home / data.path)
        test = None if data.test is None else str(home / data.test)
        for each in (path, test):
            if each not in (None, BUILT_IN) and not Path(str(each)).exists():
                raise DataError(f"{each} does not exist; name the images with --data (and --test)")
        return path, test

    def images(self, into: Path) -> Dataset:
        """The images, staged in a run's folder. Raises DataError."""
        data = self.rules.data
        return stage(*self.sources(), data.held_out, data.images, self.by_silo, into, data.pool)

    @property
    def by_silo(self) -> bool:
        """Whether each folder of the data is a silo."""
        return any("folders" in grid.split for grid in self.rules.grid)

    def cells(self, data_digest: str, folders: int = 0) -> list[Cell]:
        """Every cell once, federations first, each after the one that it begins with.

        ``folders``: silos that the data has, for the split of that name. Raises ConfigError for a combination that is
        no federation.
        """
        found: dict[str, Cell] = {}
        for grid in self.rules.grid:
            for point in _points(grid):
                cell = self._cell(point, data_digest, folders)
                if cell.base is not None:
                    found.setdefault(cell.base.key, cell.base)
                found.setdefault(cell.key, cell)
                if len(found) > MOST_CELLS:
                    raise ConfigError(f"{self.where}: more than {MOST_CELLS} cells")
        for kind in self.rules.baselines:
            for cell in [each for each in found.values() if each.kind == "federated" and each.strategy != BEFORE]:
                baseline = self._baseline(kind, cell)
                found.setdefault(baseline.key, baseline)
        return list(found.values())

    def _cell(self, point: Mapping[str, Any], data_digest: str, folders: int) -> Cell:
        base = None
        if self.rules.before is not None and point["strategy"] != BEFORE:
            scene = {name: point[name] for name in ("seed", "silos", "split")}
            base = self._cell(dict.fromkeys(point) | scene | {"strategy": BEFORE}, data_digest, folders)
            if not base.config.has_global_model:
                raise ConfigError(
                    f"{self.where}: [before] needs a global model: no personal segments, plan full or usplit"
                )
        economy, strategy = point["economy"] or "", point["strategy"] or ""
        table = _overlay(copy.deepcopy(self.rules.federation), self._strategy(strategy))
        presets = table.get("preset", [])
        table["preset"] = [*(presets if isinstance(presets, list) else [presets]), *([economy] if economy else [])]
        table = {"name": self.rules.name, **table, "seed": point["seed"]}
        if point["plan"] is not None:
            table["plan"] = point["plan"]
        if point["codec"] is not None:
            up, _, down = point["codec"].partition("/")
            table["codec"] = {**self._part(table, "codec"), "up": up, "down": down or up}
        if point["outer"] is not None:
            outer = {"optimizer": point["outer"]} if isinstance(point["outer"], str) else point["outer"]
            table["outer"] = {**self._part(table, "outer"), **outer}
        training, rounds = {"threads": 1, **self._part(table, "training")}, {**self._part(table, "rounds")}
        if point["epochs"] is not None:
            training.pop("steps", None)
            training["epochs"] = point["epochs"]
        dealt: Split = point["split"]
        silos = folders if dealt.kind == "folders" else point["silos"] or rounds.get("participants", 2)
        rounds["participants"] = silos
        if point["participants"] is not None:
            rounds["sampled"] = point["participants"]
        published = base is not None or self.rules.initial is not None
        if published:
            table["initial"] = "file"
        table |= {"training": training, "rounds": rounds}
        config = self._config(table)
        if (config.initial == "file") != published:
            raise ConfigError(f"{self.where}: name the published model: initial = PATH, before [federation]")
        if config.pool is not None and not self.rules.data.pool:
            raise ConfigError(f"{self.where}: [pool] shares images that are no silo's; say with data.pool how many are")
        if self.rules.passes is not None and not (strategy == BEFORE and "count" in rounds):
            if config.training.epochs is None or "count" in rounds:
                raise ConfigError(f"{self.where}: passes decides rounds.count, and needs local epochs, not steps")
            # A round in which only some take part is only a part of a pass.
            local = config.training.epochs * (config.rounds.sampled or silos)
            images = self.rules.passes * silos
            if images % local:
                multiple = local // math.gcd(local, silos)
                raise ConfigError(f"{self.where}: passes must be a multiple of {multiple}, or change epochs")
            rounds["count"] = images // local
            config = self._config(table)
        basis = f"{data_digest} {self._measured}"
        return Cell("federated", config, dealt, silos, basis, economy, table, strategy, base)

    def _config(self, table: dict[str, Any]) -> FederationConfig:
        """A cell's rules: checked with [quality], which it gets when it is run, and told without."""
        asked = self.rules.quality
        if asked is None or not asked.every:
            return from_table(table, self.where)
        measuring = from_table({**table, "quality": asked.table("0" * 64, 1, "filter" in table)}, self.where)
        return measuring.model_copy(update={"quality": None})

    def _baseline(self, kind: Kind, cell: Cell) -> Cell:
        """On the same number of images as a federation: all in one place, or each silo by itself."""
        kept = {"model", "diffusion", "training", "data", "seed", "name", "initial", "frozen"}
        table = {key: value for key, value in cell.config.model_dump(mode="json").items() if key in kept}
        training, rounds = table["training"], cell.config.rounds
        turns = rounds.count * (rounds.sampled or cell.silos)
        if training["epochs"] is not None:
            training["epochs"] = max(round(training["epochs"] * turns / cell.silos), 1)
        else:
            training["steps"] *= turns if kind == "centralised" else max(round(turns / cell.silos), 1)
        training |= LONE
        dealt, silos = (Split("iid"), 1) if kind == "centralised" else (cell.split, cell.silos)
        strategy = cell.strategy if cell.config.frozen or self._teaches(cell.strategy) else ""
        config = from_table(table, self.where)
        return Cell(kind, config, dealt, silos, cell.basis, strategy=strategy, base=cell.base)

    def _teaches(self, name: str) -> bool:
        """Whether a strategy changes the training of a silo by itself; most are of federations alone."""
        table = self._strategy(name)
        training = self._part(table, "training").keys() - {"schedule", "warmup", "proximal"}
        return bool(training or table.keys() & {"model", "diffusion", "data", "preset"})

    def _strategy(self, name: str) -> dict[str, Any]:
        """What lies over [federation]. Raises ConfigError for a name that is none."""
        if name == BEFORE:
            return copy.deepcopy(self.rules.before or {})
        if name and name not in self.rules.strategies:
            known = ", ".join(self.rules.strategies) or "none"
            raise ConfigError(f"{self.where}: there is no [strategies.{name}]; known: {known}")
        return copy.deepcopy(self.rules.strategies[name]) if name else {}

    def _part(self, table: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A table of a federation. Raises ConfigError for what is none."""
        part = table.get(name, {})
        if not isinstance(part, dict):
            raise ConfigError(f"{self.where}: federation.{name} must be a table (got {part!r:.60})")
        return part

    @property
    def initial(self) -> Path | None:
        """The published model that all cells begin with, if there is one."""
        return None if self.rules.initial is None else self.file.parent / self.rules.initial

    @cached_property
    def _measured(self) -> str:
        """How finished cells are measured, who has how much, and the published model: what else decides an outcome."""
        quality = "" if self.rules.quality is None else f" {self.rules.quality.decisive(self.file.parent)}"
        found = f"{self.rules.data.least} {self.rules.samples.model_dump_json()}{quality}"
        if self.initial is None:
            return found
        return f"{found} {hashlib.sha256(weights_file(self.initial).read_bytes()).hexdigest()}"


def _points(grid: GridSection) -> Iterator[dict[str, Any]]:
    """Every combination; a split comes once with each parameter that it has. Raises ConfigError."""
    splits = [split(kind, beta, k) for kind in grid.split for beta in grid.beta for k in grid.classes]
    # Seeds turn slowest, so that a sweep that is stopped early has the whole grid once.
    lists: dict[str, Sequence[Any]] = {"seed": grid.seed, "silos": grid.silos, "participants": grid.participants}
    lists |= {"split": list(dict.fromkeys(splits)), "epochs": grid.epochs, "plan": grid.plan, "codec": grid.codec}
    lists |= {"economy": grid.economy, "outer": grid.outer, "strategy": grid.strategy}
    for values in product(*(each or [None] for each in lists.values())):
        yield dict(zip(lists, values, strict=True))


def load(path: Path, smoke: bool = False, data: Path | None = None, test: Path | None = None) -> Sweep:
    """Read a sweep file, or the shipped one of this name, with its [smoke] on top if asked.

    ``data`` and ``test`` are other images than the file names. Raises ConfigError, one line that names the key.
    """
    shipped = SHIPPED / f"{path}.toml"
    if not path.suffix and not path.is_file() and shipped.exists():
        path = shipped
    names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.toml")))
    table = read_toml(path, f"give a sweep file, or one of {names}")
    over = table.pop("smoke", None)
    if smoke:
        if not isinstance(over, dict):
            raise ConfigError(f"{path}: there is no table [smoke]")
        table = _overlay(table, over)
    if isinstance(table.get("grid"), dict):
        table["grid"] = [table["grid"]]
    try:
        rules = SweepSection.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_problem(error)}") from None
    if rules.before is not None and rules.initial is not None:
        raise ConfigError(f"{path}: initial and [before] are two models to begin with; give one of them")
    if rules.before is not None and "centralised" in rules.baselines:
        raise ConfigError(f'{path}: with [before] set baselines = ["alone"] or []: in one place there is no such model')
    if BEFORE in rules.strategies or any(BEFORE in grid.strategy for grid in rules.grid):
        raise ConfigError(f"{path}: strategy {BEFORE!r} is that of the table [before]; give yours another name")
    if "quality" in rules.federation:
        raise ConfigError(f"{path}: [federation.quality]: give [quality] instead; the federations get it from there")
    if any("folders" in grid.split and (grid.split != ("folders",) or grid.silos) for grid in rules.grid):
        raise ConfigError(f'{path}: split "folders" stands alone, without silos: each folder is one')
    if len({("folders" in grid.split) for grid in rules.grid}) > 1:
        raise ConfigError(f'{path}: split "folders" must be that of every [[grid]]: the data is arranged in one way')
    if data is not None or test is not None:
        new = {"path": rules.data.path if data is None else _absolute(data), "test": test and _absolute(test)}
        rules = rules.model_copy(update={"data": rules.data.model_copy(update=new)})
    return Sweep(path, rules)


def _absolute(path: Path) -> str:
    """What is named on the command line lies in the working directory; what a file names, beside it."""
    return BUILT_IN if str(path) == BUILT_IN else str(path.absolute())


def _overlay(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on ``under``, table by table; [smoke.grid] lies over each [[grid]]."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if key == "data" and isinstance(below, dict) and "path" in value:
            below = {name: below[name] for name in below if name != "test"}  # which was that of the other path
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _overlay(below, value)
        elif key == "grid" and isinstance(value, dict) and isinstance(below, list):
            merged[key] = [_overlay(each, value) for each in below]
        else:
            merged[key] = value
    return merged


def _problem(error: ValidationError) -> str:
    """The first of them, in a line."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        tables: dict[str, type[Section]] = {"data": DataSection, "samples": SamplesSection, "grid": GridSection}
        tables["quality"] = QualitySection
        section = tables.get(str(problem["loc"][0]) if len(problem["loc"]) > 1 else "", SweepSection)
        return f"unknown key {place!r}; known here: {', '.join(section.model_fields)}"
    if problem["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place}: {problem['msg'].replace('valid tuple', 'list')} (got {problem['input']!r:.60})"
