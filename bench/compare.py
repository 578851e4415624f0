"""Two runs side by side: the settings that both have, what became of bytes, FID and loss, and what forbids to compare.

``feddiff-bench compare RUN RUN [RUN ...]``: every other run against the first. Numbers are subtracted seed by seed, and
only where images, extractor, samples and reference are the same; what differs is said in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feddiff.bench import table
from feddiff.bench.basis import Basis
from feddiff.bench.setting import Result, Setting, Spread, settings, spread
from feddiff.core.errors import ConfigError
from feddiff.federator.measure import NONE, amount

WITHOUT = frozenset({"seed", "name"})
"""Rules that differ between cells of one setting, or mean nothing."""


@dataclass(frozen=True)
class Difference:
    """One setting in another run against the first; None where there is nothing to subtract."""

    setting: str
    run: str
    seeds: int
    """That both have."""
    wire: float | None
    """Bytes, mean over these seeds in the other run."""
    ratio: float | None
    """Of its bytes to the first run's."""
    fid: Spread | None
    """Its FID (test), and by how much that is more than the first run's; spreads over seeds."""
    fid_more: Spread | None
    loss: Spread | None
    loss_more: Spread | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All of them, and the settings that not every run has."""

    runs: tuple[str, ...]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    def text(self) -> str:
        """A table, a line for each setting and run; below it what to know before it is believed."""
        wide = max((len(each.setting) for each in self.differences), default=0) + 2
        runs = max((len(each) for each in self.runs), default=0) + 2
        lines = [
            f"against {self.runs[0]}",
            f"{'':<{wide}}{'run':<{runs}}{'seeds':>5}{'wire':>10}{'bytes':>8}{'FID':>8}{'difference':>18}{'loss':>9}"
            f"{'difference':>20}",
        ]
        told: dict[str, list[str]] = {}
        for each in self.differences:
            lines.append(
                f"{each.setting:<{wide}}{each.run:<{runs}}{each.seeds:>5}"
                f"{NONE if each.wire is None else amount(each.wire):>10}"
                f"{NONE if each.ratio is None else f'{each.ratio:.2f}×':>8}"
                f"{NONE if each.fid is None else f'{each.fid.mean:.2f}':>8}{_more(each.fid_more, 2):>18}"
                f"{NONE if each.loss is None else f'{each.loss.mean:.4f}':>9}{_more(each.loss_more, 4):>20}"
            )
            for flag in each.flags:
                told.setdefault(f"{each.run}: {flag}", []).append(each.setting)
        if not self.differences:
            lines.append("no setting is in both")
        count = {run: sum(each.run == run for each in self.differences) for run in self.runs}
        for flag, names in told.items():
            everywhere = len(names) == count[flag.partition(": ")[0]]
            lines.append(f"{flag} ({'every setting' if everywhere else ', '.join(dict.fromkeys(names))})")
        return "\n".join([*lines, *self.missing])


def compare(runs: Sequence[Path]) -> Comparison:
    """Every run against the first. Raises ConfigError for fewer than two, or as bench/table.py does."""
    if len(runs) < 2:
        raise ConfigError("give two runs or more to compare")
    names = _names(runs)
    found = [{_same(each): each for each in settings(table.read(run))} for run in runs]
    first = found[0]
    differences = [
        _difference(names[at], one, found[at][same])
        for same, one in first.items()
        for at in range(1, len(runs))
        if same in found[at]
    ]
    missing = []
    for at in range(1, len(runs)):
        missing += [f"only in {names[0]}: {one.label}" for same, one in first.items() if same not in found[at]]
        missing += [f"only in {names[at]}: {one.label}" for same, one in found[at].items() if same not in first]
    return Comparison(tuple(names), tuple(differences), tuple(dict.fromkeys(missing)))


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or whole paths where they are the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _same(each: Setting) -> str:
    """Its settings; one that an older run does not know yet counts as not set."""
    return json.dumps({name: value for name, value in each.known.items() if value is not None}, sort_keys=True)


def _difference(run: str, one: Setting, other: Setting) -> Difference:
    before, after = _by_seed(one), _by_seed(other)
    seeds = [seed for seed in before if seed in after]
    flags = list(_flags(one, other))
    if not seeds:
        flags.append("no seed is in both: the differences are of the means")
    wires = [spread(_wire(by[seed]) for seed in seeds or by) for by in (before, after)]
    ratio = wires[1].mean / wires[0].mean if wires[0] and wires[1] else None
    alike = _digests(one) == _digests(other)
    fids, fid_flags = _fids(one, other, alike)
    losses = _losses(one, other, alike)
    pairs = [list(before), list(after)] if not seeds else [seeds, seeds]
    fid_more = _subtract(before, after, pairs, fids) if fids else None
    loss_more = _subtract(before, after, pairs, losses) if losses else None
    return Difference(
        other.label, run, len(seeds), wires[1].mean if wires[1] else None, ratio,
        _own(other, "fid"), fid_more, other.loss, loss_more, (*flags, *fid_flags),
    )  # fmt: skip


Value = Callable[[Result], float | None]


def _subtract(
    before: Mapping[Any, Result], after: Mapping[Any, Result], seeds: Sequence[Sequence[Any]], value: Value
) -> Spread | None:
    """Seed by seed where both have them, else the difference of the means, with no spread."""
    if seeds[0] == seeds[1]:
        pairs = [(value(before[seed]), value(after[seed])) for seed in seeds[0]]
        return spread(late - early for early, late in pairs if early is not None and late is not None)
    one, other = (spread(value(by[seed]) for seed in which) for by, which in zip((before, after), seeds, strict=True))
    return None if one is None or other is None else spread([other.mean - one.mean])


def _by_seed(each: Setting) -> dict[Any, Result]:
    return {result.get("settings", {}).get("seed", place): result for place, result in enumerate(each.results)}


def _wire(result: Result) -> float | None:
    sent = result["totals"].get("down", 0) + result["totals"].get("up", 0)
    return float(sent) if sent else None


def _own(each: Setting, metric: str) -> Spread | None:
    return next(iter(each.measured(metric, "test").values()), None)


def _fids(one: Setting, other: Setting, alike: bool) -> tuple[Value | None, list[str]]:
    """How to read a FID that both have on one basis; else why not, in words."""
    before, after = (list(each.measured("fid", "test")) for each in (one, other))
    if not before or not after:
        return None, ["FID was measured in one of them only"] if before or after else []
    shared = [basis for basis in before if basis in after and basis.digest]
    if shared and alike:
        return lambda result: _read(result, shared[0]), []
    old, new = before[0], after[0]
    flags = []
    if old.digest != new.digest or not old.digest:
        told = [f"{basis.extractor} {basis.digest[:8] or 'of unknown digest'}" for basis in (old, new)]
        flags.append(f"extractor {told[0]} there, {told[1]} here: FIDs cannot be compared")
    if (old.sampler, old.steps) != (new.sampler, new.steps):
        told = [f"{basis.sampler or 'an unknown sampler'}, {basis.steps} steps" for basis in (old, new)]
        flags.append(f"{told[0]} there, {told[1]} here: FIDs cannot be compared")
    if old.samples != new.samples:
        flags.append(f"{old.samples:,} samples there, {new.samples:,} here: FIDs cannot be compared")
    if old.reference != new.reference:
        flags.append(f"{old.reference:,} reference images there, {new.reference:,} here: FIDs cannot be compared")
    return None, flags


def _read(result: Result, basis: Basis) -> float | None:
    for number in result["quality"].get("metrics", ()):
        if number["metric"] == "fid" and Basis.of(number, result["quality"]) == basis and number["value"] is not None:
            return float(number["value"])
    return None


def _losses(one: Setting, other: Setting, alike: bool) -> Value | None:
    """How to read the loss, where it is of the same images and draws."""
    drawn = [
        {(loss.get("images"), loss.get("draws")) for r in each.results if (loss := r["quality"].get("validation_loss"))}
        for each in (one, other)
    ]
    if not alike or drawn[0] != drawn[1] or not drawn[0]:
        return None
    return lambda result: result["quality"].get("validation_loss", {}).get("mean")


def _digests(each: Setting) -> set[Any]:
    return {result.get("data", {}).get("digest") for result in each.results}


def _flags(one: Setting, other: Setting) -> Iterator[str]:
    """What else differs, and what follows."""
    if _digests(one) != _digests(other):
        yield "other images: neither FIDs nor losses can be compared"
    if len(one.results) != len(other.results):
        yield f"{len(one.results)} seeds there, {len(other.results)} here"
    if one.of != other.of:
        yield f"the numbers are of {_whose(one)} there, of {_whose(other)} here"
    for name, what in (("software", "software"), ("rules", "rules"), ("samples", "sampling")):
        before, after = (_flat(each.results[0].get(name) or {}) for each in (one, other))
        # What only one of them knows came with another version: that is told of the software.
        for key in sorted(before.keys() & after.keys()):
            if key.partition(".")[0] not in WITHOUT and before[key] != after[key]:
                yield f"{what}: {key} {before[key]} there, {after[key]} here"


def _whose(each: Setting) -> str:
    return "the global model" if each.of == "global" else "silos' own models"


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as ``a.b``."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{above}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _more(difference: Spread | None, digits: int) -> str:
    if difference is None:
        return NONE
    around = "" if difference.deviation is None else f" ± {difference.deviation:.{digits}f}"
    return f"{difference.mean:+.{digits}f}{around}"
