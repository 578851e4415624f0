"""The optimizer of a round's training, new in each round, and its tensors as a checkpoint holds them.

Between the rules (``[training]``) and the steps of whatever network is trained (silo/descent.py, silo/adversaries.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feddiff.core.config import FederationConfig
from feddiff.silo.schedule import factor

MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer(
    config: FederationConfig, weights: Sequence[nn.Parameter], round: int, beta1: float = 0.9
) -> torch.optim.Optimizer:
    """Adam or AdamW on these weights, at the round's rate; ``beta1`` is the decay of the first moment."""
    training = config.training
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    rate = training.learning_rate * factor(training, round, config.rounds.count)
    made: torch.optim.Optimizer = kind(
        weights, lr=rate, betas=(beta1, 0.999), weight_decay=training.weight_decay, fused=True
    )
    # Adam's own beginning, made now so that a checkpoint finds every tensor in its place.
    for weight in weights:
        moments = {name: torch.zeros_like(weight) for name in MOMENTS}
        made.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}
    return made


def vectors(made: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> dict[str, list[Tensor]]:
    """Its tensors, by the name of the vector that they make up in a checkpoint (silo/checkpoint.py)."""
    return {name: [made.state[weight][name] for weight in weights] for name in ("step", *MOMENTS)}
