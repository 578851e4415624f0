"""The UNet and its diffusion: what the weights that travel are weights *of*, unless the rules name another network.

First and last station of the way of the data (core/network.py): the federator starts from ``initial_state``, a silo
trains what ``build`` gives, both draw pictures from a state with ``sample``. Model, noise schedule and solvers are
diffusers'; this module only says which ones a federation's rules mean.

Importing it loads torch and diffusers, which takes seconds: import it inside the function that needs it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from feddiff.core.config import FederationConfig
from feddiff.core.denoising import denoise, guided
from feddiff.core.errors import ConfigError
from feddiff.core.network import Sampler, load_state, pixels, read_state, source
from feddiff.core.sections import MAX_GUIDANCE
from feddiff.core.segments import F32, Layout, cut

SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm", "dpm-solver++")

_SEEDING = threading.Lock()
_SAVED_BY_DIFFUSERS = ("_class_name", "_diffusers_version")
_FREE = ("sample_size", "num_train_timesteps", "dropout")
"""Of a model's config: what its weights compute does not depend on them."""
_KNOWN = tuple(name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self")


def build(config: FederationConfig) -> UNet2DModel:
    """The model with its initial weights, float32 on the CPU: the same bits on every call.

    Raises ConfigError, naming the cause, for a model that diffusers refuses or that cannot take its own
    images.
    """
    _outline(config)
    # The seed is the process's own, and silos that share a process may begin at the same moment.
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return UNet2DModel(**_arguments(config))


def layout(config: FederationConfig) -> Layout:
    """The segments of the model; costs no memory, whatever its size. Raises ConfigError as ``build`` does."""
    return cut((name, tuple(tensor.shape)) for name, tensor in _outline(config).state_dict().items())


def initial_state(config: FederationConfig) -> dict[str, F32]:
    """The weights that a federation starts from, as ``build`` draws them. Raises ConfigError likewise."""
    return read_state(build(config))


def scheduler(config: FederationConfig) -> DDPMScheduler:
    """The forward process (Ho et al. 2020; the cosine schedule is Nichol & Dhariwal's, arXiv 2102.09672)."""
    return DDPMScheduler(
        **_schedule(config),
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[config.diffusion.prediction],
        clip_sample=True,
    )


def sample(
    config: FederationConfig,
    state: Mapping[str, npt.NDArray[Any]],
    count: int,
    *,
    steps: int = 50,
    sampler: Sampler = "ddim",
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[int, npt.NDArray[np.uint8]], None] | None = None,
    device: str | torch.device | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw ``count`` images, uint8 of shape (count, H, W, C).

    ddim is deterministic (Song et al., arXiv 2010.02502), computed as the first-order DPM-Solver++, which it
    equals; dpm-solver++ is the second-order multistep one (Lu et al., arXiv 2211.01095); ddpm is ancestral
    sampling (Ho et al. 2020) and wants many ``steps``. All clip the predicted image to [-1, 1] and start at
    the last timestep.

    Image i depends on state, seed, i and its label alone: its noise comes from a generator of its own, so
    neither ``count`` nor ``batch`` matters (but for rounding: a convolution of another batch size may differ
    in its last bit). A class-conditional model without ``labels`` gets 0, 1, …, cyclically; the null class is one,
    too. ``guidance`` (core/denoising.py) is the rules' if it is not given. ``progress(done, count)`` follows each step
    of a batch, which may take long, as if a part of its images were done; it may raise. ``watch(step, images)`` sees a
    batch's noisy images, clipped, uint8 (n, H, W, C), after each step, the noise as step 0. ``device`` defaults to a
    GPU if there is one. Raises ConfigError for arguments that cannot be, WrongShape for a foreign state.
    """
    chosen = _labels(config, count, labels)
    scale = config.diffusion.guidance if guidance is None else guidance
    if not 0 <= scale <= MAX_GUIDANCE or (scale != 1 and config.null_class is None):
        raise ConfigError(
            f"guidance must be 0 to {MAX_GUIDANCE:g}, and 1 with a model that knows no null class, which is learnt with"
            f" training.label_dropout (got {scale:g})"
        )
    if sampler not in SAMPLERS:
        raise ConfigError(f"there is no sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    most = config.diffusion.timesteps
    if not 1 <= steps <= most or batch < 1:
        raise ConfigError(f"steps must be 1 to {most} (got {steps}), batch at least 1 (got {batch})")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build(config)
    load_state(model, state)
    model.to(device).eval()
    shape = (config.model["in_channels"], config.model["sample_size"], config.model["sample_size"])
    images = np.empty((count, *shape[1:], shape[0]), np.uint8)
    for start in range(0, count, batch):
        indices = range(start, min(start + batch, count))
        generators = [source(seed, index) for index in indices]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        classes = None if chosen is None else chosen[start : indices.stop].to(device)

        def told(step: int, noisy: torch.Tensor, start: int = start, size: int = len(indices)) -> None:
            if progress is not None and step:
                progress(start + size * step // steps, count)
            if watch is not None:
                watch(step, pixels(noisy))

        asked = guided(model, classes, config.null_class, scale)
        solver = _solver(config, sampler, steps)
        images[start : indices.stop] = pixels(denoise(asked, scheduler(config), solver, noise, generators, told))
    return images


def export(config: FederationConfig, state: Mapping[str, npt.NDArray[Any]], folder: Path) -> str:
    """Write a folder for ``DDPMPipeline.from_pretrained``; its ``unet`` is one for ``UNet2DModel``'s. Returns this.

    Weights are safetensors. Raises WrongShape for a foreign state.
    """
    model = build(config)
    load_state(model, state)
    DDPMPipeline(unet=model, scheduler=scheduler(config)).save_pretrained(folder, safe_serialization=True)
    return f'load it with diffusers.DDPMPipeline.from_pretrained("{folder}")'


def described(config: FederationConfig) -> dict[str, dict[str, Any]]:
    """What decides what the weights compute, as diffusers writes it beside them, in a pipeline's folder, too."""
    model, process = build(config).config, scheduler(config).config
    return {
        "config.json": {key: model[key] for key in model if key not in _FREE and not key.startswith("_")},
        "../scheduler/scheduler_config.json": {"prediction_type": process["prediction_type"]},
    }


def _arguments(config: FederationConfig) -> dict[str, Any]:
    """The arguments of UNet2DModel. Raises ConfigError for those that it does not know or we cannot train."""
    arguments = {key: value for key, value in config.model.items() if key not in _SAVED_BY_DIFFUSERS}
    for key in arguments:
        if key not in _KNOWN:
            raise ConfigError(f"unknown key model.{key}; known here: {', '.join(sorted(_KNOWN))}")
    embedding = arguments.get("time_embedding_type", "positional")
    if embedding not in ("positional", "learned"):
        raise ConfigError(f"model.time_embedding_type must be positional or learned (got {embedding!r})")
    if embedding == "learned" and arguments.get("num_train_timesteps") != config.diffusion.timesteps:
        raise ConfigError(f"model.num_train_timesteps must be diffusion.timesteps, {config.diffusion.timesteps}")
    if arguments.get("class_embed_type") is not None:
        raise ConfigError("model.class_embed_type must be left out; set model.num_class_embeds for a conditional model")
    return arguments


def _outline(config: FederationConfig) -> UNet2DModel:
    """The model without memory for its weights, tried on images without pixels. Raises ConfigError."""
    arguments, size = _arguments(config), config.model["sample_size"]
    try:
        with torch.device("meta"):
            model = UNet2DModel(**arguments)
            labels = torch.zeros(1, dtype=torch.long) if config.conditional else None
            images = torch.zeros(1, config.model["in_channels"], size, size)
            shape = model(images, torch.zeros(1, dtype=torch.long), labels).sample.shape
            if shape != images.shape:
                raise ValueError(f"it makes {tuple(shape)} of {tuple(images.shape)}")
    except (
        Exception
    ) as error:  # diffusers answers wrong arguments with whatever breaks first, UnboundLocalError included
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"[model] is not a UNet2DModel for images of {size}x{size}: {cause:.300}") from None
    return model


def _schedule(config: FederationConfig) -> dict[str, Any]:
    return {
        "num_train_timesteps": config.diffusion.timesteps,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[config.diffusion.schedule],
        "beta_start": config.diffusion.beta_start,
        "beta_end": config.diffusion.beta_end,
    }


def _labels(config: FederationConfig, count: int, labels: Sequence[int] | None) -> torch.Tensor | None:
    """A class for each image, or None for a model without classes. Raises ConfigError."""
    if count < 1:
        raise ConfigError(f"at least one image must be asked for (got {count})")
    if not config.conditional:
        if labels is not None:
            raise ConfigError("labels were given, but the model has no classes")
        return None
    if labels is None:
        return torch.arange(count) % len(config.data.classes)
    classes = int(config.model["num_class_embeds"])
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise ConfigError(f"labels must be {count} numbers from 0 to {classes - 1}")
    return torch.tensor(labels, dtype=torch.long)


def _solver(config: FederationConfig, sampler: Sampler, steps: int) -> DDPMScheduler | DPMSolverMultistepScheduler:
    """What takes predictions of the image through so many steps."""
    solver = (
        DDPMScheduler(**_schedule(config), prediction_type="sample", clip_sample=False)
        if sampler == "ddpm"
        else DPMSolverMultistepScheduler(
            **_schedule(config), prediction_type="sample", solver_order=1 if sampler == "ddim" else 2
        )
    )
    # "Trailing" spacing (Lin et al., arXiv 2305.08891) in whole numbers; diffusers' floats can end at -1.
    total = config.diffusion.timesteps
    solver.set_timesteps(timesteps=[total - 1 - index * total // steps for index in range(steps)])
    return solver
