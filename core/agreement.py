"""Which rules go together: what one table of a federation's file says about another.

Each table's own rules are checked where it is defined (core/sections.py); what only makes sense, or only makes none,
beside another table, is checked here. Each refusal says what to leave out or to set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feddiff.core import topology

if TYPE_CHECKING:
    from feddiff.core.config import FederationConfig


def agree(rules: FederationConfig) -> None:
    """Raises ValueError for tables that contradict each other."""
    for check in (_budget, _pool, _rounds, _quality, topology.check):
        check(rules)


def _budget(rules: FederationConfig) -> None:
    if (rules.plan == "budget") != (rules.budget is not None):
        raise ValueError('plan = "budget" needs a table [budget], and no other plan has one')
    if rules.budget is None:
        return
    if not rules.codec.delta:
        raise ValueError('plan = "budget" sends differences; it needs codec.delta = true')
    if (rules.codec.up, rules.codec.down) != ("fp32", "fp32") or rules.codec.segments:
        raise ValueError('plan = "budget" chooses the codecs, from budget.codecs; leave those of [codec] out')
    if rules.rounds.sampled is not None:
        raise ValueError('plan = "budget" says itself who takes part; leave rounds.sampled out')
    if rules.personal or rules.frozen:
        raise ValueError('plan = "budget" takes every segment in turn; leave personal and frozen out')
    if rules.pool is not None:
        raise ValueError('plan = "budget" counts what a silo\'s transfers cost; leave [pool] out')


def _pool(rules: FederationConfig) -> None:
    if rules.pool is not None and rules.pool.warmup and rules.initial == "seed":
        raise ValueError('pool.warmup trains the first model, and initial = "seed" has silos make it: set "send"')


def _rounds(rules: FederationConfig) -> None:
    rules.rounds.check(rules.weights)
    if rules.filter is not None:
        rules.filter.check(rules.rounds, rules.quality if rules.silos_measure else None)
    if rules.training.warmup >= rules.rounds.count:
        raise ValueError(f"training.warmup {rules.training.warmup} is not less than rounds.count {rules.rounds.count}")
    if rules.outer.ema and not rules.has_global_model:
        raise ValueError("outer.ema is of the global model, and with these rules there is none; leave it out")


def _quality(rules: FederationConfig) -> None:
    if rules.quality is not None and rules.quality.steps > rules.diffusion.timesteps:
        raise ValueError(f"quality.steps is more than the {rules.diffusion.timesteps} diffusion.timesteps")
