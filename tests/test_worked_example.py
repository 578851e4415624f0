"""docs/strategies.md: the strategy that it adds works as written, in a federation of real daemons."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path(__file__).parents[1]
RULES = """\
name = "trial"
preset = "digits-8"
[weights]
by = "root"
[training]
steps = 1
batch_size = 8
threads = 1
[rounds]
count = 1
participants = 2
"""
RUN = """\
import sys
from pathlib import Path
import feddiff.federator.root
from feddiff.bench import trial
trial.federate(sys.argv[1], ["silo-1", "silo-2"], Path(sys.argv[2]))
"""


def test_the_worked_example_is_a_strategy(tmp_path: Path) -> None:
    copy, folder = tmp_path / "source" / "feddiff", tmp_path / "run"
    for name in ("core", "federator", "silo", "bench"):
        shutil.copytree(SOURCE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE / "proto" / "feddiff" / "v1", copy / "v1")
    section = (SOURCE / "docs" / "strategies.md").read_text().partition("## A strategy of one's own")[2]
    (copy / "federator" / "root.py").write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    changes = re.findall(r"```diff\n--- (\S+)\n(.*?)```", section, re.DOTALL)
    assert len(changes) == 3
    for path, change in changes:
        lines = change.splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[:1] in kept) for kept in (" -", " +"))
        text = (copy / path).read_text()
        assert text.count(f"{old}\n") == 1, change
        (copy / path).write_text(text.replace(old, new))
    for name, images in (("silo-1", 9), ("silo-2", 16)):
        (folder / "data" / name / "0").mkdir(parents=True)
        for number in range(images):
            Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(folder / "data" / name / "0" / f"{number}.png")
    environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
    run = [sys.executable, "-c", RUN, RULES, str(folder)]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "averaged by root: silo-1 42.9% (square root of 9 images); silo-2 57.1% (square root of 16 images)"
        in (folder / "federator.log").read_text()
    )
