"""The tables of a sweep's page: every setting with its numbers, the paper's arrangement of them, bytes by segment.

Takes bench/setting.py's settings; the report puts the tables on its page. Numbers of two bases never stand in a column
unmarked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from feddiff.bench.basis import Basis
from feddiff.bench.cell import BEFORE
from feddiff.bench.looks import colour
from feddiff.bench.setting import Setting, Spread, spread
from feddiff.federator import page
from feddiff.federator.measure import NONE

Good = Literal["small", "large"]
FRONT = "◆"


Write = Callable[[float, float], str]


def figures(value: float, like: float | None = None) -> str:
    """Three or so figures, as many digits as ``like`` would have; never an exponent."""
    size = float(f"{abs(value if like is None else like):.3g}")
    digits = 0 if size >= 100 or not size else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"


def thousandfold(value: float, like: float) -> str:
    return figures(1000 * value, 1000 * like)


def hundredths(value: float, _: float) -> str:
    return f"{value:.2f}"


def thousandths(value: float, _: float) -> str:
    return f"{value:.3f}"


def percent(share: float, _: float) -> str:
    return f"{100 * share:.1f} %"


def exactly(value: float, _: float) -> str:
    return f"{value:.4f}"


@dataclass
class Column:
    """One of the table: its numbers by the settings' numbers, and the bases they come from."""

    head: str
    write: Write
    good: Good | None = None
    values: Mapping[int, tuple[Basis | None, Spread]] = field(default_factory=dict)

    @property
    def bases(self) -> list[Basis | None]:
        """The most common first."""
        found = [basis for basis, _ in self.values.values()]
        return sorted(dict.fromkeys(found), key=lambda basis: -found.count(basis))

    def cell(self, number: int) -> str:
        """Mean and deviation; with a letter if its basis is not that of most others."""
        if number not in self.values:
            return NONE
        basis, value = self.values[number]
        place = self.bases.index(basis)
        return value.text(self.write) + (f" ({_letter(place)})" if place else "")

    def best(self, settings: Sequence[Setting]) -> set[int]:
        """Whose mean is best of these, if that says anything: several, all of one basis, not all the same."""
        known = [self.values[each.number] for each in settings if each.number in self.values]
        if self.good is None or len(known) < 2 or len({basis for basis, _ in known}) > 1:
            return set()
        means = {each.number: self.values[each.number][1].mean for each in settings if each.number in self.values}
        wanted = (min if self.good == "small" else max)(means.values())
        found = {number for number, mean in means.items() if mean == wanted}
        return found if len(found) < len(means) else set()


METRICS: tuple[tuple[str, str, str, Write, Good], ...] = (
    ("FID, test", "fid", "test", figures, "small"),
    ("FID, training", "fid", "training", figures, "small"),
    ("KID, test, ×1000", "kid", "test", thousandfold, "small"),
    ("precision", "precision", "test", hundredths, "large"),
    ("recall", "recall", "test", hundredths, "large"),
    ("Inception score", "inception_score", "test", figures, "large"),
    ("class KL", "class_kl", "test", thousandths, "small"),
    ("memorised", "memorised", "training", percent, "small"),
)


def columns(settings: Sequence[Setting]) -> list[Column]:
    """Those that anybody has a number in."""
    found = [
        Column("MB down", figures, values=_plain(settings, lambda each: each.wire and _sent(each, "down"))),
        Column("MB up", figures, values=_plain(settings, lambda each: each.wire and _sent(each, "up"))),
        Column("× fewer than raw", figures, values=_plain(settings, lambda each: _steady(fewer(each)))),
    ]
    for head, metric, against, write, good in METRICS:
        values = {}
        for each in settings:
            for basis, value in list(each.measured(metric, against).items())[:1]:
                values[each.number] = (basis, value)
        found.append(Column(head, write, good, values))
    found.append(Column("validation loss", exactly, "small", _plain(settings, lambda each: each.loss)))
    return [column for column in found if column.values]


def _plain(settings: Sequence[Setting], read: Callable[[Setting], Spread | None]) -> dict[int, tuple[None, Spread]]:
    """Numbers that are the same however they are measured."""
    return {each.number: (None, value) for each in settings if (value := read(each)) is not None}


def _sent(each: Setting, way: str) -> Spread | None:
    """In MB."""
    total = each.total(way)
    return None if total is None else spread([total.mean / 1e6])


def _steady(value: Spread | None) -> Spread | None:
    """Without the deviation: bytes differ from seed to seed by a few packets."""
    return None if value is None else spread([value.mean])


def fewer(setting: Setting) -> Spread | None:
    """How many times fewer bytes than FULL in raw float32, with the same silos and rounds."""
    totals = [each["totals"] for each in setting.results]
    wires = [(each.get("raw", 0), each.get("down", 0) + each.get("up", 0)) for each in totals]
    return spread(raw / wire for raw, wire in wires if raw and wire)


def results(settings: Sequence[Setting], front: Sequence[Setting]) -> str:
    """The table of all settings, scenario by scenario, baselines last, and what its letters mean."""
    found = columns(settings)
    winners = {each.number for each in front}
    seeds = {len(each.results) for each in settings}
    groups: dict[str, list[page.Row]] = {}
    for title, members in _parts(settings).items():
        best = [column.best([each for each in members if each.wire is not None]) for column in found]
        groups[title] = []
        for each in members:
            cells = [_name(each, winners, len(members)), *(column.cell(each.number) for column in found)]
            strong = [place for place, numbers in enumerate(best, 1) if each.number in numbers]
            if len(seeds) > 1:
                cells.append(str(len(each.results)))
            groups[title].append(page.Row(cells, colour(each.plan), frozenset(strong)))
    heads = ["setting", *(column.head for column in found), *(["seeds"] if len(seeds) > 1 else [])]
    blocks = [page.grouped(heads, groups)]
    most = max(seeds, default=0)
    told = f"Mean ± standard deviation over {'the' if len(seeds) > 1 else most} seeds. " if most > 1 else "One seed. "
    told += f"Bold: the best mean of its part. {FRONT}: on the Pareto front."
    if any(each.of == "silos" for each in settings):
        told += " °: no global model, so the silos' own are measured: against the test images by samples of all of them"
        told += " together, as many of each as its share of the images is; else it is their mean."
    blocks.append(page.note(told))
    for column in found:
        for place, basis in enumerate(column.bases):
            if place and basis is not None:
                told = f"({_letter(place)}) {column.head}: {basis}; not comparable with numbers without the letter."
                blocks.append(page.note(told))
    return "\n".join(blocks)


def _name(each: Setting, winners: set[int], members: int) -> str:
    marks = (" °" if each.of == "silos" else "") + (f" {FRONT}" if each.number in winners and members > 1 else "")
    work = f"  {each.scenario}" if each.wire is None and each.scenario else ""
    return f"{each.number}  {each.name}{work}{marks}"


def _parts(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    parts: dict[str, list[Setting]] = {}
    for each in settings:
        parts.setdefault((each.scenario or "all") if each.kind == "federated" else "baselines", []).append(each)
    return parts


def arranged(settings: Sequence[Setting], value: Callable[[Setting], Spread | None]) -> str:
    """As FedDiffuse prints them: a row for each scenario and codec, a column for each plan; "" for a single plan."""
    federated = [each for each in settings if each.wire is not None and value(each) is not None]
    plans = list(dict.fromkeys(each.plan for each in federated))
    rows = list(dict.fromkeys((each.scenario, each.variant) for each in federated))
    if len(plans) < 2:
        return ""
    lines = []
    for row in rows:
        found = {each.plan: each for each in federated if (each.scenario, each.variant) == row}
        cells = [number.text(figures) if plan in found and (number := value(found[plan])) else NONE for plan in plans]
        lines.append((", ".join(part for part in row if part), *cells))
    return page.table(("", *plans), lines)


def by_segment(settings: Sequence[Setting]) -> str:
    """MB on the wire of each segment, both directions, mean over seeds."""
    from feddiff.bench.bars import segments

    groups: dict[str, list[page.Row]] = {}
    names = dict[str, None]()
    sizes = {each.number: segments(each, "down", "up") for each in settings if each.wire is not None}
    for found in sizes.values():
        names |= dict.fromkeys(found)
    for each in settings:
        if each.number in sizes:
            cells = [figures(sizes[each.number].get(name, 0) / 1e6) for name in names]
            row = page.Row((f"{each.number}  {each.name}", *cells), colour(each.plan))
            groups.setdefault(each.scenario, []).append(row)
    return page.grouped(("MB on the wire", *(name or "protocol" for name in names)), groups) if names else ""


def personal(settings: Sequence[Setting]) -> str:
    """What silos' own last models gain over a global one; "" where nobody measured it."""
    rows, before = [], False
    for each in settings:
        found = [
            result["quality"]["personalisation"] for result in each.results if result["quality"].get("personalisation")
        ]
        spreads = [spread(one.get(name) for one in found) for name in ("api", "mpi", "pui")]
        before = before or any(one.get("against") == BEFORE for one in found)
        if any(spreads):
            cells = [NONE if one is None else one.text(figures) for one in spreads]
            rows.append(page.Row((f"{each.number}  {each.name}, {each.scenario}", *cells), colour(each.plan)))
    if not rows:
        return ""
    told = "FID of each silo's own last model against its own images, beside the global model's against the same:"
    told += " API is the mean gain over silos, MPI the median, PUI the share of silos that gain."
    if before:
        told += f' Settings that begin with the model of "{BEFORE}" are held against that one.'
    return page.grouped(("in % of the global model's FID", "API", "MPI", "PUI"), {"": rows}) + page.note(told)


def _letter(place: int) -> str:
    return chr(ord("a") + (place - 1) % 26)
