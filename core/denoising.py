"""From noise to images: a model is asked what is noise in them, step by step, with or without guidance.

Inside ``diffusion.sample``, between the noise that it makes and the pixels that it returns. Classifier-free guidance
(Ho & Salimans 2022, arXiv 2207.12598) asks a class-conditional model twice, for the class and for the null class,
which stands for none, and goes from the second answer past the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor

Asked: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(noisy images, timestep) to what the model was trained to predict, both (N, C, H, W)."""


def guided(model: UNet2DModel, classes: Tensor | None, null: int | None, scale: float) -> Asked:
    """The model, asked for these classes, (N,), with guidance ``scale``; ``null`` is the null class.

    o(z) = o(z, null) + s (o(z, c) - o(z, null)): s is diffusers' ``guidance_scale`` and Imagen's (arXiv 2205.11487,
    eq. 2), 1 + w of Ho & Salimans' eq. 6. 1 is the conditional model and 0 the unconditional one, each bit for bit and
    asked once. The paper writes it for epsilon; v is affine in it and the weights' sum is 1, so it is the same for v.
    """
    if null is None or classes is None or scale == 1:
        return lambda images, timestep: model(images, timestep, classes).sample
    none = torch.full_like(classes, null)
    if scale == 0:
        return lambda images, timestep: model(images, timestep, none).sample

    def asked(images: Tensor, timestep: Tensor) -> Tensor:
        # One after the other: both in one batch would take twice the memory.
        without: Tensor = model(images, timestep, none).sample
        told: Tensor = model(images, timestep, classes).sample
        return without + scale * (told - without)

    return asked


@torch.inference_mode()
def denoise(
    asked: Asked,
    process: DDPMScheduler,
    solver: DDPMScheduler | DPMSolverMultistepScheduler,
    images: Tensor,
    generators: list[torch.Generator],
    told: Callable[[int, Tensor], None],
) -> Tensor:
    """From noise to images, both float32 (N, C, H, W), through the timesteps that are set in the ``solver``.

    ``process`` is what noised the images in the training; the solver takes predictions of the image itself. ``told``
    gets the steps done, and what is there.
    """
    told(0, images)
    for done, timestep in enumerate(solver.timesteps, start=1):
        output = asked(images, timestep)
        signal = process.alphas_cumprod[timestep].sqrt()
        noise = (1 - process.alphas_cumprod[timestep]).sqrt()
        # Clipped here because the multistep solver does not: an early error would be carried to the end.
        clean = (
            signal * images - noise * output
            if process.config.prediction_type == "v_prediction"
            else (images - noise * output) / signal
        )
        images = solver.step(clean.clamp(-1, 1), timestep, images, generator=generators).prev_sample
        told(done, images)
    return images
