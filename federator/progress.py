"""A line for people about each round that has closed."""

from __future__ import annotations

import math

from feddiff.federator.federation import Federation
from feddiff.federator.journal import Round
from feddiff.federator.measure import amount, mean


def round_line(federation: Federation, closed: Round) -> str:
    """Loss, silos in, bytes down and up, ratio to raw fp32 of the whole model both ways, seconds."""
    metrics = federation.journal.metrics(closed.round).get(closed.round, {})
    losses = {silo: values["loss"] for silo, values in metrics.items() if "loss" in values and silo in closed.silos}
    loss = mean(losses, closed.weights)
    down, up = (federation.ledger.wire(direction, closed.round) for direction in ("down", "up"))
    raw = 8 * federation.layout.size * max(len(closed.plan.assignments), 1)
    seconds = (closed.closed_at or closed.opened_at) - closed.opened_at
    return (
        f"round {closed.round:>3}/{federation.config.rounds.count}"
        f"  loss {'   -  ' if math.isnan(loss) else f'{loss:.4f}'}"
        f"  silos {len(closed.silos)}/{len(closed.plan.assignments)}"
        f"  down {amount(down)}  up {amount(up)}  {(down + up) / raw:5.1%} of raw fp32  {seconds:.1f} s"
    )
