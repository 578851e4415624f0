"""How much a model weighs: bytes that a round moves for one silo, and bytes that its disk must hold.

Upper bounds out of rules and layout alone, before a single byte has moved: for the doctors, and for whoever plans a
federation. What was really moved is in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from feddiff.core.codec import CODECS
from feddiff.core.config import FederationConfig
from feddiff.core.segments import Layout
from feddiff.core.sharing import share


@dataclass(frozen=True)
class Volume:
    """Bytes of transfers for one silo, at most."""

    down: int
    """In a round."""
    up: int
    first: int
    """Down, once, before its first round: the whole model."""

    @property
    def round(self) -> int:
        return self.down + self.up


def payload(codec: str, elements: int, chunk_elements: int) -> int:
    """Bytes that a transfer of so many values cannot exceed, framing not counted."""
    whole, rest = divmod(elements, chunk_elements)
    size = CODECS[codec].bound
    return whole * size(chunk_elements) + (size(rest) if rest else 0)


def volume(config: FederationConfig, layout: Layout) -> Volume:
    """What the rules make a silo move. Raises ConfigError for rules that do not go with the layout."""
    shared = share(layout, config.plan, config.personal, config.frozen).shared
    chunk = config.codec.chunk_elements

    def size(names: tuple[str, ...], direction: Literal["up", "down"]) -> int:
        return sum(payload(config.codec.of(name, direction), layout[name].size, chunk) for name in names)

    first = 0 if config.initial == "seed" else sum(payload("fp32", each.size, chunk) for each in layout.segments)
    up = size(shared, "up")
    if config.plan == "usplit":  # a pair's larger half, with the bottleneck
        halves = (tuple(name for name in shared if layout[name].part != part) for part in ("encoder", "decoder"))
        up = max(size(half, "up") for half in halves)
    down = size(shared, "down")
    if config.budget is not None:
        limit = config.budget.bytes_per_silo or (config.budget.bytes_per_round or 0) // config.rounds.participants
        if limit:
            down, up = min(down, limit // 2), min(up, limit // 2)
    return Volume(down, up, first)


def silo_disk(config: FederationConfig, layout: Layout) -> int:
    """Bytes that a silo's state folder may come to, images not counted.

    Files are replaced by a rename, so each is there twice for a moment.
    """
    whole, averages, moves = 4 * layout.size, bool(config.training.ema_decay), volume(config, layout)
    held = whole + 4 * max(segment.size for segment in layout.segments)
    trained = 2 * whole * (1 + averages)
    checkpoint = 2 * whole * (3 + averages)  # weights and Adam's two moments
    shared = share(layout, config.plan, config.personal, config.frozen).shared
    lossy = any(not CODECS[config.codec.of(name, "up")].lossless for name in shared) or config.budget is not None
    lost = 2 * whole if lossy and config.codec.feedback else 0
    return held + trained + checkpoint + lost + max(moves.down, moves.first) + moves.up


def federator_disk(config: FederationConfig, layout: Layout, silos: int) -> int:
    """Bytes that a federator's folder may come to with so many silos in a round."""
    whole, moves, kept = 4 * layout.size, volume(config, layout), config.keep_versions + 1
    beside = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "yogi": 2}[config.outer.optimizer]
    beside += bool(config.outer.ema) + any(not CODECS[config.codec.of(name, "down")].lossless for name in layout.names)
    published = kept * moves.down + whole  # and a snapshot
    measuring = 8 * whole if config.quality is not None and config.has_global_model else 0  # rounds that wait
    return whole + kept * whole * (1 + beside) + published + silos * moves.up + measuring


def training_memory(config: FederationConfig, layout: Layout) -> int:
    """Bytes of a training's weights, gradients and optimizer; activations, which no layout knows, not counted."""
    return 4 * layout.size * (4 + bool(config.training.ema_decay))
