"""A line for people about each round that has closed."""

from __future__ import annotations

from feddiff.federator.federation import Federation
from feddiff.federator.journal import Round


def mean_loss(losses: dict[str, float], samples: dict[str, int]) -> float | None:
    """The silos' training losses, weighted by their number of images; None if no silo told any."""
    total = sum(samples.get(silo, 1) for silo in losses)
    return sum(samples.get(silo, 1) * loss for silo, loss in losses.items()) / total if losses else None


def size(count: float) -> str:
    """Bytes in decimal units, e.g. ``1.25 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def round_line(federation: Federation, closed: Round) -> str:
    """Loss, silos in, bytes down and up, ratio to raw fp32 of the whole model both ways, seconds."""
    metrics = federation.journal.metrics(closed.round).get(closed.round, {})
    losses = {silo: values["loss"] for silo, values in metrics.items() if "loss" in values and silo in closed.silos}
    loss = mean_loss(losses, dict(closed.weights))
    down, up = (federation.ledger.wire(direction, closed.round) for direction in ("down", "up"))
    raw = 8 * federation.layout.size * max(len(closed.plan.assignments), 1)
    seconds = (closed.closed_at or closed.opened_at) - closed.opened_at
    return (
        f"round {closed.round:>3}/{federation.config.rounds.count}"
        f"  loss {'   -  ' if loss is None else f'{loss:.4f}'}"
        f"  silos {len(closed.silos)}/{len(closed.plan.assignments)}"
        f"  down {size(down)}  up {size(up)}  {(down + up) / raw:5.1%} of raw fp32  {seconds:.1f} s"
    )
