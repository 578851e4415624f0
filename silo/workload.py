"""What a round will ask of this silo: memory, a GPU, and hours; and what the rules ask of its administrator.

Pure functions of the rules, the model's layout and what was measured (silo/rehearsal.py, silo/probe.py). Every time
that is told says what it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from feddiff.core.amounts import amount, duration
from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, FedDiffError, StoreError
from feddiff.core.features import check_digest
from feddiff.core.finding import Finding, ok, problem, refusal, warning
from feddiff.core.machine import Machine
from feddiff.core.premises import memory
from feddiff.core.volume import Volume, training_memory
from feddiff.silo.probe import Line
from feddiff.silo.rehearsal import Rehearsal

LONG_S = 12 * 3600.0
"""A round that takes longer deserves a word."""


def device(config: FederationConfig | None, machine: Machine, found: Rehearsal, images: int) -> Iterator[Finding]:
    """Memory and GPU."""
    on_gpu = bool(found.gpus)
    if found.blind:
        yield warning(
            "GPU",
            "there is a driver for an NVIDIA GPU, but the installed torch cannot use it",
            "install the build of torch for this driver's CUDA (python -c 'import torch; print(torch.version.cuda)')",
        )
    elif on_gpu:
        told = ", ".join(f"{each.name} with {amount(each.free)} of {amount(each.memory)} free" for each in found.gpus)
        yield ok("GPU", told)
    else:
        yield ok("GPU", f"none; the training takes {found.threads or machine.cpus} CPU threads")
    if config is None or found.layout is None:
        return
    weights, size = training_memory(config, found.layout), int(config.model["sample_size"])
    pixels = images * int(config.model["in_channels"]) * size * size
    peak = max((run.peak for run in found.runs if run.batch == config.training.batch_size), default=0)
    if on_gpu:
        least = min(each.memory for each in found.gpus)
        need, basis = (peak, "by a few steps of training") if peak else (weights, "without activations")
        words = f"the model of {amount(4 * found.layout.size)} needs {amount(need)} on the GPU, {basis}"
        if need > least:
            yield problem(
                StoreError, "GPU memory", words, "lower no rule alone: the federation's batch_size is for all"
            )
        else:
            yield ok("GPU memory", words)
    host = 3 * 4 * found.layout.size + pixels + (0 if on_gpu else max(weights, *(run.peak for run in found.runs), 0))
    yield memory(machine, host, f"training the model of {amount(4 * found.layout.size)} on {images} images")


def demands(
    config: FederationConfig, extractor: Path | None, accept_pool: bool, processes: int | None, gpus: int
) -> Iterator[Finding]:
    """What the rules ask for and only the administrator can give."""
    quality = config.quality
    if quality is not None and (config.silos_measure or config.wants_statistics):
        leaves = [
            *(["numbers of its own model"] if config.silos_measure else []),
            *(["moments of its images' features"] if config.wants_statistics else []),
            *(["a grid of samples"] if quality.grids else []),
        ]
        if extractor is None:
            yield warning(
                "extractor",
                f"the rules ask silos for {', '.join(leaves)}; without --extractor, which is the consent, none leave",
                f"to take part, give --extractor FILE, the one with SHA-256 {quality.extractor}",
            )
        else:
            try:
                check_digest(extractor, quality.extractor)
                yield ok("extractor", f"{extractor} is the federation's; with it leave {', '.join(leaves)}")
            except FedDiffError as error:
                yield refusal("extractor", error, "ask the federation's operator for the file")
    elif extractor is not None:
        yield warning("extractor", "--extractor is not used: the rules measure nothing at silos", "leave it out")
    shares = config.pool is not None and bool(config.pool.alpha)
    if shares and not accept_pool:
        yield warning(
            "public images",
            "the federator gives public images to silos that accept them; this one trains on its own alone",
            "give --accept-pool if that is wanted: it is the consent",
        )
    elif accept_pool and not shares:
        yield warning("public images", "--accept-pool is not used: the rules share no images", "leave it out")
    if processes is not None and processes > 1 and config.kind != "unet":
        yield problem(ConfigError, "processes", "a DCGAN's batches are normalised each by itself", "--processes 1")
    elif processes is not None and gpus and processes > gpus:
        yield problem(
            ConfigError, "processes", f"{processes} processes take a GPU each, and there are {gpus}", "give fewer"
        )


def layout(found: Rehearsal, federators: str) -> Finding | None:
    """Whether both ends cut the model into the same segments; ``federators``: its digest, if it was told."""
    if found.layout is None:
        if not found.failure:
            return None
        if found.late:
            sentence = f"the federation's model was not made here in time ({found.failure})"
            return warning("model", sentence, "this machine is busy or slow: try again when it is not")
        sentence = f"the federation's model cannot be made here: {found.failure}"
        return problem(ConfigError, "model", sentence, "install the versions that the federator has")
    size = f"{found.layout.size / 1e6:.3g} million parameters in {len(found.layout.names)} segments"
    if federators and found.layout.digest != federators:
        sentence = f"this machine's diffusers cuts the model into other segments than the federator's ({size})"
        return problem(ConfigError, "model", sentence, "install the federator's versions of feddiff and diffusers")
    return ok("model", size)


def time_of_round(
    config: FederationConfig,
    moves: Volume,
    line: Line | None,
    found: Rehearsal,
    images: int,
    last: Mapping[str, float],
    unmeasured: str,
) -> Finding:
    """Hours. ``last``: metrics of the silo's last training, if any; ``unmeasured``: why no steps were tried."""
    codecs = "the plan chooses codecs" if config.budget else f"{config.codec.down} down, {config.codec.up} up"
    parts = [
        f"a round moves at most {amount(moves.down)} down and {amount(moves.up)} up (plan {config.plan}, {codecs})"
        + (f", the first one {amount(moves.first)} more" if moves.first else "")
    ]
    seconds, numbers = 0.0, {"round_bytes": float(moves.round)}
    if line is not None:
        transfer = moves.down / line.down + moves.up / line.up
        seconds, numbers["transfer_s"] = transfer, transfer
        parts.append(f"{duration(transfer)} at the measured rate")
    else:
        parts.append("how long that takes was not measured")
    training, basis = _training(config, found, images, last)
    if training is None:
        parts.append(f"the training was not measured: {unmeasured or found.failure or 'there are no images'}")
    else:
        seconds, numbers["training_s"] = seconds + training, training
        parts.append(f"the training takes {duration(training)} ({basis})")
    whole = ""
    if line is not None and training is not None:
        count = config.rounds.count
        whole = f"about {duration(seconds)} a round, {duration(seconds * count)} for all {count} rounds: "
        numbers["round_s"] = seconds
    words = f"{whole}{'; '.join(parts)}; waiting for other silos not counted"
    if seconds > LONG_S:
        advice = "fewer local epochs, an economy preset or a GPU make it shorter (docs/federation.md): ask the operator"
        return Finding("warning", "time", words, advice, numbers=numbers)
    return ok("time", words, **numbers)


def _training(
    config: FederationConfig, found: Rehearsal, images: int, last: Mapping[str, float]
) -> tuple[float | None, str]:
    """(seconds of a round's training, what they rest on)."""
    if last.get("seconds"):
        return float(last["seconds"]), "as in its last round"
    if not found.runs or not images:
        return None, ""
    training, run = config.training, found.runs[-1]
    batch = training.batch_size * training.accumulate
    steps = training.steps or (training.epochs or 0) * math.ceil(images / batch)
    shown = steps * min(batch, images) if training.steps else (training.epochs or 0) * images
    of = "single images, so at most" if run.batch < training.batch_size else f"{run.batch} images a step on noise"
    return shown / run.images_s, f"{shown} images in {steps} steps at {run.images_s:.3g} images/s, tried with {of}"
