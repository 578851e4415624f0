"""The processes that train one model together, one for each GPU, as each of them sees it.

Between a training step (silo/descent.py) and torch.distributed. Every rank holds the whole model and its optimizer,
draws the same noise for all images of a step, sends its own share of them through the model, and adds up the gradients
with the others: so all take the same step, and it is that of one process, to rounding. silo/ranks.py starts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from feddiff.core.errors import FedDiffError


class Lost(Exception):
    """Another rank is gone: the training cannot go on."""


class Group:
    """Rank ``rank`` of ``size`` processes; alone by default. More than one need torch.distributed's process group."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this is the rank that keeps the books: progress, checkpoint, moving average, result."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The places of this rank's images among a step's; of a step of fewer images than ranks, perhaps none."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add_up(self, loss: float, weights: Sequence[nn.Parameter]) -> float:
        """Make each weight's gradient the sum of all ranks' gradients, and return the sum of their losses.

        Takes memory for one more copy of the gradients, and one collective. Raises Lost.
        """
        if self.size == 1:
            return loss
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]
        total = torch.cat([*(grad.reshape(-1) for grad in grads), grads[0].new_tensor([loss])])
        self._reduce(total, dist.ReduceOp.SUM)
        for weight, grad, summed in zip(
            weights, grads, total[:-1].split([each.numel() for each in grads]), strict=True
        ):
            weight.grad = grad.copy_(summed.view(grad.shape))
        return float(total[-1])

    def check_agree(self, step: int, device: torch.device) -> None:
        """Raises FedDiffError if the ranks do not begin at the same step: one could not read the checkpoint."""
        if self.size > 1:
            ends = torch.tensor([step, -step], dtype=torch.float64, device=device)
            self._reduce(ends, dist.ReduceOp.MAX)
            if ends[0] != -ends[1]:
                raise FedDiffError(f"ranks begin at steps {-int(ends[1])} to {int(ends[0])}; remove the checkpoint")

    def _reduce(self, values: Tensor, how: dist.ReduceOp.RedOpType) -> None:
        try:
            dist.all_reduce(values, how)
        except RuntimeError as error:  # gloo's and NCCL's alike
            raise Lost(str(error)) from None


ALONE = Group()
