"""A setting of a sweep: the cells that differ in their seed only, and their numbers as mean and spread.

Between bench/table.py, which reads a run's files, and what is shown of them: charts, page, comparison. A number that
depends on how it was measured comes with its ``Basis``; two bases are never put into one mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from feddiff.bench.basis import Basis
from feddiff.bench.table import Entry

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """One number over the seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None for one seed."""
    low: float
    high: float
    count: int

    def text(self, write: Callable[[float, float], str]) -> str:
        """Mean, and deviation where there is one, both with as many digits as the mean: ``write(number, mean)``."""
        mean = write(self.mean, self.mean)
        return mean if self.deviation is None else f"{mean} ± {write(self.deviation, self.mean)}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the finite values; None without any."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, min(known), max(known), len(known))


@dataclass(frozen=True)
class Curve:
    """A number by round, over the seeds; ``sent`` is the mean of all bytes on the wire until then."""

    rounds: tuple[int, ...]
    sent: tuple[float, ...]
    values: tuple[Spread, ...]


@dataclass(frozen=True)
class Setting:
    """Finished cells of one setting; ``number`` is its place in tables and charts."""

    number: int
    label: str
    known: Mapping[str, Any]
    """Settings of the cells, without the seed."""
    results: tuple[Result, ...]
    """At least one, by seed."""
    keys: tuple[str, ...]
    """Names of the results' files."""
    scenario: str
    """What it cannot choose: how many silos, who takes part, who has what. Settings of one stand in one panel."""
    variant: str
    """What tells it from others of its plan and scenario: codec or economy, and more where that is not enough."""

    @property
    def kind(self) -> str:
        return str(self.known.get("kind") or "federated")

    @property
    def plan(self) -> str:
        """Of a federation its plan, else the kind of baseline."""
        return str(self.known.get("plan") or self.kind) if self.kind == "federated" else self.kind

    @property
    def name(self) -> str:
        """Within its scenario."""
        return f"{self.plan} {self.variant}".strip()

    @property
    def of(self) -> str:
        """Whose quality: ``global``, or ``silos``, their own models' (bench/evaluation.py says how)."""
        return str(self.results[0]["quality"].get("of", "global"))

    def total(self, *names: str) -> Spread | None:
        """The sum of these of the results' totals; None if one is missing."""
        totals = [[each["totals"].get(name) for name in names] for each in self.results]
        return spread(sum(row) for row in totals if None not in row)

    @property
    def wire(self) -> Spread | None:
        """Bytes, both directions, everything counted; None for a baseline."""
        sent = self.total("down", "up")
        return sent if sent is not None and sent.mean > 0 else None

    @property
    def loss(self) -> Spread | None:
        """On held-out images."""
        return spread(each["quality"].get("validation_loss", {}).get("mean") for each in self.results)

    def measured(self, metric: str, against: str) -> dict[Basis, Spread]:
        """A metric by its basis, the one of most seeds first; ``against`` counts where the metric has a reference."""
        found: dict[Basis, list[float]] = {}
        for result in self.results:
            for number in result["quality"].get("metrics", ()):
                if number["metric"] == metric and number["against"] in ("", against) and number["value"] is not None:
                    found.setdefault(Basis.of(number, result["quality"]), []).append(number["value"])
                    break
        spreads = [(basis, spread(values)) for basis, values in sorted(found.items(), key=lambda item: -len(item[1]))]
        return {basis: each for basis, each in spreads if each is not None}

    def curve(self, read: Callable[[Mapping[str, Any]], float | None]) -> Curve:
        """What ``read`` finds in each round, where it finds something."""
        values: dict[int, list[float]] = {}
        sent: dict[int, list[float]] = {}
        for result in self.results:
            sums = accumulate(each.get("down", 0) + each.get("up", 0) for each in result["rounds"])
            for each, size in zip(result["rounds"], sums, strict=True):
                value = read(each)
                if value is not None:
                    values.setdefault(each["round"], []).append(value)
                    sent.setdefault(each["round"], []).append(size)
        rounds = sorted(values)
        spreads = {number: spread(values[number]) for number in rounds}
        known = [number for number in rounds if spreads[number] is not None]
        return Curve(
            tuple(known),
            tuple(statistics.fmean(sent[number]) for number in known),
            tuple(each for number in known if (each := spreads[number]) is not None),
        )


def scenario(known: Mapping[str, Any]) -> tuple[str, ...]:
    """How many silos, who takes part, who has what, in words."""
    if known.get("kind") == "centralised":
        return ()
    told = [f"K={known['silos']}"] if known.get("silos") else []
    if known.get("sampled"):
        told.append(f"{known['sampled']} sampled")
    given = known.get("beta") if known.get("beta") is not None else known.get("classes")
    if known.get("split"):
        told.append(f"{known['split']}" if given is None else f"{known['split']} {given:g}")
    return tuple(told)


def settings(entries: Sequence[Entry]) -> list[Setting]:
    """All settings with a result: scenario by scenario, in the order of the sweep, baselines last.

    Where hardly a scenario has two settings, they are one, of what they have in common; the rest is in the names.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.result is not None:
            groups.setdefault(entry.group, []).append(entry)
    cells = [sorted(group, key=lambda each: each.settings.get("seed") or 0) for group in groups.values()]
    first = [group[0].settings for group in cells]
    federated = [each.get("kind", "federated") == "federated" for each in first]
    told = [scenario(each) for each in first]
    own = [parts for parts, is_one in zip(told, federated, strict=True) if is_one]
    common = set(own[0]).intersection(*own) if own else set[str]()
    merged = len(own) < 2 * len(set(own)) and len(set(own)) > 1
    names = _variants(first)
    for at, parts in enumerate(told):
        if merged and federated[at]:
            names[at] = " ".join((names[at], ", ".join(part for part in parts if part not in common))).strip()
            told[at] = tuple(part for part in parts if part in common)
    places = list(dict.fromkeys(told[at] for at in range(len(first)) if federated[at]))
    order = sorted(range(len(first)), key=lambda at: places.index(told[at]) if federated[at] else len(places))
    found = []
    for number, at in enumerate(order, 1):
        known = {name: value for name, value in first[at].items() if name != "seed"}
        results = tuple(each.result for each in cells[at] if each.result is not None)
        keys = tuple(each.key for each in cells[at])
        found.append(Setting(number, cells[at][0].label, known, results, keys, ", ".join(told[at]), names[at]))
    return found


def _variants(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The shortest names that tell those of one plan and scenario apart: codec, then outer optimizer, then work."""

    def codec(known: Mapping[str, Any]) -> str:
        up, down = known.get("up") or "", known.get("down") or ""
        return str(known.get("economy") or (up if up == down else f"{up}/{down}"))

    def outer(known: Mapping[str, Any]) -> str:
        rate = known.get("outer_rate")
        return str(known.get("outer") or "") + (f" {rate:g}" if rate not in (None, 1) else "")

    def strategy(known: Mapping[str, Any]) -> str:
        return str(known.get("strategy") or "")

    def counted(letter: str, name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda known: f"{letter}={known[name]}" if known.get(name) else ""

    names = [codec(known) for known in settings]
    for tell in (outer, strategy, counted("E", "epochs"), counted("S", "steps"), counted("R", "rounds")):
        told: dict[tuple[object, ...], set[str]] = {}
        for known, name in zip(settings, names, strict=True):
            told.setdefault((known.get("kind"), name, known.get("plan"), scenario(known)), set()).add(tell(known))
        unlike = {place[:2] for place, words in told.items() if len(words) > 1}
        names = [
            f"{name} {tell(known)}".strip() if (known.get("kind"), name) in unlike else name
            for known, name in zip(settings, names, strict=True)
        ]
    return names
