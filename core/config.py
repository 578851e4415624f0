"""What a federation is: one TOML file, frozen, identified by its digest.

The federator reads the file; every silo gets the same rules as canonical JSON when it joins, so both ends act
on one text. Unknown keys are refused and the known ones named, because a misspelt ``local_epoch`` that is
silently ignored costs a night of training.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from feddiff.core import kinds
from feddiff.core.agreement import agree
from feddiff.core.errors import ConfigError
from feddiff.core.filtering import FilterConfig
from feddiff.core.presets import ECONOMIES, PRESETS
from feddiff.core.sections import (
    BudgetConfig,
    CodecConfig,
    DataConfig,
    DiffusionConfig,
    OuterConfig,
    PoolConfig,
    QualityConfig,
    RoundsConfig,
    Section,
    TrainingConfig,
    WeightsConfig,
)
from feddiff.core.topology import PeerConfig, Topology

MAX_CONFIG_BYTES = 1 << 20
MAX_SAMPLE_SIZE = 4096
"""Pixels along one side of an image."""
Fixed = Literal["full", "usplit", "ulatdec", "udec"]
"""FedDiffuse's plans: what they exchange is fixed beforehand."""
Policy = Literal[Fixed, "budget"]
POLICIES: tuple[Fixed, ...] = ("full", "usplit", "ulatdec", "udec")
_LATER = (
    *(("", name) for name in ("budget", "quality", "filter", "personal", "frozen", "weights", "pool")),
    *(("training", name) for name in ("proximal", "clip", "accumulate", "schedule", "warmup", "label_dropout")),
    *(("rounds", name) for name in ("sampled", "sampling")),
    ("diffusion", "guidance"),
    ("outer", "ema"),
    *(("", name) for name in ("topology", "peer")),
)
"""Tables and keys that came after the first federations: they are in the rules' text only if they change anything."""


class FederationConfig(Section):
    """One federation. ``[model]`` is any diffusers ``UNet2DModel`` config, or a DCGAN's (core/kinds.py)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "federation"
    plan: Policy = "full"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    initial: Literal["send", "seed", "file"] = "send"
    """seed: silos make the initial model themselves, and fetch it only if its digest is not the federator's. file: it
    is a published one, which the federator is given (``serve --initial``)."""
    personal: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Segments or parts that are each silo's own: they never leave it (core/sharing.py)."""
    frozen: Annotated[int, Field(ge=0)] | Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Segments or parts, or the first so many segments, that stay as in the initial model and are not trained."""
    keep_versions: Annotated[int, Field(ge=1, le=1_000_000)] = 2
    """How many published versions of a segment stay on the federator's disk."""
    model: dict[str, Any]
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig(epochs=1)
    data: DataConfig = DataConfig()
    codec: CodecConfig = Field(default_factory=CodecConfig)
    pool: PoolConfig | None = None
    weights: WeightsConfig = WeightsConfig()
    outer: OuterConfig = OuterConfig()
    rounds: RoundsConfig = RoundsConfig()
    budget: BudgetConfig | None = None
    quality: QualityConfig | None = None
    filter: FilterConfig | None = None
    topology: Topology = "star"
    """Who averages: the federator, or the silos for each other (core/topology.py)."""
    peer: PeerConfig = PeerConfig()

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        for key in ("sample_size", "in_channels", "out_channels"):
            if key not in self.model:
                raise ValueError(f"model.{key} must be given")
        if self.model["in_channels"] != self.model["out_channels"]:
            raise ValueError("model.in_channels and model.out_channels must be equal")
        if self.model["in_channels"] not in (1, 3):
            raise ValueError("model.in_channels must be 1 (grey) or 3 (colour)")
        if type(self.model["sample_size"]) is not int or not 1 <= self.model["sample_size"] <= MAX_SAMPLE_SIZE:
            raise ValueError(f"model.sample_size must be one number of pixels, 1 to {MAX_SAMPLE_SIZE} (a square)")
        try:
            json.dumps(self.model, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("model may hold only text, finite numbers, true, false, lists and tables") from None
        return self

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        agree(self)
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        kinds.check(self)
        return self

    @property
    def kind(self) -> kinds.Kind:
        """Which network ``[model]`` is."""
        return "dcgan" if self.model.get("kind") == "dcgan" else "unet"

    @property
    def denoises(self) -> bool:
        """Whether its loss on images that it was not trained on says how good it is."""
        return self.kind == "unet"

    @property
    def has_global_model(self) -> bool:
        """Whether no segment is a silo's own, so that the federator has a model that draws."""
        return self.plan not in ("ulatdec", "udec") and not self.personal

    @property
    def peers(self) -> bool:
        """Whether silos average for each other."""
        return self.topology != "star"

    @property
    def silos_measure(self) -> bool:
        """Whether silos are asked to measure their own models on their own images."""
        return self.quality is not None and (self.quality.silos or not self.has_global_model)

    @property
    def wants_statistics(self) -> bool:
        """Whether silos are asked for the moments of their images' features."""
        return self.quality is not None and self.quality.reference == "federated" and self.has_global_model

    def canonical(self) -> bytes:
        """The rules as the same bytes everywhere: JSON, sorted keys, no spaces, UTF-8."""
        table = self.model_dump(mode="json")
        for section, name in _LATER:
            rules, within = (getattr(self, section), table[section]) if section else (self, table)
            value, default = getattr(rules, name), type(rules).model_fields[name].default
            if value == default or not (value or default):
                del within[name]  # federations that began before there was such a rule keep their digest
        return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of ``canonical()``, hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def columns(self, count: int) -> int:
        """Images in a row of a grid that is about square: each column is of one class, if there are any."""
        classes = len(self.data.classes) if self.conditional else 1
        return classes * max(round(math.sqrt(count) / classes), 1)

    @property
    def conditional(self) -> bool:
        """Whether the model is told an image's class."""
        return self.model.get("num_class_embeds") is not None

    @property
    def null_class(self) -> int | None:
        """The class that stands for none, after those of ``data.classes``; None if the model learns no such class."""
        return len(self.data.classes) if self.training.label_dropout else None


def load(path: Path) -> FederationConfig:
    """Read a federation's TOML file.

    Raises ConfigError, naming the key, for anything that is not exactly a federation.
    """
    return from_table(read_toml(path, "name the federation's file with --config"), str(path))


def read_toml(path: Path, advice: str) -> dict[str, Any]:
    """A TOML file's table. Raises ConfigError; with ``advice`` where there is no such file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: bytes) -> FederationConfig:
    """Read the canonical JSON of a federation, as it arrives from a federator. Raises ConfigError."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the federation's rules are {len(text)} bytes; at most {MAX_CONFIG_BYTES} are read")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the federation's rules are not JSON: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError("the federation's rules are not a JSON object")
    return from_table(table, "the federator's rules")


def from_table(table: dict[str, Any], where: str) -> FederationConfig:
    """Check a table of settings, over its ``preset``: a model's, and economies, which lie on it. Raises ConfigError."""
    table = dict(table)
    named = table.pop("preset", [])
    presets = named if isinstance(named, list) else [named]
    known = {**PRESETS, **ECONOMIES}
    for preset in presets:
        if not isinstance(preset, str) or preset not in known:
            raise ConfigError(f"{where}: there is no preset {preset!r:.60}; known: {', '.join(known)}")
    models, economies = ([each for each in presets if each in group] for group in (PRESETS, ECONOMIES))
    if len(models) > 1:
        raise ConfigError(f"{where}: presets {models[0]!r} and {models[1]!r} are two models; name one of them")
    if economies and not models and "model" not in table:
        raise ConfigError(
            f"{where}: preset {economies[0]!r} has no model; name one with it, e.g. preset = "
            f'["{next(reversed(PRESETS))}", "{economies[0]}"]'
        )
    under: dict[str, Any] = {}
    for preset in [*models, *economies]:
        over = known[preset]
        if table.get("plan") == "budget":  # which chooses the codecs itself
            over = {key: value for key, value in over.items() if key != "codec"}
        under = _overlay(under, over)
    table = _overlay(under, table)
    try:
        return FederationConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on ``under``, table by table; epochs given over steps (or the reverse) replaces it."""
    merged = dict(under)
    for key, value in over.items():
        if key == "training" and isinstance(value, dict) and {"epochs", "steps"} & value.keys():
            merged[key] = {k: v for k, v in merged.get(key, {}).items() if k not in ("epochs", "steps")}
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _overlay(merged[key], value)
        else:
            merged[key] = value
    return merged


_WORDS = {
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
}
"""What TOML calls the things for which pydantic has Python's names."""


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["loc"][:1] == ("frozen",):
        return f"frozen: must be a number of segments, or a list of their names (got {problem['input']!r:.60})"
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: type[Section] = FederationConfig
        for part in problem["loc"][:-1]:
            found = section.model_fields.get(str(part))
            if found is not None:  # else it is the name that a table in a table of tables has
                kinds = (found.annotation, *get_args(found.annotation))
                section = next(each for each in kinds if isinstance(each, type) and issubclass(each, Section))
        known = ", ".join(sorted({*section.model_fields, *(["preset"] if section is FederationConfig else [])}))
        return f"unknown key {place!r}; known here: {known}"
    if problem["type"] == "missing":
        return f"{place!r} is missing" + ("; give [model] or preset" if place == "model" else "")
    message = _WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    given = "" if problem["type"] == "value_error" else f" (got {problem['input']!r:.60})"
    return f"{place}: {message}{given}" if place else message + given
