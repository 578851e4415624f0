"""The warm-up model of data sharing: trained for the federator as a silo trains, on the set G in place of its images.

``python -m feddiff.silo.warmup FOLDER/pool --parent PID`` is that training in a process of its own, which
federator/warmup.py starts before the first round, so that the daemon never has to import torch. It reads the rules, G
and the initial weights, and leaves ``warmup.safetensors``; killed, it goes on from its checkpoint. Says on stdout how
far it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from feddiff.core import console
from feddiff.core.config import FederationConfig, parse
from feddiff.core.sections import LONE

CHECKPOINT = "checkpoint.safetensors"


def alone(config: FederationConfig) -> FederationConfig:
    """The rules of the training: as in a round, but there are neither rounds nor other silos. Raises ConfigError."""
    from feddiff.core.errors import ConfigError

    if config.pool is None or not config.pool.warmup:
        raise ConfigError("the rules ask for no warm-up model")
    new = {**LONE, "epochs": config.pool.warmup, "steps": None, "ema_decay": 0.0}
    training = config.training.model_copy(update=new)
    return config.model_copy(update={"training": training})


def warm_up(folder: Path) -> None:
    """Train the model and write it. Raises DataError, StoreError, NotFinite."""
    from feddiff.core import network
    from feddiff.core.pool import SHARED, WARMED, from_bytes
    from feddiff.core.store import WeightsReader, save
    from feddiff.silo.learner import training_seed
    from feddiff.silo.trainer import Progress, train

    def told(at: Progress) -> bool:
        print(f"step {at.step} of {at.steps}, loss {at.loss:.4f}", flush=True)
        return True

    config = parse((folder / "rules.json").read_bytes())
    layout, images = network.of(config).layout(config), from_bytes((folder / SHARED).read_bytes(), config)
    with WeightsReader(folder.parent / "initial.safetensors") as reader:
        state = layout.scatter({name: reader.read(name) for name in layout.names})
    # Of round 0, which there is not, and of a name that no silo can have.
    seed = training_seed(config.seed, 0, "")
    trained = train(alone(config), state, images, seed, checkpoint=folder / CHECKPOINT, progress=told)
    assert trained is not None  # nobody abandons it
    save(folder / WARMED, layout.gather(trained.state), {"config": config.digest})
    (folder / CHECKPOINT).unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="warmup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    console.tie(options.parent)

    def run() -> int:
        warm_up(options.folder)
        return 0

    return console.run("warmup", run)


if __name__ == "__main__":
    sys.exit(main())
