"""A model that somebody published, read back: what a federation may begin with, and what a silo goes on from alone.

``export`` and diffusers write it; federator/initial.py and silo/personalise.py take it up. They come from elsewhere, so
each is held against the rules' own model before a number of it counts. Nothing is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path

from feddiff.core.config import FederationConfig
from feddiff.core.errors import ConfigError
from feddiff.core.segments import F32

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What diffusers calls them, in the model's folder or in ``unet`` of a pipeline's."""
DCGAN = "model.safetensors"
"""What ``export`` calls a DCGAN's (core/dcgan.py)."""


def weights_file(place: Path) -> Path:
    """The safetensors file of a model's folder, of a pipeline's, or the file itself. Raises ConfigError."""
    files = [place / "unet" / WEIGHTS, place / WEIGHTS, place / DCGAN] if place.is_dir() else [place]
    found = next((each for each in files if each.is_file()), None)
    if found is None:
        raise ConfigError(
            f"{place} holds no {WEIGHTS} and no {DCGAN}; name the folder of a model, or a safetensors file"
        )
    return found


def read_published(place: Path, config: FederationConfig) -> dict[str, F32]:
    """A model that ``export`` or diffusers wrote, by parameter name: a folder, or the safetensors file in it.

    Values are float32, whatever they were stored as. Raises ConfigError for what is no such file, for weights that are
    not exactly those of the rules' model or are not finite, and where a ``config.json`` beside them tells of a model of
    the same shapes that computes something else.
    """
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    from feddiff.core import network

    file = weights_file(place)
    _compare(file.parent, config)
    wanted = {
        each.name: each.shape for segment in network.of(config).layout(config).segments for each in segment.parameters
    }
    state: dict[str, F32] = {}
    try:
        with safe_open(file, "pt") as reader:
            if odd := sorted(wanted.keys() ^ set(reader.keys())):
                what = "is missing" if odd[0] in wanted else "is not of the rules' model"
                raise ConfigError(f"{file} is another model: {odd[0]} {what}, and {len(odd) - 1} more differ")
            for name, shape in wanted.items():
                if tuple(reader.get_slice(name).get_shape()) != shape:
                    found = tuple(reader.get_slice(name).get_shape())
                    raise ConfigError(f"{file} is another model: {name} has shape {found}, not {shape}")
                state[name] = reader.get_tensor(name).to(torch.float32).numpy()
                if not np.isfinite(state[name]).all():
                    raise ConfigError(f"{file}: {name} holds NaN or infinity")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return state


def _compare(folder: Path, config: FederationConfig) -> None:
    """Raises ConfigError if the files beside a model's weights say that the rules mean another."""
    from feddiff.core import network

    for name, table in network.of(config).described(config).items():
        path = folder / name
        if not path.exists():
            continue
        try:
            theirs = json.loads(path.read_bytes())
            odd = [key for key, value in json.loads(json.dumps(table)).items() if theirs.get(key, value) != value]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        if odd:
            raise ConfigError(
                f"{path} says {odd[0]} = {theirs[odd[0]]!r:.60}, and the rules' model has {table[odd[0]]!r:.60}"
            )
