"""A federation before the others: they wait for its model, begin with it, and fail without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from feddiff.bench import campaign, launcher, result, sweep, worker
from feddiff.bench.cell import Cell
from feddiff.core import diffusion
from feddiff.core.config import from_table
from feddiff.silo.trained import Trained

SWEEP = """\
name = "tiny"
baselines = ["alone"]
processes = 1
[federation]
preset = "digits-8"
[federation.rounds]
count = 1
[federation.training]
steps = 2
batch_size = 8
[before]
[strategies]
"n=3" = { frozen = 3 }
[data]
images = 60
[samples]
count = 10
steps = 2
[grid]
silos = [2]
strategy = ["n=3"]
seed = [0, 1]
"""
Ended = Callable[[], int | None]


def pretend(monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path, str], Ended]) -> None:
    """Let ``--on local`` be a launcher that only says how its cells end."""

    @contextmanager
    def fake(run: Path, jobs: int, options: Any) -> Iterator[launcher.Start]:
        yield lambda key: launcher.Job(begin(run, key), lambda: None)

    monkeypatch.setitem(launcher.LAUNCHERS, "local", fake)


def run(folder: Path) -> tuple[int, list[Cell]]:
    (folder / "sweep.toml").write_text(SWEEP)
    asked = sweep.load(folder / "sweep.toml")
    failed = campaign.run(asked, folder / "run", 9, lambda line: None)
    return failed, asked.cells(asked.images(folder / "run" / "data").digest)


@pytest.mark.parametrize("code", [0, 1])
def test_cells_wait_until_the_federation_before_has_ended(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, seen = set[str](), list[tuple[str, frozenset[str]]]()

    def begin(run: Path, key: str) -> Ended:
        seen.append((key, frozenset(running)))
        running.add(key)
        left = iter([None, None, code])

        def ended() -> int | None:
            if (found := next(left)) is not None:
                running.remove(key)
            return found

        return ended

    pretend(monkeypatch, begin)
    failed, cells = run(tmp_path)
    keys = {cell.key: cell for cell in cells}
    assert failed == len(cells) * code == 6 * code
    assert [keys[key].strategy for key, _ in seen[:2]] == ["before", "before"]  # both seeds' at once
    began = [key for key, _ in seen]
    for key, beside in seen[2:]:
        base = keys[key].base
        assert base is not None
        assert base.key not in beside, "it did not wait"
        assert base.key in began[: began.index(key)]


def test_a_finished_one_without_its_model_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def begin(run: Path, key: str) -> Ended:
        seen.append(key)
        (run / "cells" / f"{key}.json").write_text("{}")
        return lambda: 0

    pretend(monkeypatch, begin)
    _, cells = run(tmp_path)
    before = [cell for cell in cells if cell.strategy == "before"]
    assert sorted(seen) == sorted(cell.key for cell in cells)
    before[0].model(tmp_path / "run").write_bytes(b"a model")
    seen.clear()
    run(tmp_path)
    assert seen == [before[1].key]


def test_a_cell_begins_with_the_model_before_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very process of a cell: two silos by themselves, the first three segments frozen."""
    pretend(monkeypatch, lambda run, key: lambda: 1)
    _, cells = run(tmp_path)
    out = tmp_path / "run"
    alone = next(cell for cell in cells if cell.kind == "alone")
    assert alone.base is not None
    said: list[str] = []
    assert not worker.run(out, alone.key, 1, said.append)
    assert f"begins with the model of {alone.base.key}, which is not there" in said[-1]
    assert alone.base.key in (out / "cells" / f"{alone.key}.failed").read_text()

    state = diffusion.initial_state(from_table({"preset": "digits-8", "seed": 9}, "test"))
    save_file(state, alone.base.model(out))
    (out / "cells" / f"{alone.base.key}.json").write_text("{}")
    models: dict[str, Any] = {}
    whole = result.outcome.baseline

    def watched(cell: Cell, metrics: Any, folder: Path) -> Any:
        models.update({name: Trained(folder / "silos" / name).weights() for name in metrics})
        return whole(cell, metrics, folder)

    monkeypatch.setattr(result.outcome, "baseline", watched)
    assert worker.run(out, alone.key, 1, said.append), said
    found = json.loads((out / "cells" / f"{alone.key}.json").read_text())
    assert found["settings"]["strategy"] == "n=3"
    layout = diffusion.layout(alone.config)
    begun = layout.gather(load_file(alone.base.model(out)))
    assert list(models) == ["silo-1", "silo-2"]
    for weights in models.values():
        assert [np.array_equal(weights[name], begun[name]) for name in layout.names] == [True] * 3 + [False] * 4
