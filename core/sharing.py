"""What silos share of the model: which segments travel, which are a silo's own, which nobody ever changes.

Between the rules (core/config.py), which speak of segments and parts by name, and the layout, which has them. The
planner makes every round of it, the trainer leaves the frozen ones alone.

    shared     travel: down and up as the plan says
    personal   the silo's own: what the plan keeps there (FedDiffuse, arXiv 2406.12575), and what ``personal`` names
               (FedPer, arXiv 1912.00818; Phoenix, arXiv 2306.04098: the last basic decoder block)
    frozen     as in the initial model for good, at every silo: transfer learning from a published model (Hadjigeorgiou)

Personal and frozen ones come once, with the initial model, and cost no byte after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feddiff.core.errors import ConfigError
from feddiff.core.segments import PARTS, UNET, Layout, Part

SHARED: Mapping[str, tuple[Part, ...]] = {
    "full": PARTS,
    "usplit": UNET,
    "ulatdec": ("bottleneck", "decoder"),
    "udec": ("decoder",),
    "budget": UNET,
}
"""The parts that each plan shares."""


@dataclass(frozen=True)
class Sharing:
    """Names of segments, each in layout order; every segment is in one of the three."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]

    def __str__(self) -> str:
        """For people: what does not travel; empty if everything does."""
        kept = (("personal", self.personal), ("frozen", self.frozen))
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in kept if names)


def share(layout: Layout, plan: str, personal: Sequence[str] = (), frozen: int | Sequence[str] = ()) -> Sharing:
    """What a federation with these rules shares of a model.

    ``personal`` and ``frozen`` name segments or parts; a number of frozen ones means the first so many of the layout.
    Raises ConfigError for names that mean nothing, for a segment that would be both, and where a silo would have
    nothing to train or nothing to send.
    """
    if isinstance(frozen, int):
        if frozen > len(layout.names):
            names = ", ".join(layout.names)
            raise ConfigError(f"frozen = {frozen}, but the model has {len(layout.names)} segments: {names}")
        fixed = layout.names[:frozen]
    else:
        fixed = layout.select(*frozen)
    own = layout.select(*personal)
    if both := [name for name in own if name in fixed]:
        raise ConfigError(f"{', '.join(both)} cannot be both personal and frozen")
    if len(fixed) == len(layout.names):
        raise ConfigError("all segments are frozen: there is nothing to train")
    travels = [s for s in layout.segments if s.part in SHARED[plan] and s.name not in (*own, *fixed)]
    if not travels:
        raise ConfigError(f"plan {plan} has nothing left to share: all it shares is personal or frozen")
    if plan == "usplit":
        for part in ("encoder", "decoder"):
            if not any(each.part == part for each in travels):
                raise ConfigError(f"plan usplit deals encoder and decoder to pairs, and has no {part} left to share")
    shared = tuple(each.name for each in travels)
    return Sharing(shared, tuple(name for name in layout.names if name not in (*shared, *fixed)), fixed)


def stays(segment: str, plan: str, personal: Sequence[str] = ()) -> bool:
    """Whether a segment is a silo's own: by its name alone, so that a silo need not trust a task."""
    own = (*(part for part in PARTS if part not in SHARED[plan]), *personal)
    return any(name == "all" or f"{segment}.".startswith(f"{name}.") for name in own)
