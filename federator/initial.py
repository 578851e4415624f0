"""The first weights, made in a process of their own so that the daemon never has to import torch.

``python -m feddiff.federator.initial FOLDER [PUBLISHED]`` reads ``FOLDER/rules.json`` and writes ``layout.json`` and
``initial.safetensors``: the model of the federation's seed, or the published one, if it is one of these rules.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.segments import Layout
from feddiff.core.sharing import share
from feddiff.core.store import save, write_atomic


def prepare(folder: Path, config: FederationConfig, published: Path | None = None, begun: bool = False) -> Layout:
    """The layout of the federation's model; on the first call, makes it and the initial weights.

    ``published``: the model that rules with ``initial = "file"`` begin with; not looked at again once the federation
    has ``begun``. Until then a start that failed may have left what other rules, or another model, made: it is made
    anew. Raises ConfigError when diffusers refuses the model, and for a published one that is none, or is of another
    kind.
    """
    layout, rules = folder / "layout.json", folder / "rules.json"
    if published is not None and config.initial != "file":
        raise ConfigError(f'--initial needs rules with initial = "file", and these say "{config.initial}"')
    stale = published is not None or (rules.exists() and rules.read_bytes() != config.canonical())
    if not layout.exists() or (stale and not begun):
        if config.initial == "file" and published is None:
            raise ConfigError('initial = "file" needs a published model: name its folder or file with --initial')
        layout.unlink(missing_ok=True)
        write_atomic(rules, config.canonical())
        command = [sys.executable, "-m", "feddiff.federator.initial", str(folder)]
        done = subprocess.run(
            [*command, *([str(published)] if published else [])], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise ConfigError(f"the initial model cannot be made: {lines[-1]}")
    return Layout.from_json(layout.read_text())


def main(folder: Path, published: Path | None = None) -> None:
    from feddiff.core import network
    from feddiff.core.published import read_published

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
