"""The networks that a federation may train, as its rules name them, and which rules make no sense for which.

Between the rules (core/config.py), which are read without torch, and the networks themselves (core/network.py finds the
module of each). ``[model]`` without a ``kind`` is a diffusers ``UNet2DModel``, whose own keys diffusers checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from feddiff.core.sections import DiffusionConfig, Section

if TYPE_CHECKING:
    from feddiff.core.config import FederationConfig

Kind = Literal["unet", "dcgan"]
Width = Annotated[int, Field(ge=1, le=4096)]


class DcganModel(Section):
    """``[model]`` of a DCGAN (core/dcgan.py)."""

    kind: Literal["dcgan"]
    sample_size: int
    in_channels: int
    out_channels: int
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=8)]
    """Widths of the generator, from the smallest image to the largest; the discriminator's are the same, reversed."""
    latent: Width = 100
    """Numbers that an image is drawn from."""

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.start < 2 or self.start << len(self.channels) != self.sample_size:
            raise ValueError(
                f"each of the {len(self.channels)} channels halves the {self.sample_size} pixels of sample_size,"
                " which must come out, at 2 at least"
            )
        return self

    @property
    def start(self) -> int:
        """Pixels along one side of the smallest image."""
        return self.sample_size >> len(self.channels)


def dcgan(rules: FederationConfig) -> DcganModel:
    """The model of rules whose ``kind`` is "dcgan". Raises ValueError, naming the key, for one that cannot be."""
    try:
        return DcganModel.model_validate(rules.model)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in ("model", *problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise ValueError(f"unknown key {place}; known here: {', '.join(sorted(DcganModel.model_fields))}") from None
        raise ValueError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None


def check(rules: FederationConfig) -> None:
    """Raises ValueError, saying what to do, for a network that is not known and for rules that it cannot follow."""
    if "kind" in rules.model and rules.model["kind"] != "dcgan":
        raise ValueError('model.kind must be "dcgan", or left out: then it is a UNet2DModel')
    if rules.kind == "unet":
        _check_classes(rules)
        return
    dcgan(rules)
    training, outer = rules.training, rules.outer
    refusals = {
        'its parts are generator and discriminator; it needs plan = "full"': rules.plan != "full",
        "it has no noise levels; leave [diffusion] out": rules.diffusion != DiffusionConfig(),
        "it is told no classes; leave training.label_dropout out": training.label_dropout != 0,
        "both networks learn, or neither does; leave frozen out": bool(rules.frozen),
        "its batches are normalised each by itself; leave training.accumulate out": training.accumulate != 1,
        'its losses do not say whom it serves badly; leave weights.by = "loss" out': rules.weights.by == "loss",
        # What is published of running means and variances must lie between what silos reported.
        "its running statistics are averages, and stay so under sgd with a rate up to 1 alone; leave [outer] out, but"
        " for ema": outer.optimizer != "sgd" or outer.learning_rate > 1,
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"the model is a DCGAN: {reason}")


def _check_classes(rules: FederationConfig) -> None:
    """Of a UNet: it has a row for each class, and one for the null class if it learns one."""
    rows, labels = rules.model.get("num_class_embeds"), len(rules.data.classes)
    if rules.training.label_dropout and not labels:
        raise ValueError("training.label_dropout is for a model that is told classes; name them in data.classes")
    if rules.training.label_dropout and rows != labels + 1:
        raise ValueError(
            f"training.label_dropout needs a null class beside the {labels} of data.classes;"
            f" set model.num_class_embeds to {labels + 1} (it is {rows})"
        )
    if not rules.training.label_dropout and rows is not None and rows != labels:
        raise ValueError(f"model.num_class_embeds is {rows} but data.classes names {labels} labels")
    if rules.diffusion.guidance != 1 and rules.null_class is None:
        raise ValueError("diffusion.guidance needs a null class; set training.label_dropout, e.g. to 0.1")
