"""What learns in a round's training of a DCGAN: generator and discriminator against each other, one step at a time.

Beside silo/descent.py, which is the same for the UNet; the training (silo/trainer.py) deals the images to either. A
step is one of the discriminator, on a batch of images and as many that the generator draws, and then one of the
generator, on those that it drew: with D's logits,

    L_D = mean softplus(-D(x)) + mean softplus(D(G(z)))        L_G = mean softplus(-D(G(z)))

the generator's in the form that does not saturate (Goodfellow et al. 2014, arXiv 1406.2661, section 3; Radford et al.,
arXiv 1511.06434). Each network has its own Adam, with beta1 0.5 as in Radford et al.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from feddiff.core import dcgan, kinds, network
from feddiff.core.config import FederationConfig
from feddiff.core.segments import F32
from feddiff.silo.descent import bf16, signal
from feddiff.silo.group import ALONE, Group
from feddiff.silo.optimizer import optimizer, vectors
from feddiff.silo.proximal import Proximal

BETA1 = 0.5


@dataclass(frozen=True)
class _Side:
    """One of the two: its weights, and what moves them."""

    weights: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    proximal: Proximal

    def step(self, loss: Tensor, clip: float | None) -> None:
        """One step down this loss; the other side's weights get no gradient of it."""
        self.optimizer.zero_grad()
        loss.backward(inputs=self.weights)
        self.proximal.pull()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.weights, clip)
        self.optimizer.step()


class Adversaries:
    """Both networks of one training, from ``state`` on; ``ema``: the moving average to go on from.

    ``round`` sets the learning rate (silo/schedule.py); ``shared``: parameters that the proximal term holds;
    ``group``: that of one process.
    """

    def __init__(
        self,
        config: FederationConfig,
        state: Mapping[str, F32],
        ema: Mapping[str, F32] | None,
        round: int,
        shared: Collection[str],
        group: Group = ALONE,
    ) -> None:
        assert group.size == 1  # for batches are normalised each by itself; silo/ranks.py refuses more
        self._training, self._latent = config.training, kinds.dcgan(config).latent
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = bf16(config, self.device)
        self._model = dcgan.loaded(config, state).to(self.device).train()
        self._average = dcgan.loaded(config, ema or state).to(self.device) if config.training.ema_decay else None
        self._sides = {}
        for side in ("generator", "discriminator"):
            named = {name: each for name, each in self._model.named_parameters() if name.startswith(f"{side}.")}
            weights = list(named.values())
            proximal = Proximal(config.training.proximal, named, shared)
            self._sides[side] = _Side(weights, optimizer(config, weights, round, BETA1), proximal)
        self.losses = {"generator_loss": 0.0, "discriminator_loss": 0.0}
        """Of the last step."""

    def step(self, pixels: Tensor, labels: Tensor | None, generator: torch.Generator) -> float:
        """One step of each on images, uint8 (N, C, S, S); the sum of their losses, each before its own step.

        Not taken if that is not finite. There are no labels. Running means and variances follow every batch: the
        generator's what it draws, the discriminator's what it is shown, real, drawn, and drawn again.
        """
        clean = signal(pixels, self._training.horizontal_flip, generator, self.device)
        latent = torch.randn(len(clean), self._latent, generator=generator, device=self.device)
        draw, judge = self._model.generator, self._model.discriminator
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            drawn = draw(latent)
            real, fake = judge(clean), judge(drawn.detach())
        loss = softplus(-real.float()).mean() + softplus(fake.float()).mean()
        self.losses = {"discriminator_loss": float(loss.detach())}
        if not math.isfinite(self.losses["discriminator_loss"]):
            return math.nan
        self._sides["discriminator"].step(loss, self._training.clip)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            fake = judge(drawn)
        loss = softplus(-fake.float()).mean()
        self.losses["generator_loss"] = float(loss.detach())
        total = sum(self.losses.values())
        if not math.isfinite(total):
            return total
        self._sides["generator"].step(loss, self._training.clip)
        if self._average is not None:
            mean = network.weights(self._average)
            for name, tensor in network.weights(self._model).items():
                mean[name].lerp_(tensor, 1 - self._training.ema_decay)
        return total

    def state(self) -> dict[str, F32]:
        """The weights, by parameter, and the running statistics."""
        return network.read_state(self._model)

    def average(self) -> dict[str, F32] | None:
        """Their moving average, if the rules want one."""
        return None if self._average is None else network.read_state(self._average)

    def vectors(self) -> dict[str, list[Tensor]]:
        """All tensors that a checkpoint holds, by the name of the vector that they make up in it."""
        found = {"weights": list(network.weights(self._model).values())}
        for name, side in self._sides.items():
            found |= {f"{name}.{each}": tensors for each, tensors in vectors(side.optimizer, side.weights).items()}
        if self._average is not None:
            found["average"] = list(network.weights(self._average).values())
        return found
