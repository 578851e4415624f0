"""The rules by which a federation goes on without silos whose own models are poor (Phoenix: threshold filtering).

A table of the federation's file, beside those of core/sections.py; federator/filtering.py decides by it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from feddiff.core.sections import Count, QualityConfig, RoundsConfig, Section


class FilterConfig(Section):
    """Who is poor, by what silos measure of their own models; who is so twice in a row is left out."""

    rule: Literal["lowest", "threshold", "average"] = "lowest"
    """The lowest of a round, those below ``threshold``, or those below the round's average."""
    metric: Literal["precision", "recall"] = "precision"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With ``rule = "average"``: by how much one must be below it."""
    since: Count = 5
    """The first round whose measurements count."""
    out: Literal["round", "good"] = "good"
    """For how long: the next round, or until the operator takes it back."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if (self.rule == "threshold") != (self.threshold is not None):
            raise ValueError('rule = "threshold" needs a threshold, and no other rule has one')
        if self.margin and self.rule != "average":
            raise ValueError('margin goes with rule = "average"; leave it out')
        return self

    def check(self, rounds: RoundsConfig, quality: QualityConfig | None) -> None:
        """Raises ValueError where nobody could ever be left out. ``quality``: by which silos measure, if they do."""
        if quality is None:
            raise ValueError("[filter] goes by what silos measure; give [quality] with silos = true")
        if rounds.needed >= rounds.participants:
            raise ValueError(
                f"[filter] could leave nobody out, for a round needs all {rounds.participants} participants; set"
                " rounds.quorum to the fewest that a round may have"
            )
        # The last round's measurements come too late: no other is planned by them.
        if (rounds.count - 1) // quality.every - (self.since - 1) // quality.every < 2:
            raise ValueError(
                f"[filter] from round {self.since} on: nobody can be measured poor twice before the last of"
                f" {rounds.count} rounds is planned; lower filter.since or quality.every"
            )
