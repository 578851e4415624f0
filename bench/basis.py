"""What a measured number depends on beside the model, read from a result: only numbers of one basis stand together.

The counterpart of core/quality.py's ``Measured`` in a run's JSON. bench/setting.py makes means within a basis; the
report puts each into charts of its own, the comparison refuses to subtract across two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Basis:
    """Of a number at the end of a cell."""

    extractor: str
    digest: str
    samples: int
    reference: int
    against: str
    sampler: str = ""
    steps: int = 0

    @classmethod
    def of(cls, number: Mapping[str, Any], drawn: Mapping[str, Any] | None = None) -> Basis:
        """Of one entry of ``quality.metrics``; ``drawn`` has the sampler and its steps, where they are known."""
        known = drawn or {}
        # Each silo's model against the silo's own images: of as many sizes as there are silos.
        own = known.get("of") == "silos" and number["against"] == "training"
        return cls(
            number["extractor"],
            number["digest"],
            number["samples"],
            0 if own else number["reference"],
            "own training" if own else number["against"],
            str(known.get("sampler") or ""),
            int(known.get("steps") or 0),
        )

    def __str__(self) -> str:
        drawn = f" ({self.sampler}, {self.steps} steps)" if self.sampler else ""
        count = f"{self.reference:,} " if self.reference else ""
        reference = f" against {count}{self.against} images" if self.against else ""
        return f"{self.samples:,} samples{drawn}{reference}, extractor {self.extractor} {self.digest[:8] or 'unknown'}"


@dataclass(frozen=True, order=True)
class Way:
    """Of numbers in rounds: the global model against one reference, or silos' models against their own images."""

    of: str
    """``global`` or ``silos``; then the references' sizes differ from silo to silo, and the number is their mean."""
    basis: Basis

    @classmethod
    def of_number(cls, number: Mapping[str, Any]) -> Way:
        """Of one entry of a round's ``quality``."""
        whole = number["of"] in ("", "global")
        return cls("global" if whole else "silos", Basis.of(number if whole else {**number, "reference": 0}))

    def like(self, end: Basis) -> bool:
        """Whether a number at the end of a cell can stand beside these; how rounds sample, a result does not say."""
        mine = self.basis
        same = (mine.extractor, mine.digest, mine.samples) == (end.extractor, end.digest, end.samples)
        return self.of == "global" and same and (mine.reference, mine.against) == (end.reference, end.against)

    def read(self, round: Mapping[str, Any], metric: str) -> float | None:
        """Of a round: the global model's, or the mean of the silos'; None where it was not measured this way."""
        values = [
            float(number["value"])
            for number in round.get("quality", ())
            if number["metric"] == metric and number["value"] is not None and Way.of_number(number) == self
        ]
        return sum(values) / len(values) if values else None

    def __str__(self) -> str:
        if self.of == "global":
            return f"the global model: {self.basis}"
        against = f" against {self.basis.against} images" if self.basis.against else ""
        return f"mean of the silos' own models: {self.basis.samples:,} samples{against}, {self.extractor}"

    @property
    def extractor(self) -> str:
        return f"extractor {self.basis.extractor} {self.basis.digest[:8] or 'unknown'}"
