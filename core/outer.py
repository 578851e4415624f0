"""The federator's own optimizer: a step along what the silos' average says, instead of the average itself.

The pseudo-gradient is ``g = w_v - mean`` (Reddi et al. 2021, arXiv 2003.00295). With it:

    sgd        w - lr g                                            lr = 1 is FedAvg, exactly
    momentum   m = mu m + g;  w - lr m
    nesterov   m = mu m + g;  w - lr (g + mu m)                    DiLoCo: lr 0.7, mu 0.9 (arXiv 2311.08105)
    adam       m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;                     w - lr m / (sqrt v + tau)
    yogi       m = b1 m + (1-b1) g;  v = v - (1-b2) g^2 sign(v - g^2);          w - lr m / (sqrt v + tau)

Works chunk by chunk from disk, like the fold: moments lie in a file for each version of a segment, so a step that a
crash interrupts is repeated from the same moments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from feddiff.core.sections import OuterConfig
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader, WeightsWriter

F64 = npt.NDArray[np.float64]
_MOMENTS = {"sgd": (), "momentum": ("m",), "nesterov": ("m",), "adam": ("m", "v"), "yogi": ("m", "v")}


def step(config: OuterConfig, weights: F32, mean: F64, moments: dict[str, F64]) -> F64:
    """The next weights of one chunk, float64; ``moments`` (m, v of the same length) are moved in place."""
    if config.optimizer == "sgd" and config.learning_rate == 1:
        return mean
    gradient = weights - mean
    if config.optimizer == "sgd":
        return weights - config.learning_rate * gradient
    m = moments["m"]
    if config.optimizer in ("momentum", "nesterov"):
        m *= config.momentum
        m += gradient
        direction = gradient + config.momentum * m if config.optimizer == "nesterov" else m
        return weights - config.learning_rate * direction
    v, square = moments["v"], gradient**2
    m *= config.beta1
    m += (1 - config.beta1) * gradient
    if config.optimizer == "adam":
        v *= config.beta2
        v += (1 - config.beta2) * square
    else:
        v -= (1 - config.beta2) * square * np.sign(v - square)
    return weights - config.learning_rate * m / (np.sqrt(v) + config.tau)


class Outer:
    """The optimizer of one segment on its way from one version to the next."""

    def __init__(self, config: OuterConfig, before: Path, after: Path, size: int) -> None:
        self._config = config
        names = _MOMENTS[config.optimizer]
        self._before = WeightsReader(before) if names and before.exists() else None
        self._after = WeightsWriter(after, dict.fromkeys(names, size)) if names else None

    def step(self, start: int, weights: F32, mean: F64) -> F64:
        """The next weights from value ``start`` of the segment on."""
        moments = {name: self._read(name, start, mean.size) for name in _MOMENTS[self._config.optimizer]}
        stepped = step(self._config, weights, mean, moments)
        if self._after is not None:
            for name, values in moments.items():
                self._after.write(name, start, values.astype(np.float32))
        return stepped

    def _read(self, name: str, start: int, count: int) -> F64:
        if self._before is not None:
            return self._before.read(name, start, count).astype(np.float64)
        # v begins at tau^2, as in the paper's algorithm 2, so that the first step is not a leap.
        return np.full(count, self._config.tau**2 if name == "v" else 0.0)

    def commit(self) -> None:
        """Make the moments count for the next round."""
        if self._after is not None:
            self._after.commit()

    def close(self) -> None:
        """Forget what was not committed."""
        if self._after is not None:
            self._after.abandon()
        if self._before is not None:
            self._before.close()
