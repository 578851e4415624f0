"""What tests of the training share is in test_trainer.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # in pytest's importlib mode
