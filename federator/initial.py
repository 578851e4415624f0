"""The first weights, made in a process of their own so that the daemon never has to import torch.

``python -m feddiff.federator.initial FOLDER`` reads ``FOLDER/rules.json`` and writes ``layout.json`` and
``initial.safetensors``: the model of the federation's seed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from feddiff.core.config import FederationConfig, parse
from feddiff.core.errors import ConfigError, FedDiffError
from feddiff.core.segments import Layout
from feddiff.core.store import save, write_atomic


def prepare(folder: Path, config: FederationConfig) -> Layout:
    """The layout of the federation's model; on the first call, makes it and the initial weights.

    Raises ConfigError when diffusers refuses the model.
    """
    layout = folder / "layout.json"
    if not layout.exists():
        write_atomic(folder / "rules.json", config.canonical())
        command = [sys.executable, "-m", "feddiff.federator.initial", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise ConfigError(f"the initial model cannot be made: {lines[-1]}")
    return Layout.from_json(layout.read_text())


def main(folder: Path) -> None:
    from feddiff.core import diffusion

    config = parse((folder / "rules.json").read_bytes())
    layout = diffusion.layout(config)
    state = diffusion.initial_state(config)
    vectors = {segment.name: segment.gather(state) for segment in layout.segments}
    save(folder / "initial.safetensors", vectors, {"config": config.digest})
    write_atomic(folder / "layout.json", layout.to_json().encode())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except FedDiffError as error:
        sys.exit(str(error))
