"""What a federation cost and brought, for people to look at: a short text, two charts, one page.

Last stop of the flow: the ledger's rows and what the rounds reported come in as plain data; no database is asked
and nothing is changed. Every number is a sum over the rows given, so text, page and ledger agree. The measure is
FULL without a codec: every silo of a round receives and sends the whole model as raw float32, together
2 * K * R * P * 4 bytes (FedDiffuse, arXiv 2406.12575).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core.errors import StoreError
from feddiff.core.segments import Layout
from feddiff.core.spool import POOL
from feddiff.core.store import write_atomic
from feddiff.federator import charts, page, tables
from feddiff.federator.appraisal import curves, newest, rows, table
from feddiff.federator.cost import Cost, costs
from feddiff.federator.filtering import Verdict
from feddiff.federator.ledger import OVERHEAD, Entry, Reading
from feddiff.federator.measure import amount, duration, mean, ratio, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RoundSummary:
    """One closed round. ``silos`` are in the published average, of ``planned`` that were given work."""

    round: int
    silos: int
    planned: int
    losses: dict[str, float]
    """Training loss by silo, of those that reported one."""
    opened: float
    closed: float
    """Unix seconds."""
    samples: Mapping[str, int] = field(default_factory=dict)
    """Images by silo: how much each loss weighs in the mean; 1 for one that is not here."""

    @property
    def loss(self) -> float:
        """Mean over the silos with a finite loss, by images; NaN without any."""
        return mean(self.losses, self.samples)


@dataclass(frozen=True)
class Story:
    """Everything that a report tells of one federation."""

    federation: str
    policy: str
    config: str
    """The rules, as text for people."""
    config_digest: str
    layout: Layout
    rounds: Sequence[RoundSummary]
    entries: Sequence[Entry]
    samples: Path | Sequence[tuple[str, Path]]
    """Pictures of what the model draws, PNG, with their titles."""
    codec_up: str
    codec_down: str
    grids: Sequence[tuple[str, Path]] = ()
    """The same of silos' own models, which come from the silos."""
    readings: Sequence[Reading] = ()
    """What was measured, in order of rounds."""
    verdicts: Sequence[Verdict] = ()
    """What was decided of silos by their measurements, in order."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Segments that are not exchanged: ``personal`` or ``frozen``."""

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of all that took part or cost a byte."""
        return tuple(sorted({e.silo for e in self.entries} | {name for r in self.rounds for name in r.losses}))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Rounds of which anything is known, an unfinished one and bytes before the first included."""
        return tuple(sorted({e.round for e in self.entries} | {r.round for r in self.rounds}))

    @property
    def segments(self) -> dict[str, Cost]:
        """Every segment in layout order, also one that never travelled, then public images, if there were any, and
        what carries neither."""
        sums = costs(self.entries, lambda e: e.segment)
        names = (*self.layout.names, *([POOL] if POOL in sums else []), OVERHEAD)
        return {name: sums.get(name, Cost()) for name in names}

    @property
    def seconds(self) -> float:
        """From the opening of the first round to the end of the last."""
        return max((r.closed for r in self.rounds), default=0.0) - min((r.opened for r in self.rounds), default=0.0)

    @property
    def loss(self) -> str:
        """The first round's mean loss and the last one's."""
        return span([r.loss for r in self.rounds])

    def full(self, round: int | None = None) -> int:
        """Bytes of the whole model as raw float32, down and up, for the silos planned in one round or in all."""
        silos = sum(r.planned for r in self.rounds if round in (None, r.round))
        return 2 * silos * self.layout.size * 4


def summary(story: Story) -> str:
    """The report in five lines of text, and one about quality if that was measured."""
    total, full = Cost.of(story.entries), story.full()
    return "\n".join(
        (
            f"{story.federation}: plan {story.policy}, codec {story.codec_down} down, {story.codec_up} up",
            f"{len(story.rounds)} rounds, {len(story.silos)} silos, {duration(story.seconds)}",
            f"on the wire: {amount(total.down)} down, {amount(total.up)} up,"
            f" {amount(total.retransmitted)} retransmitted",
            f"raw fp32 exchange of the whole model: {amount(full)}, {ratio(full, total.wire)} the wire",
            f"mean training loss: {story.loss}",
            *([f"quality: {measured}"] if (measured := newest(story.readings)) else []),
        )
    )


def write(story: Story, folder: Path) -> Path:
    """Write ``loss.png``, ``bytes.png`` and ``report.html`` into a folder; returns the page's path.

    The same story gives the same bytes. Raises StoreError where the disk refuses, DataError for a sample picture
    that is not PNG.
    """
    losses = {silo: [r.losses.get(silo, math.nan) for r in story.rounds] for silo in story.silos}
    loss = charts.loss([r.round for r in story.rounds], losses, [r.loss for r in story.rounds])
    wire = _wire(story)
    text = page.page(
        story.federation,
        f"plan {story.policy} · codec {story.codec_down} down, {story.codec_up} up ·"
        f" {story.layout.size:,} parameters · rules {story.config_digest[:16]}",
        _figures(story),
        _samples(story),
        page.heading("What it brought, what it cost"),
        page.cards(
            page.chart(charts.svg(loss, "loss"), "Training loss", "by round; the thick line is the mean"),
            page.chart(
                charts.svg(_cumulative(story), "sum"),
                "Bytes so far",
                "on the wire, against the whole model as raw float32, down and up, for the silos of each round",
            ),
            page.chart(charts.svg(wire, "wire"), "Bytes by round", "on the wire, by part of the model", wide=True),
            page.chart(
                charts.svg(_segments(story), "segments"),
                "Bytes by segment",
                "what the exchanged weights weigh, what the codec makes of them, what crossed the wire",
                wide=True,
            ),
        ),
        *_quality(story),
        *((page.heading("Silos warned and left out"), tables.by_verdict(story)) if story.verdicts else ()),
        page.heading("By round"),
        tables.by_round(story),
        page.heading("By segment"),
        tables.by_segment(story),
        page.heading("By silo"),
        tables.by_silo(story),
        _notes(story),
        page.folded("The rules", story.config),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "loss.png", charts.png(loss))
        write_atomic(folder / "bytes.png", charts.png(wire))
        write_atomic(folder / "report.html", text.encode())
    except OSError as error:
        raise StoreError(f"the report cannot be written to {folder}: {error}") from None
    return folder / "report.html"


def _figures(story: Story) -> str:
    total, full = Cost.of(story.entries), story.full()
    return page.figures(
        (
            (str(len(story.rounds)), "rounds"),
            (str(len(story.silos)), "silos"),
            (duration(story.seconds), "first opening to last close"),
            (story.loss, "mean training loss"),
            (amount(total.down), "down, on the wire"),
            (amount(total.up), "up, on the wire"),
            (ratio(full, total.wire), f"raw fp32 exchange ({amount(full)}) to wire"),
            (amount(total.retransmitted), "retransmitted"),
        )
    )


def _samples(story: Story) -> str:
    given = [("samples", story.samples)] if isinstance(story.samples, Path) else list(story.samples)
    try:
        pairs = [(title, path.read_bytes()) for title, path in given]
        own = [(title, path.read_bytes()) for title, path in story.grids]
    except OSError as error:
        raise StoreError(f"the samples cannot be read: {error}") from None
    own = [(title, data) for title, data in own if data.startswith(page.PNG) and len(data) >= 24]  # a silo sent it
    shown = (("Drawn by the model", pairs), ("Drawn by the silos' own models", own))
    return "".join(page.heading(title) + page.pictures(these) for title, these in shown if these)


def _quality(story: Story) -> tuple[str, ...]:
    """What was measured, and against which bytes; nothing if nothing was."""
    if not story.readings:
        return ()
    sums = costs(story.entries, lambda e: e.round)
    sent = dict(zip(story.numbers, accumulate(sums.get(n, Cost()).wire for n in story.numbers), strict=True))
    shown, alone = rows(story.readings, together=True), rows(story.readings)
    shared, means = ([row for row in shown if bool(row.silos) is silos] for silos in (False, True))
    figure = charts.quality(
        curves(shared), curves(means), curves([row for row in alone if row.model != "global"]), sent
    )
    head, lines, notes = table(shown)
    caption = "Fréchet distance of features; lower is better. Curves that are not comparable are not joined."
    return (
        page.heading("Quality by round"),
        page.cards(page.chart(charts.svg(figure, "quality"), "FID by round, and by bytes", caption, wide=True)),
        page.table(head, lines),
        *map(page.note, notes),
    )


def _wire(story: Story) -> Figure:
    """The chart of wire bytes by round; parts that never travelled are not in it."""
    numbers = story.numbers
    sides = {d: {part: [0] * len(numbers) for part in charts.PARTS} for d in ("down", "up")}
    for entry in story.entries:
        sides[entry.direction][_part(entry.segment)][numbers.index(entry.round)] += entry.wire
    parts = [part for part in charts.PARTS if any(sides["down"][part]) or any(sides["up"][part])]
    return charts.wire(numbers, *({part: sides[d][part] for part in parts} for d in ("down", "up")))


def _cumulative(story: Story) -> Figure:
    sums = costs(story.entries, lambda e: e.round)
    sent = accumulate(sums.get(n, Cost()).wire for n in story.numbers)
    return charts.cumulative(story.numbers, list(sent), list(accumulate(map(story.full, story.numbers))))


def _segments(story: Story) -> Figure:
    return charts.segments(
        [(name or "protocol", _part(name), cost.raw, cost.encoded, cost.wire) for name, cost in story.segments.items()]
    )


def _part(segment: str) -> str:
    return "protocol" if segment == OVERHEAD else segment.partition(".")[0]


def _notes(story: Story) -> str:
    text = (
        "Wire bytes are everything that crossed the connection: payload, framing of protobuf, gRPC, HTTP/2 and TLS,"
        " and whatever had to be sent again. Raw is four bytes for each value that was exchanged; encoded is that"
        " after the codec. Units are decimal."
    )
    guessed = sum(entry.estimated for entry in story.entries)
    if guessed:
        text += f" In {guessed} of {len(story.entries)} rows wire bytes are computed from message sizes."
    return page.note(text)
