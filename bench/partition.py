"""Dealing one labelled data set to silos, seeded: how unequal hospitals are made from equal images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ConfigError


def dirichlet(
    labels: npt.NDArray[np.int64], silos: int, beta: float, seed: int, least: int = 1
) -> list[npt.NDArray[np.int64]]:
    """Label skew (Hsu et al. 2019, arXiv 1909.06335): of each label, silo k gets a share drawn from Dirichlet(beta).

    Returns the sorted indices of each silo; every index is in exactly one. Draws anew until each silo has at least
    ``least`` images. Raises ConfigError if that cannot be.
    """
    if silos < 1 or beta <= 0 or silos * least > labels.size:
        raise ConfigError(f"{labels.size} images cannot be dealt to {silos} silos with at least {least} each")
    generator = np.random.default_rng(seed)
    for _ in range(1000):
        parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(silos)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(silos, beta))
            cuts = (np.cumsum(shares)[:-1] * members.size).astype(int)
            for part, some in zip(parts, np.split(members, cuts), strict=True):
                part.append(some)
        dealt = [np.sort(np.concatenate(part)) for part in parts]
        if min(part.size for part in dealt) >= least:
            return dealt
    raise ConfigError(f"no deal of Dirichlet({beta}) gave each of {silos} silos {least} images; raise beta")
