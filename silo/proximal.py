"""The proximal term of FedProx: what keeps a silo's local training near the model that all silos started from.

    h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2        (Li et al. 2020, arXiv 1812.06127, eq. 2)

Added to the gradients of a training step (silo/descent.py). Over the parameters of shared segments only: those that
start from the silo's own last training have no common w_t, and are to be the silo's own. The copy of w_t is all that
it costs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn


class Proximal:
    """The term of one training, which begins at w_t."""

    def __init__(self, mu: float, weights: Mapping[str, nn.Parameter], shared: Collection[str]) -> None:
        """``weights``: parameters by name, as the training starts; ``shared``: those that are held."""
        self._mu = mu
        held = [weight for name, weight in weights.items() if name in shared] if mu else []
        self._anchors = [(weight, weight.detach().clone()) for weight in held]

    @torch.no_grad()
    def pull(self) -> None:
        """Add mu (w - w_t), the term's exact gradient, to the gradients."""
        for weight, anchor in self._anchors:
            if weight.grad is not None:  # else nothing moves it
                weight.grad.add_(weight - anchor, alpha=self._mu)
