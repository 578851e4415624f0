"""The features of the reference images: made once, and kept beside the federation for all its measurements.

Between gauge.py and core/features.py. The file is known by everything that its values depend on, so that another
extractor, or a reference folder that has changed, is never taken for the old one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from feddiff.core.config import FederationConfig
from feddiff.core.features import Extractor
from feddiff.core.images import Images
from feddiff.core.quality import Features
from feddiff.core.store import write_atomic

CACHE = "reference.npz"


def features(
    folder: Path,
    reference: Path,
    images: Images,
    extractor: Extractor,
    config: FederationConfig,
    progress: Callable[[int, int], None],
) -> Features:
    """Of the images that were read of the folder ``reference``; from ``folder/reference.npz`` if they were made before.

    Raises ConfigError as ``Extractor.features`` does.
    """
    cache, key = folder / CACHE, _key(reference, extractor, config)
    try:
        with np.load(cache, allow_pickle=False) as kept:
            values, probabilities = kept["values"], kept["probabilities"]
            if str(kept["key"]) == key and len(values) == len(images.pixels):
                shares = probabilities if probabilities.size else None
                return Features(values, shares, extractor.name, extractor.digest, extractor.caution)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # not there, or not whole: it is made anew
    made = extractor.features(images.pixels, progress=progress)
    shares = np.zeros((0, 0), np.float32) if made.probabilities is None else made.probabilities
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), values=made.values, probabilities=shares)
    write_atomic(cache, buffer.getvalue())
    return made


def _key(reference: Path, extractor: Extractor, config: FederationConfig) -> str:
    """SHA-256 of the extractor, of how images are read, and of the files' names, sizes and times."""
    rules = [extractor.digest, extractor.kind, config.model["sample_size"], config.model["in_channels"]]
    digest = hashlib.sha256(json.dumps([*rules, config.data.classes]).encode())
    for path in sorted(reference.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(json.dumps([str(path.relative_to(reference)), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()
