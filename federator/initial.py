"""The first weights, made in a process of their own so that the daemon never has to import torch.

``python -m feddiff.federator.initial FOLDER [PUBLISHED]`` reads ``FOLDER/rules.json`` and writes ``layout.json`` and
``initial.safetensors``: the model of the federation's seed, or the published one, if it is one of these rules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.segments import F32, Layout
from feddiff.core.sharing import share
from feddiff.core.store import save, write_atomic

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What diffusers calls them, in the model's folder or in ``unet`` of a pipeline's."""
DCGAN = "model.safetensors"
"""What ``export`` calls a DCGAN's (core/dcgan.py)."""


def prepare(folder: Path, config: FederationConfig, published: Path | None = None) -> Layout:
    """The layout of the federation's model; on the first call, makes it and the initial weights.

    ``published``: the model that rules with ``initial = "file"`` begin with; not looked at again later. Raises
    ConfigError when diffusers refuses the model, and for a published one that is none, or is of another kind.
    """
    layout = folder / "layout.json"
    if published is not None and config.initial != "file":
        raise ConfigError(f'--initial needs rules with initial = "file", and these say "{config.initial}"')
    if not layout.exists():
        if config.initial == "file" and published is None:
            raise ConfigError('initial = "file" needs a published model: name its folder or file with --initial')
        write_atomic(folder / "rules.json", config.canonical())
        command = [sys.executable, "-m", "feddiff.federator.initial", str(folder)]
        done = subprocess.run(
            [*command, *([str(published)] if published else [])], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise ConfigError(f"the initial model cannot be made: {lines[-1]}")
    return Layout.from_json(layout.read_text())


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


def main(folder: Path, published: Path | None = None) -> None:
    from feddiff.core import network

    config = parse((folder / "rules.json").read_bytes())
    model = network.of(config)
    layout = model.layout(config)
    share(layout, config.plan, config.personal, config.frozen)  # a wrong name is said before anything is kept
    state = model.initial_state(config) if published is None else read_published(published, config)
    save(folder / "initial.safetensors", layout.gather(state), {"config": config.digest})
    write_atomic(folder / "layout.json", layout.to_json().encode())


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except FedDiffError as error:
        sys.exit(str(error))
