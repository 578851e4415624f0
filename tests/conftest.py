"""For all tests."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for tiny.py, in pytest's importlib mode

sys.path.insert(0, str(Path(__file__).parent))  # for tiny.py, in pytest's importlib mode

# The machines are shared and noisy: how long one example takes says nothing.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
