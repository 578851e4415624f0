"""What the fixed plans exchange, in closed form: parameters down and up, without a run.

Beside the ledger, which counts them in a real run; docs/plans.md explains the formulas. The report holds the two
against each other, and against the paper's own network (FedDiffuse: de Goede, Cox, Decouchant, arXiv 2406.12575).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from feddiff.bench.looks import colour
from feddiff.bench.setting import Setting, spread
from feddiff.core.config import POLICIES, Fixed
from feddiff.core.errors import ConfigError
from feddiff.core.segments import UNET, Layout
from feddiff.core.sharing import SHARED
from feddiff.federator import page
from feddiff.federator.measure import NONE


@dataclass(frozen=True)
class Parts:
    """How many parameters encoder, bottleneck and decoder of a UNet have."""

    encoder: int
    bottleneck: int
    decoder: int

    @classmethod
    def of(cls, layout: Layout, names: Collection[str] | None = None) -> Parts:
        """Of all segments, or of these alone."""
        sizes = {"encoder": 0, "bottleneck": 0, "decoder": 0}
        for segment in layout.segments:
            sizes[segment.part] += segment.size if names is None or segment.name in names else 0
        return cls(**sizes)

    @property
    def size(self) -> int:
        return self.encoder + self.bottleneck + self.decoder

    @property
    def shares(self) -> str:
        """For people, e.g. ``42.74 % encoder, 33.35 % bottleneck, 23.91 % decoder``."""
        named = {"encoder": self.encoder, "bottleneck": self.bottleneck, "decoder": self.decoder}
        return ", ".join(f"{100 * size / self.size:.2f} % {name}" for name, size in named.items())


FEDDIFFUSE = Parts(1_280_625, 999_271, 716_419)
"""The paper's network for 28x28x1: 2,996,315 parameters; 42.74, 33.35 and 23.91 %."""


@dataclass(frozen=True)
class Exchange:
    """Parameters that travel in all rounds, all silos together; fractions where chance decides, then the mean."""

    down: Fraction
    up: Fraction

    @property
    def total(self) -> Fraction:
        return self.down + self.up


NOTHING = Parts(0, 0, 0)


def exchanged(
    plan: Fixed,
    parts: Parts,
    silos: int,
    rounds: int,
    sampled: int | None = None,
    sent: bool = True,
    kept: Parts = NOTHING,
) -> Exchange:
    """The parameters exchanged under a plan, as ``federator.planner`` assigns them; nobody late, nobody missing.

    Down: a silo's first round brings it all P (nothing in round 1 if not ``sent``: with ``initial = "seed"`` silos make
    the initial model themselves), each other round what the plan shares. ``sampled``: the m silos that a round takes,
    by default all; they take turns (federator/sampling.py), so min(K, m·R) of them ever come. ``kept``: what of each
    part is personal or frozen (core/sharing.py); it comes with the whole once, and P stands without it below. Up: what
    the plan shares; of ``usplit`` each pair of silos sends P, an odd last one the bottleneck and on average half of the
    rest, a silo alone P. Raises ConfigError for counts below 1 or more silos sampled than there are.
    """
    present = silos if sampled is None else sampled
    if min(silos, rounds, present) < 1 or present > silos:
        raise ConfigError(f"{rounds} rounds with {present} of {silos} silos cannot be")
    travel = Parts(*(getattr(parts, name) - getattr(kept, name) for name in UNET))
    shared = sum(getattr(travel, name) for name in UNET if name in SHARED[plan])
    if sent:
        met = min(silos, present * rounds)
        down = Fraction(met * parts.size + (present * rounds - met) * shared)
    else:
        down = Fraction(present * (rounds - 1) * shared)
    up = Fraction(present * rounds * shared)
    if plan == "usplit" and present > 1:
        odd = travel.bottleneck + Fraction(travel.encoder + travel.decoder, 2)
        up = rounds * (present // 2 * travel.size + present % 2 * odd)
    return Exchange(down, up)


def saved(plan: Fixed, parts: Parts, silos: int, rounds: int, sampled: int | None = None) -> float:
    """What a plan exchanges less than ``full``, as a share of that; 0.736 for the paper's ``udec``."""
    whole = exchanged("full", parts, silos, rounds, sampled).total
    return float(1 - exchanged(plan, parts, silos, rounds, sampled).total / whole)


def table(settings: Sequence[Setting], parts: Parts | None) -> str:
    """Parameters exchanged by each plan: by the formula, as the ledger counted them, and the paper's own."""
    blocks = []
    found = dict.fromkeys(_case(each) for each in settings if each.wire is not None and each.plan in POLICIES)
    cases = [case for case in found if case is not None]
    if parts is not None and cases:
        groups = {}
        known = [each for each in settings if _counted([each]) is not None]
        for case in cases:
            silos, rounds, sampled, sent = case
            title = f"K={silos}, R={rounds}" + (f", {sampled} sampled" if sampled else "")
            whole = exchanged("full", parts, silos, rounds, sampled, sent).total
            rows = []
            for plan in POLICIES:
                formula = exchanged(plan, parts, silos, rounds, sampled, sent)
                cells = [plan, f"{float(formula.down):,.0f}", f"{float(formula.up):,.0f}"]
                cells.append(_less(float(formula.total / whole)))
                if known:
                    counted = _counted([each for each in known if each.plan == plan and _case(each) == case])
                    cells += [NONE] * 2 if counted is None else [f"{counted:,.0f}", _less(counted / float(whole))]
                rows.append(page.Row(cells, colour(plan)))
            groups[title if sent else f"{title}, initial model from the seed"] = rows
        head = ("plan", "down", "up", "against full", *(("counted", "against full") if known else ()))
        told = f"Of the model used: {parts.size:,} parameters, {parts.shares}; all silos and rounds."
        blocks += [page.grouped(head, groups), page.note(told + " Counted: by the ledger, mean." * bool(known))]
    lines = []
    for plan in POLICIES:
        formula = exchanged(plan, FEDDIFFUSE, 10, 15)
        less = [_less(1 - saved(plan, FEDDIFFUSE, silos, 15)) for silos in (10, 5)]
        lines.append(page.Row((plan, f"{float(formula.down):,.0f}", f"{float(formula.up):,.0f}", *less), colour(plan)))
    head = ("plan", "down, K=10", "up, K=10", "against full", "against full, K=5")
    blocks += [
        page.grouped(head, {"": lines}),
        page.note(
            f"Of FedDiffuse's own network (arXiv 2406.12575): {FEDDIFFUSE.size:,} parameters, {FEDDIFFUSE.shares}."
            " R=15, both directions, the first download included; with an odd K, usplit's mean."
        ),
    ]
    return "\n".join(blocks)


def _case(each: Setting) -> tuple[int, int, int | None, bool] | None:
    """Silos, rounds, sampled, whether the initial model is sent; None where it is not known, or is not the plan alone
    that decides: with personal or frozen segments."""
    rules = each.results[0].get("rules") or {}
    silos, rounds = each.known.get("silos"), each.known.get("rounds")
    if not silos or not rounds or rules.get("personal") or rules.get("frozen"):
        return None
    return int(silos), int(rounds), each.known.get("sampled"), rules.get("initial", "send") != "seed"


def _counted(settings: Sequence[Setting]) -> float | None:
    found = spread(total.mean for each in settings if (total := each.total("down_parameters", "up_parameters")))
    return None if found is None else found.mean


def _less(share: float) -> str:
    return f"{100 * (share - 1):+.1f} %".replace("-", "−") if abs(share - 1) > 5e-4 else "0 %"
