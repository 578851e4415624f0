"""The tables of a federation's TOML file, one class each (core/config.py puts them together)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
MAX_GUIDANCE = 100.0
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]


class Section(BaseModel):
    """A table of the TOML file: immutable, strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DiffusionConfig(Section):
    """The forward process and how the model is asked about it (Ho et al. 2020; ``v``: Salimans & Ho 2022)."""

    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """T, the number of noise levels."""
    schedule: Literal["linear", "cosine"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    prediction: Literal["epsilon", "v"] = "epsilon"
    loss: Literal["mse", "huber"] = "mse"
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    """Scale of classifier-free guidance wherever images are drawn (core/denoising.py); 1: there is none."""

    @model_validator(mode="after")
    def _noise_grows(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is more than beta_end {self.beta_end}")
        return self


class TrainingConfig(Section):
    """The local training of one silo in one round. Exactly one of ``epochs`` and ``steps`` is set."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    horizontal_flip: bool = False
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that an image's label is replaced by the null class, in each step anew; 0: there is no such class."""
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    """A step is taken on so many batches together; ``steps`` counts these steps."""
    clip: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """The gradient of a step is no longer than this, all parameters together (Euclidean norm)."""
    proximal: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """mu of FedProx (silo/proximal.py); 0: there is no such term."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls from round to round (silo/schedule.py)."""
    warmup: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Rounds in which it rises before."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the silo's own exponential moving average, kept for sampling and never sent; 0 keeps none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 autocast on a GPU that has it, float32 on a CPU."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of the training; 0 leaves torch's choice."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        return self


LONE: Mapping[str, Any] = {"schedule": "constant", "warmup": 0, "proximal": 0.0}
"""What ``[training]`` says instead where there are neither rounds nor other silos: baselines, warm-ups, a model of
one's own."""


class DataConfig(Section):
    """How every silo reads its images."""

    classes: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(strict=False)] = ()
    """Names of the labels, in order; a silo's sub-folders are matched with them. Empty: no labels."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names one label twice")
        return self


class SegmentCodec(Section):
    """Codecs of one segment or part; what is not given is as for all."""

    up: str | None = None
    down: str | None = None


class CodecConfig(Section):
    """How segments are encoded on the wire (core/codec.py)."""

    up: str = "fp32"
    down: str = "fp32"
    segments: dict[str, SegmentCodec] = {}
    """Other codecs for a segment (``decoder.out``) or a part (``decoder``); the longer name wins."""
    delta: bool = True
    """Send differences from the version that both ends hold, where there is one."""
    feedback: bool = True
    """Add what one round's lossy encoding lost to the next one's difference, at both ends (core/feedback.py)."""
    chunk_elements: Annotated[int, Field(ge=1024, le=1 << 20)] = 1 << 17
    """Values in a chunk, 4 bytes each before encoding."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        from feddiff.core.codec import CODECS
        from feddiff.core.quantize import QUANTISERS

        named = [each for segment in self.segments.values() for each in (segment.up, segment.down) if each is not None]
        for name in (self.up, self.down, *named):
            if name not in CODECS:
                raise ValueError(f"there is no codec {name!r}; known: {', '.join(CODECS)}")
            if name in QUANTISERS and not self.delta:
                raise ValueError(f"codec {name!r} quantises differences; it needs delta = true")
        return self

    def of(self, segment: str, direction: Literal["up", "down"]) -> str:
        """The codec of a segment in one direction."""
        chosen, length = getattr(self, direction), -1
        for name, codec in self.segments.items():
            fits = segment == name or segment.startswith(f"{name}.")
            if fits and len(name) > length and getattr(codec, direction) is not None:
                chosen, length = getattr(codec, direction), len(name)
        return str(chosen)


class BudgetConfig(Section):
    """What a silo's transfers of a round may cost under plan "budget" (federator/budget.py). One of three limits."""

    bytes_per_silo: Annotated[int, Field(ge=1, le=1 << 50)] | None = None
    """Both directions together, the protocol's own bytes included."""
    bytes_per_round: Annotated[int, Field(ge=1, le=1 << 50)] | None = None
    """The same for all silos of a round together; each gets an equal share."""
    deadline: Seconds | None = None
    """Seconds that a silo's transfers may take on its link."""
    link_mbit: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """With ``deadline``: what a link that is not measured yet is taken for, in Mbit/s each way."""
    refresh: Annotated[int, Field(ge=1, le=1000)] = 4
    """Rounds within which every segment gets a new version."""
    codecs: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("fp32", "int8", "int4", "int2")
    """What the plan may choose from, finest first."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if sum(each is not None for each in (self.bytes_per_silo, self.bytes_per_round, self.deadline)) != 1:
            raise ValueError("set exactly one of bytes_per_silo, bytes_per_round and deadline")
        if (self.deadline is None) != (self.link_mbit is None):
            raise ValueError("deadline and link_mbit go together")
        return self

    @model_validator(mode="after")
    def _finest_first(self) -> Self:
        from feddiff.core.codec import CODECS

        for name in self.codecs:
            if name not in CODECS:
                raise ValueError(f"there is no codec {name!r}; known: {', '.join(CODECS)}")
            if name.startswith("topk"):
                raise ValueError(f"codec {name!r} is for uplinks only, and the plan publishes in what it chooses from")
        for finer, coarser in pairwise(self.codecs):
            if CODECS[finer].bound(1 << 16) <= CODECS[coarser].bound(1 << 16):
                raise ValueError(f"codecs go from the finest to the coarsest; {coarser!r} is no smaller than {finer!r}")
        return self


class WeightsConfig(Section):
    """How much each silo's update counts in the average (federator/weighting.py)."""

    by: Literal["samples", "uniform", "loss"] = "samples"
    q: Annotated[float, Field(ge=0, le=20)] | None = None
    """With ``by = "loss"``: the exponent of q-FFL. The larger, the more those count that the model serves badly; 0 is
    as by samples."""

    @model_validator(mode="after")
    def _q_is_of_losses(self) -> Self:
        if (self.by == "loss") != (self.q is not None):
            raise ValueError('by = "loss" needs q, and nothing else has one')
        return self


class PoolConfig(Section):
    """Public images that the federator shares with the silos (core/pool.py): the set G, and what becomes of it."""

    beta: Annotated[float, Field(gt=0, le=10)]
    """Images in G, as a share of those of all silos together when the first round would open."""
    alpha: Annotated[float, Field(ge=0, le=1)]
    """The share of G that each silo gets, its own draw, to train on beside its own images."""
    warmup: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Epochs on G of the model that the first round starts from; 0: it starts from the initial one."""

    @model_validator(mode="after")
    def _for_something(self) -> Self:
        if not self.alpha and not self.warmup:
            raise ValueError("alpha = 0 and warmup = 0 leave nothing to do with the images; leave [pool] out")
        return self


class OuterConfig(Section):
    """The federator's optimizer on the silos' average (core/outer.py). The default is FedAvg."""

    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "yogi"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's and Yogi's degree of adaptivity."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the global model's moving average (federator/average.py); 0 keeps none."""


class QualityConfig(Section):
    """How models are measured while the federation trains (core/quality.py): the global one, and those of silos.

    Under plans without a global model it is the silos' own, each against the silo's own images.
    """

    extractor: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the TorchScript file that makes features; each end is given the file (``--extractor``)."""
    kind: Literal["torchscript", "inception"] = "torchscript"
    every: Count = 1
    """Measure after every so many rounds, and after the last."""
    samples: Annotated[int, Field(ge=2, le=100_000)] = 1000
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    reference: Literal["held", "federated"] = "held"
    """What the global model is measured against: images that the federator holds (``serve --reference``), or all
    silos' images through the moments of their features."""
    silos: bool = False
    """Silos measure their own models also where there is a global one."""
    grids: bool = False
    """Silos that measure send a grid of their samples."""

    def due(self, round: int, rounds: int) -> bool:
        """Whether this round's models are measured."""
        return round % self.every == 0 or round == rounds


class RoundsConfig(Section):
    """When a round opens and when it is closed (federator/rounds.py)."""

    count: Count = 10
    participants: Annotated[int, Field(ge=1, le=10_000)] = 2
    """The first round waits for this many silos."""
    sampled: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Each round takes so many of the silos that are here (federator/sampling.py); unset: all."""
    sampling: Literal["uniform", "size", "availability"] = "uniform"
    """How likely each of them is taken: all the same, as it has images, or as it has finished rounds."""
    quorum: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """A round needs this many updates; unset: as many as are sampled, or as participants."""
    grace: Seconds = 300.0
    """Seconds that stragglers are given once the quorum is in."""
    deadline: Seconds = 900.0
    """Seconds without any sign of progress after which a silo is no longer waited for."""

    @model_validator(mode="after")
    def _quorum_fits(self) -> Self:
        if self.sampled is not None and self.sampled > self.participants:
            raise ValueError(f"sampled {self.sampled} is more than participants {self.participants}")
        if self.sampled is None and self.sampling != "uniform":
            raise ValueError(f'sampling = "{self.sampling}" chooses the silos of a round; say how many: sampled = N')
        most, of = (self.participants, "participants") if self.sampled is None else (self.sampled, "sampled")
        if self.quorum is not None and self.quorum > most:
            raise ValueError(f"quorum {self.quorum} is more than {of} {most}")
        return self

    def check(self, weights: WeightsConfig) -> None:
        """Raises ValueError for weights that do not go with how silos are sampled."""
        if self.sampling == "size" and weights.by != "uniform":
            raise ValueError(
                f'rounds.sampling = "size" takes large silos more often, and weights.by = "{weights.by}" counts their'
                ' images again; set weights.by = "uniform"'
            )

    @property
    def needed(self) -> int:
        """Updates that a round cannot do without."""
        return self.quorum or self.sampled or self.participants
