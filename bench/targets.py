"""What a round's transport is meant to cost, held against the rows of one run.

Ratios compare rows of one table only: the machine is the same, and so is what else it had to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from feddiff.bench.peers import FLOOR
from feddiff.bench.row import Row
from feddiff.bench.stream import ROW as STREAM

OURS = "feddiff "
WALL_OF_STREAM = 1.4
CPU_OF_FLOOR = 3.0
FASTER = {"fp32": 3.0, "int8": 6.0, "int4": 6.0}
"""By codec: how many times faster than the best peer, which sends fp32."""
START_S = 5.0
FEDERATOR_OVER_IDLE_MB = 150.0
SILO_OVER_IDLE_MODELS = 1.2


def judged(rows: Sequence[Row]) -> list[str]:
    """A line for each target that these rows can be held against."""
    lines = []
    good = [row for row in rows if not row.error]
    for row in good:
        if row.name.startswith(OURS):
            beside = [other for other in good if (other.silos, other.parameters) == (row.silos, row.parameters)]
            for what, value, bound, most in _compared(row, beside):
                met = value <= bound if most else value >= bound
                wanted = f"at {'most' if most else 'least'} {bound:g}"
                lines.append(f"{'met   ' if met else 'MISSED'} {row.name}, K={row.silos}: {what} {value:.2f}, {wanted}")
    return lines


def _compared(row: Row, beside: Sequence[Row]) -> Iterator[tuple[str, float, float, bool]]:
    """(what, value, bound, whether the bound is the most) of one of our rows."""
    codec = row.name.removeprefix(OURS)
    streams = [other.round_s for other in beside if other.name.startswith(STREAM) and other.round_s]
    floors = [other.cpu_s for other in beside if other.name == FLOOR and other.cpu_s]
    named = (STREAM, OURS, FLOOR)
    peers = {other.name: other.round_s for other in beside if not other.name.startswith(named) and other.round_s}
    if codec == "fp32" and streams and row.round_s:
        yield "wall / bare gRPC stream", row.round_s / min(streams), WALL_OF_STREAM, True
    if codec == "fp32" and floors and row.cpu_s:
        yield "CPU / floor", row.cpu_s / floors[0], CPU_OF_FLOOR, True
    if codec in FASTER and peers and row.round_s:
        best = min(peers, key=lambda name: peers[name])
        yield f"times faster than {best}", peers[best] / row.round_s, FASTER[codec], False
    if row.start_s is not None:
        yield "start to round 1, s", row.start_s, START_S, True
    if row.federator_peak_mb is not None and row.federator_idle_mb is not None:
        yield "federator over its idle, MB", row.federator_peak_mb - row.federator_idle_mb, FEDERATOR_OVER_IDLE_MB, True
    if row.silo_models is not None:
        yield "silo over its idle, models", row.silo_models, SILO_OVER_IDLE_MODELS, True
