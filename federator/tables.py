"""The report's tables: the same bytes by round, by segment and by silo; each ends in the same sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feddiff.core.spool import POOL
from feddiff.federator import page
from feddiff.federator.cost import Cost, costs
from feddiff.federator.ledger import OVERHEAD
from feddiff.federator.measure import NONE, amount, number, ratio, span

if TYPE_CHECKING:
    from feddiff.federator.report import Story

_LABELS = {OVERHEAD: "protocol", POOL: "pool (public images)"}


def by_round(story: Story) -> str:
    """One row for each round of which anything is known."""
    sums, closed, rows = costs(story.entries, lambda e: e.round), {r.round: r for r in story.rounds}, []
    for n in story.numbers:
        cost, r = sums.get(n, Cost()), closed.get(n)
        silos, loss, took = NONE, NONE, NONE
        if r:
            silos, loss, took = f"{r.silos} of {r.planned}", number(r.loss), f"{r.closed - r.opened:.1f}"
        sizes = (amount(cost.down), amount(cost.up), ratio(story.full(n), cost.wire))
        rows.append((str(n), silos, loss, *sizes, took))
    total = Cost.of(story.entries)
    sizes = (amount(total.down), amount(total.up), ratio(story.full(), total.wire))
    return page.table(
        ("round", "silos in / planned", "mean loss", "down", "up", "raw fp32 : wire", "seconds"),
        rows,
        ("all", "", story.loss, *sizes, f"{story.seconds:.1f}"),
    )


def by_segment(story: Story) -> str:
    """One row for each segment, also one that never travelled, and one for what carries no weights."""
    rows = []
    for name, cost in story.segments.items():
        values = NONE if name in (OVERHEAD, POOL) else f"{story.layout[name].size:,}"
        label = f"{name} ({story.kept[name]}, not sent)" if name in story.kept else _LABELS.get(name, name)
        rows.append((label, values, *_sizes(cost)))
    return page.table(
        ("segment", "parameters", "raw", "encoded", "down", "up", "raw : wire", "retransmitted"),
        rows,
        ("all", f"{story.layout.size:,}", *_sizes(Cost.of(story.entries))),
    )


def by_silo(story: Story) -> str:
    """One row for each silo; its rounds are those in which it reported a loss."""
    sums, rows = costs(story.entries, lambda e: e.silo), []
    for name in story.silos:
        cost, losses = sums.get(name, Cost()), [r.losses[name] for r in story.rounds if name in r.losses]
        sizes = (amount(cost.down), amount(cost.up), amount(cost.retransmitted))
        rows.append((name, str(len(losses)), span(losses), *sizes, f"{cost.seconds:.1f}"))
    total = Cost.of(story.entries)
    sizes = (amount(total.down), amount(total.up), amount(total.retransmitted))
    return page.table(
        ("silo", "rounds", "loss", "down", "up", "retransmitted", "seconds in transfer"),
        rows,
        ("all", "", story.loss, *sizes, f"{total.seconds:.1f}"),
    )


def by_verdict(story: Story) -> str:
    """One row for each thing that was decided of a silo by its measurements."""
    rows = [(each.silo, f"after round {each.round}", each.kind, each.reason) for each in story.verdicts]
    return page.table(("silo", "when", "decided", "why"), rows)


def _sizes(cost: Cost) -> tuple[str, ...]:
    sizes = (cost.raw, cost.encoded, cost.down, cost.up)
    return (*map(amount, sizes), ratio(cost.raw, cost.wire), amount(cost.retransmitted))
