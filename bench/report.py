"""One page of a sweep, for people: what each setting sent, how good it got, what its models draw.

Last stop of ``feddiff-bench report``: bench/table.py reads the run, bench/setting.py makes means over seeds of it,
charts and tables have modules of their own. The page needs nothing beside it; what a run does not have is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.bench import bars, curves, imprint, overview, pareto, partition, savings
from feddiff.bench.basis import Way
from feddiff.bench.campaign import MARK
from feddiff.bench.looks import Look, looks
from feddiff.bench.savings import Parts
from feddiff.bench.setting import Setting, Spread, scenario, settings
from feddiff.bench.table import Entry
from feddiff.core.errors import FedDiffError, StoreError
from feddiff.core.store import write_atomic
from feddiff.federator import charts, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PICTURE_BYTES = 24 << 20
"""Of grids on the page, and as much of animations; what does not fit stays in the run's folder."""
MOST_DEALS = 12
"""Charts of who has what."""
Read = Callable[[Setting], Spread | None]


@dataclass
class Gallery:
    """The charts of a page: drawn once, on the page as SVG and beside it as PNG."""

    folder: Path
    written: list[Path] = field(default_factory=list)

    def card(self, figures: Iterable[Figure | None], name: str, title: str, caption: str, wide: bool = True) -> str:
        """A chart, or the sheets of a long one; "" for none."""
        sheets = [figure for figure in figures if figure is not None]
        cards = []
        for number, figure in enumerate(sheets, 1):
            ending = f"-{number}" if len(sheets) > 1 else ""
            place = self.folder / f"{name}{ending}.png"
            write_atomic(place, charts.png(figure))
            self.written.append(place)
            figure.set_layout_engine("none")  # as it was laid out: that again would take as long as drawing
            told = f"{title} ({number} of {len(sheets)})" if len(sheets) > 1 else title
            cards.append(page.chart(charts.svg(figure, f"{name}{ending}"), told, caption, wide))
        return "".join(cards)


def write(run: Path, entries: Sequence[Entry], out: Path) -> list[Path]:
    """Write ``report.html`` and ``charts/*.png`` into a folder; returns their paths, the page first.

    Raises StoreError where the disk refuses, DataError for a picture of the run that is not PNG.
    """
    known = settings(entries)
    names = looks(each.variant for each in known if each.wire is not None)
    try:
        (out / "charts").mkdir(parents=True, exist_ok=True)
        gallery = Gallery(out / "charts")
        title = str(json.loads((run / MARK).read_text()).get("name", "sweep"))
        text = page.page(title, imprint.about(known), *_blocks(run, entries, known, names, gallery), landscape=True)
        write_atomic(out / "report.html", text.encode())
    except OSError as error:
        raise StoreError(f"the report cannot be written to {out}: {error}") from None
    return [out / "report.html", *gallery.written]


def _blocks(
    run: Path, entries: Sequence[Entry], known: Sequence[Setting], names: Mapping[str, Look], gallery: Gallery
) -> Iterable[str]:
    bases = imprint.bases(known, "fid", "test")
    fid = imprint.reader("fid", "test", bases[0]) if bases else None
    value: Read = fid or (lambda each: each.loss)
    front = pareto.best(known, value)
    yield page.figures(imprint.figures(entries, known, fid))
    yield imprint.missing(entries)
    several = len(pareto.panels(known)) > 1
    yield page.heading("Bytes against quality")
    yield page.cards(
        *(
            gallery.card(
                [pareto.chart(known, imprint.reader("fid", "test", basis), "FID, test (small is good)", names)],
                f"pareto-fid{_ending(place)}",
                "Bytes against FID",
                f"{basis}; mean, bars from the least to the largest seed; numbers as in the table",
                wide=several,
            )
            for place, basis in enumerate(bases)
        ),
        gallery.card(
            [pareto.chart(known, lambda each: each.loss, "validation loss (small is good)", names)],
            "pareto-loss",
            "Bytes against validation loss",
            "on held-out images, the same noise for all; mean, bars from the least to the largest seed",
            wide=several,
        ),
    )
    if len(bases) > 1:
        yield page.note("FIDs of another extractor, number of samples or reference stand in charts of their own.")
    yield from (page.note(f"Caution: {each}.") for each in imprint.cautions(known))
    yield page.heading("Every setting")
    yield overview.results(known, front)
    arranged = overview.arranged(known, value)
    if arranged:
        yield page.heading("FID, test, by plan" if fid else "Validation loss by plan")
        yield arranged
    yield _progress(known, names, gallery)
    personal = overview.personal(known)
    if personal:
        yield page.heading("Personal models against the global one")
        yield personal
    yield page.heading("What travelled")
    yield page.cards(
        gallery.card(
            bars.traffic(known),
            "bytes",
            "Bytes by direction and segment",
            "left: on the wire, all rounds, mean over seeds; right: shares of segments, the first download included",
        )
    )
    yield page.heading("By segment")
    yield overview.by_segment(known)
    yield page.heading("What the plans save")
    yield savings.table(known, _model(known))
    yield _drawn(run, known, gallery)
    yield _deals(known, gallery)
    yield imprint.notes(known)


def _progress(known: Sequence[Setting], names: Mapping[str, Look], gallery: Gallery) -> str:
    """Charts by round: the FIDs that were measured on the way, and the training loss."""
    found = Counter(
        Way.of_number(number)
        for each in known
        for result in each.results
        for round in result["rounds"]
        for number in round.get("quality", ())
        if number["metric"] == "fid"
    )
    cards = []
    for place, (way, _) in enumerate(sorted(found.items(), key=lambda item: (item[0].of, -item[1]))):
        ending = _ending(place)
        read = partial(way.read, metric="fid")
        final = partial(_ended, way=way)
        told = f"{way}; mean over seeds, band from the least to the largest"
        wide = len({each.plan for each in known if each.wire is not None and each.curve(read).rounds}) > 2
        by_round = curves.charts(known, read, "FID", names, "rounds", final)
        cards.append(gallery.card(by_round, f"fid-by-round{ending}", "FID by round", told, wide))
        by_bytes = curves.charts(known, read, "FID", names, "bytes", final)
        cards.append(gallery.card(by_bytes, f"fid-by-bytes{ending}", "FID by bytes sent", told, wide))
    losses = curves.charts(known, lambda each: each.get("loss"), "training loss", names)
    told = "of the silos, by their images; mean over seeds, band from the least to the largest"
    wide = len({each.plan for each in known if each.wire is not None}) > 2
    cards.append(gallery.card(losses, "loss-by-round", "Training loss by round", told, wide))
    return page.heading("By round") + page.cards(*cards) if any(cards) else ""


def _ending(place: int) -> str:
    """Of a chart's name, for its second and further ways of measuring; numbers are of sheets."""
    return f"-{chr(ord('a') + place % 26)}" if place else ""


def _ended(each: Setting, way: Way) -> Spread | None:
    """The FID that a baseline ended with, if it can be held against rounds that were measured in this way."""
    found = each.measured("fid", way.basis.against)
    return next((value for basis, value in found.items() if way.like(basis)), None)


def _model(known: Sequence[Setting]) -> Parts | None:
    """The parts of the federations' UNet, where all have the same and it can still be built."""
    rules = {
        json.dumps(r["rules"]["model"]): r["rules"]
        for each in known
        for r in each.results
        if "model" in r.get("rules", {})
    }
    if len(rules) != 1:
        return None
    from feddiff.core import diffusion
    from feddiff.core.config import from_table

    (table,) = rules.values()
    kept = {name: table[name] for name in ("model", "data") if name in table}
    try:
        config = from_table(kept, "the run")
        return Parts.of(diffusion.layout(config)) if config.kind == "unet" else None
    except FedDiffError:
        return None


def _drawn(run: Path, known: Sequence[Setting], gallery: Gallery) -> str:
    """Grids side by side, the denoising, and which classes came of it."""
    blocks = []
    for ending, title in ((".png", "Drawn by the models"), (".denoising.png", "From noise to image")):
        pairs, left, room = [], 0, MOST_PICTURE_BYTES
        for each in known:
            place = run / "cells" / f"{each.keys[0]}{ending}"
            size = place.stat().st_size if place.exists() else 0
            if 0 < size <= room:
                named = f"{each.number} {each.name}" + (f", {each.scenario}" if each.scenario else "")
                pairs.append((named, place.read_bytes()))
                room -= size
            elif size:
                left += 1
        if pairs and ending == ".png":
            told = page.note("One seed of each setting; where there is no global model, a row for each silo.")
            blocks += [page.heading(title), told, page.gallery(pairs)]
        elif pairs:
            blocks.append(page.gallery(pairs, moving=title))
        if left:
            blocks.append(page.note(f"{title}: {left} more are in the run's folder."))
    card = gallery.card(
        bars.classes(known),
        "classes",
        "Classes of the samples",
        "as the extractor's classifier sees them; mean over seeds and models",
    )
    return "".join([*blocks, page.cards(card) if card else ""])


def _deals(known: Sequence[Setting], gallery: Gallery) -> str:
    """Silo x class of every scenario's first seed."""
    deals: dict[str, Mapping[str, Mapping[str, int]]] = {}
    for each in known:
        silos = each.results[0].get("data", {}).get("silos", {})
        if each.wire is not None and silos and any(silos.values()):
            deals.setdefault(", ".join(scenario(each.known)), silos)
    cards = []
    for name, silos in list(deals.items())[:MOST_DEALS]:
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        figure = partition.chart(silos, "")
        cards.append(
            gallery.card([figure], f"silos-{slug}", name, "images of each class at each silo; the first seed", False)
        )
    if not cards:
        return ""
    rest = len(deals) - MOST_DEALS
    more = page.note(f"{rest} more scenarios are in results.json.") if rest > 0 else ""
    return page.heading("Who has what") + page.cards(*cards) + more
