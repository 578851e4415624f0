"""The models that a silo holds: sampled and exported where they lie, also beside a running daemon.

Its own after its last training, which under ULATDEC and UDEC is the only whole one there is (with a moving average,
that is the one used); and the newest one that the federator has published to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError, StoreError
from feddiff.core.segments import F32
from feddiff.core.store import WeightsReader
from feddiff.silo.local import held_file, newest
from feddiff.silo.trained import Trained

ATTEMPTS = 5
"""To read what a running daemon replaces at the same moment."""


def rules_of(folder: Path) -> FederationConfig:
    """The federation's rules. Raises StoreError if the silo has not joined one."""
    from feddiff.core import config

    if not (folder / "rules.json").exists():
        raise StoreError(f"{folder} holds no silo that has joined a federation")
    return config.parse((folder / "rules.json").read_bytes())


def own(folder: Path) -> tuple[FederationConfig, dict[str, F32]]:
    """The rules, and the silo's own model, by parameter. Raises StoreError if nothing was trained yet."""
    from feddiff.core import network

    rules, trained = rules_of(folder), Trained(folder)
    vectors = trained.averages() or trained.weights()
    return rules, network.of(rules).layout(rules).scatter(vectors)


def published(folder: Path) -> tuple[FederationConfig, dict[str, F32], str]:
    """The rules, the newest published model that the silo holds, by parameter, and its versions, for people.

    Raises ConfigError under rules without a global model, StoreError if nothing but initial weights of a seed is here.
    """
    from feddiff.core import network

    rules = rules_of(folder)
    if not rules.has_global_model:
        raise ConfigError("with this federation's rules there is no global model; the silo's own is the one it has")
    layout = network.of(rules).layout(rules)
    for attempt in range(ATTEMPTS):
        versions = newest(folder)
        if versions.keys() != set(layout.names) or (not any(versions.values()) and rules.initial != "file"):
            raise StoreError(f"{folder} holds no trained model yet; it is there after the first round")
        vectors = {}
        try:
            for name, version in versions.items():
                with WeightsReader(held_file(folder, name, version)) as reader:
                    vectors[name] = reader.read(name)
        except StoreError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            low, high = min(versions.values()), max(versions.values())
            return rules, layout.scatter(vectors), f"version {low}" if low == high else f"versions {low} to {high}"
    raise AssertionError


def sample(
    folder: Path,
    out: Path,
    count: int,
    steps: int,
    seed: int,
    scale: int,
    guidance: float | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Draw a grid of images from the silo's own model, of these classes in turn, by default of all.

    Raises StoreError if nothing was trained yet, ConfigError for arguments that cannot be.
    """
    rules, state = own(folder)
    from feddiff.core.grid import draw

    chosen = None if labels is None else [places(rules, labels)[each % len(labels)] for each in range(count)]
    draw(rules, state, out, count, steps, seed, scale, guidance, chosen)


def places(rules: FederationConfig, labels: Sequence[str]) -> list[int]:
    """The classes of these names. Raises ConfigError for one that the model does not know."""
    known = rules.data.classes
    if not rules.conditional:
        raise ConfigError("the model is not told classes, so none can be asked for; leave --labels and --balance out")
    for label in labels:
        if label not in known:
            raise ConfigError(f"--labels: there is no class {label!r:.60}; known: {', '.join(known)}")
    return [known.index(label) for label in labels]


def export(folder: Path, target: Path) -> str:
    """Write the silo's own model; returns how it is loaded."""
    rules, state = own(folder)
    from feddiff.core import network

    return network.of(rules).export(rules, state, target)
