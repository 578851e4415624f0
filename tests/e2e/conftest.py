"""Whole federations: real processes or production classes in threads, real TLS, real folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for noise.py and stage.py, in pytest's importlib mode

from stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage of the test's own; whatever runs on it ends with the test, whose report shows the logs if it failed."""
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        print(made.close())
