"""How much each silo's update counts in a round's average, and why.

Between a round's updates and the fold (federator/publisher.py, fold.py): w_{v+1} = sum_k c_k w_k / sum_k c_k, over the
silos that reported the segment. Pure functions of what the journal keeps, so that a fold that is repeated after a
crash, or checked by an auditor, has the same weights.

    samples  c_k = n_k           McMahan et al. 2017, arXiv 1602.05629: every image counts the same
    uniform  c_k = 1             every silo counts the same
    loss     c_k = n_k F_k^q     after Li et al. 2020, arXiv 1905.10497 (q-FFL): who is served badly counts more

q-FFL minimises sum_k p_k F_k^(q+1) / (q+1) (eq. 2), whose gradient is sum_k p_k F_k^q grad F_k. ``loss`` is a step
along it with p_k = n_k / n and the silo's whole difference for its gradient, normalised by sum_k p_k F_k^q. It is NOT
the paper's q-FedAvg, whose denominator has another term, q F_k^(q-1) |L dw_k|^2, which shortens the step: it needs the
norm of the whole update before any of it can be averaged. The step's length is the outer optimizer's here. With q = 0
it is FedAvg, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from feddiff.core.fold import BadUpdate, Weight
from feddiff.core.sections import WeightsConfig

LOSS = "first_loss"
"""The metric that is F_k: the mean loss of the round's first local epoch, each batch's before its step, so the nearest
to that of the model that all started from which costs nothing."""
LEAST, MOST = 1e-6, 1e6
"""A loss beyond these is no loss of a model that can be averaged. The largest power of it is far from overflow."""


def by_samples(rules: WeightsConfig, silo: str, samples: int, loss: float | None) -> Weight:
    return Weight(float(samples), f"{samples} images")


def uniform(rules: WeightsConfig, silo: str, samples: int, loss: float | None) -> Weight:
    return Weight(1.0, "every silo counts the same")


def by_loss(rules: WeightsConfig, silo: str, samples: int, loss: float | None) -> Weight:
    assert rules.q is not None
    if loss is None:
        raise BadUpdate(silo, f"it told no {LOSS}, and the rules weigh by loss")
    if not LEAST <= loss <= MOST:  # so is NaN not
        raise BadUpdate(silo, f"it told a {LOSS} of {loss:.6g}; one from {LEAST:g} to {MOST:g} was expected")
    return Weight(samples * loss**rules.q, f"{samples} images, loss {loss:.4g} to the power of {rules.q:g}")


WEIGHTINGS: Mapping[str, Callable[[WeightsConfig, str, int, float | None], Weight]] = {
    "samples": by_samples,
    "uniform": uniform,
    "loss": by_loss,
}
"""By the name in the rules: from a silo's images, and its loss where the rules need one."""


def weigh(rules: WeightsConfig, samples: Mapping[str, int], losses: Mapping[str, float]) -> dict[str, Weight]:
    """The weight of each silo in ``samples`` (its images); ``losses`` are the F_k, where the rules need them.

    Raises BadUpdate for a silo whose loss is missing or out of bounds.
    """
    return {silo: WEIGHTINGS[rules.by](rules, silo, count, losses.get(silo)) for silo, count in samples.items()}


def words(weights: Mapping[str, Weight]) -> str:
    """Each silo's share, for people."""
    total = sum(each.value for each in weights.values())
    return "; ".join(f"{silo} {each.value / total:.1%} ({each.reason})" for silo, each in sorted(weights.items()))
