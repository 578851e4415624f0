"""What learns in a round's training of a UNet: the model, its optimizer and its moving average, one step at a time.

The training (silo/trainer.py) deals the images and keeps the books; here a batch of them becomes a step of stochastic
gradient descent on the denoising loss (Ho et al. 2020, eq. 14; ``v``: Salimans & Ho 2022).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from feddiff.core.config import FederationConfig
from feddiff.core.diffusion import build, scheduler
from feddiff.core.network import load_state, read_state
from feddiff.core.segments import F32, cut
from feddiff.core.sharing import share
from feddiff.silo.group import ALONE, Group
from feddiff.silo.optimizer import optimizer, vectors
from feddiff.silo.proximal import Proximal


class Descent:
    """The model of one training, from ``state`` on; ``ema``: the moving average to go on from.

    ``round`` sets the learning rate (silo/schedule.py); ``shared``: parameters that the proximal term holds; ``group``:
    the processes that train it together.
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
        training, self._group = config.training, group
        self._training = training
        self._process, self._levels, self._null = scheduler(config), config.diffusion.timesteps, config.null_class
        self._velocity = config.diffusion.prediction == "v"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = bf16(config, self.device)
        self.losses: dict[str, float] = {}
        """What else the last step tells, by name: nothing."""
        self._model = _model(config, state, self.device)
        self._average = _model(config, ema or state, self.device) if training.ema_decay and group.leads else None
        named = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._trained = list(named.values())
        self._proximal = Proximal(training.proximal, named, shared)
        self._optimizer = optimizer(config, self._trained, round)
        self._loss = {"mse": nn.MSELoss(), "huber": nn.HuberLoss(delta=1.0)}[config.diffusion.loss]

    def step(self, pixels: Tensor, labels: Tensor | None, generator: torch.Generator) -> float:
        """One step on images, uint8 (N, C, S, S); their mean loss before it. Not taken if that is not finite.

        They go through the model ``batch_size`` at a time. Noise and levels are drawn for all of them at once, so the
        step is that of one large batch, to rounding, and takes the memory of a small one. It is also that of several
        processes, of which each is given all images and sends its share of them through. Raises Lost.
        """
        clean = signal(pixels, self._training.horizontal_flip, generator, self.device)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        times = torch.randint(self._levels, (len(clean),), generator=generator, device=self.device)
        noisy = self._process.add_noise(clean, noise, times)
        target = self._process.get_velocity(clean, noise, times) if self._velocity else noise
        known = None if labels is None else labels.to(self.device)
        if known is not None and self._null is not None:  # Ho & Salimans 2022, arXiv 2207.12598, algorithm 1
            dropped = torch.rand(len(known), generator=generator, device=self.device) < self._training.label_dropout
            known = known.masked_fill(dropped, self._null)
        self._optimizer.zero_grad()
        total, share = 0.0, self._group.share(len(clean))
        for start in share[:: self._training.batch_size]:
            part = slice(start, min(start + self._training.batch_size, share.stop))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                output = self._model(noisy[part], times[part], None if known is None else known[part]).sample
            loss = self._loss(output.float(), target[part]) * (len(output) / len(clean))
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            loss.backward()
        total = self._group.add_up(total, self._trained)
        if not math.isfinite(total):
            return total
        self._proximal.pull()
        if self._training.clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self._training.clip)
        self._optimizer.step()
        if self._average is not None:
            with torch.no_grad():
                for mean, weight in zip(self._average.parameters(), self._model.parameters(), strict=True):
                    mean.lerp_(weight, 1 - self._training.ema_decay)
        return total

    def state(self) -> dict[str, F32]:
        """The weights, by parameter."""
        return read_state(self._model)

    def average(self) -> dict[str, F32] | None:
        """Their moving average, if the rules want one."""
        return None if self._average is None else read_state(self._average)

    def vectors(self) -> dict[str, list[Tensor]]:
        """All tensors that a checkpoint holds, by the name of the vector that they make up in it."""
        found: dict[str, list[Tensor]] = {"weights": [*self._trained], **vectors(self._optimizer, self._trained)}
        if self._average is not None:
            found["average"] = [*self._average.parameters()]
        return found


def signal(pixels: Tensor, flip: bool, generator: torch.Generator, device: torch.device) -> Tensor:
    """Images, uint8 (N, C, S, S), as a network learns them: float32 in [-1, 1], with ``flip`` half of them mirrored."""
    clean = pixels.to(device).float().div(127.5).sub(1)
    if flip:
        flipped = torch.rand(len(clean), 1, 1, 1, generator=generator, device=device) < 0.5
        clean = torch.where(flipped, clean.flip(3), clean)
    return clean


def bf16(config: FederationConfig, device: torch.device) -> bool:
    """Whether the rules mean bfloat16 on this device."""
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.training.precision == "bf16" or (config.training.precision == "auto" and capable)


def _model(config: FederationConfig, state: Mapping[str, F32], device: torch.device) -> UNet2DModel:
    model = build(config)
    load_state(model, state)
    # Channels last is faster on a GPU's tensor cores; on a CPU no gain was measured.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model.to(device=device, memory_format=layout).train()
    if config.frozen:  # they get no gradient, and the layers before the first trained one no backward pass
        segments = cut((name, tuple(weight.shape)) for name, weight in model.named_parameters())
        for name in share(segments, config.plan, config.personal, config.frozen).frozen:
            for each in segments[name].parameters:
                model.get_parameter(each.name).requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm) and module.weight.requires_grad:
                module.register_forward_pre_hook(_packed)
    return model


def _packed(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """What frozen layers hand to a group norm that learns, without gaps between a channel's pixels.

    On a CPU torch (2.13) dies in the backward pass of a group norm whose input is channels last and needs no gradient;
    attention makes such ones.
    """
    return None if given[0].requires_grad or given[0].is_cuda else (given[0].contiguous(), *given[1:])
