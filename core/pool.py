"""Public images that the federator shares: how many, which, and how they travel as bytes that nobody has to trust.

Data sharing (Zhao et al. 2018, arXiv 1806.00582; Phoenix: Stanley Jothiraj & Mashhadi, arXiv 2306.04098). Before the
first round the federator draws the set G from its pool (federator/pool.py); each silo that accepts it draws nothing
itself, but is offered its own portion of G, checks it here, and mixes it into what it trains on (silo/pooled.py).

    bytes     label of each image (int32, little-endian; only with data.classes), then each image (uint8, C x S x S)
    transfer  these bytes in chunks, each one zstd frame; segment "pool", codec "uint8"
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from mmap import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feddiff.core.codec import UINT8, pack, unpack
from feddiff.core.config import FederationConfig
from feddiff.core.errors import DataError, ProtocolError
from feddiff.core.images import Images
from feddiff.core.spool import POOL, Manifest, Spool, Transfer, checksum

MAX_BYTES = 1 << 30
"""Of the set G: as many bytes as a silo is ready to take."""
CHUNK = 1 << 20
"""Bytes in a chunk before encoding."""
SHARED, WARMED = "shared.images", "warmup.safetensors"
"""The set G as bytes, and the model trained on it, in the federator's ``pool/``."""
_LABEL = np.dtype("<i4")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def part(share: float, of: int) -> int:
    """So many of ``of``: the share as it is written, in decimals, rounded down; one at least unless it is 0."""
    return max(math.floor(Fraction(str(share)) * of), 1) if share else 0


def draw(seed: int, what: str, of: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` different places out of ``of``, sorted; the same for the same seed and ``what`` (G's, a silo's)."""
    word = hashlib.sha256(f"{seed}/pool/{what}".encode()).digest()[:8]
    order = np.random.default_rng(int.from_bytes(word, "little")).permutation(of)
    return np.sort(order[:count]).astype(np.int64)


def chosen(images: Images, places: npt.NDArray[np.int64]) -> Images:
    """The images in these places."""
    labels = None if images.labels is None else images.labels[places]
    return Images(images.pixels[places], labels, {}, ())


def mixed(own: Images, public: Images) -> Images:
    """A silo's own images, then the public ones. Both are of one federation's model."""
    labels = None
    if own.labels is not None and public.labels is not None:
        labels = np.concatenate([own.labels, public.labels])
    counts = Counter(own.counts) + Counter(public.counts)
    return Images(np.concatenate([own.pixels, public.pixels]), labels, dict(counts), own.skipped)


def image_bytes(config: FederationConfig) -> int:
    """Bytes of one image with its label."""
    pixels = int(config.model["in_channels"]) * int(config.model["sample_size"]) ** 2
    return pixels + (_LABEL.itemsize if config.data.classes else 0)


def to_bytes(images: Images) -> bytes:
    """Labels and pixels, in the form of this module."""
    labels = b"" if images.labels is None else images.labels.astype(_LABEL).tobytes()
    return labels + np.ascontiguousarray(images.pixels).tobytes()


def from_bytes(data: bytes | mmap, config: FederationConfig) -> Images:
    """The images of ``to_bytes``; pixels are a view. Raises DataError for what cannot be images of these rules."""
    count, rest = divmod(len(data), image_bytes(config))
    if rest or not count or len(data) > MAX_BYTES:
        raise DataError(
            f"{len(data)} bytes are no public images: {image_bytes(config)} bytes each, at most {MAX_BYTES}"
        )
    size, channels, classes = config.model["sample_size"], config.model["in_channels"], config.data.classes
    labels = np.frombuffer(data, _LABEL, count).astype(np.int64) if classes else None
    least = 0 if config.conditional else -1
    if labels is not None and (labels.min() < least or labels.max() >= len(classes)):
        raise DataError(f"public images have labels {labels.min()} to {labels.max()}, of {len(classes)} classes")
    pixels = np.frombuffer(data, np.uint8, offset=count * _LABEL.itemsize if classes else 0)
    names = {-1: "", **dict(enumerate(classes))}
    counts = Counter(names[int(label)] for label in (labels if labels is not None else np.full(count, -1)))
    return Images(pixels.reshape(count, channels, size, size), labels, dict(counts), ())


@dataclass(frozen=True)
class Portion:
    """A silo's part of G as it is offered: its transfer, and SHA-256 of its bytes, hexadecimal."""

    manifest: Manifest
    digest: str

    def count(self, config: FederationConfig) -> int:
        """Images in it."""
        return self.manifest.elements // image_bytes(config)

    def check(self, config: FederationConfig) -> None:
        """Raises ProtocolError unless it can be a portion under these rules, of bounded size."""
        manifest = self.manifest
        if config.pool is None or not config.pool.alpha:
            raise ProtocolError("the federator offers public images, which the rules know nothing of")
        if not manifest.public or not manifest.absolute or not _DIGEST.fullmatch(self.digest):
            raise ProtocolError(f"{manifest.transfer} is no transfer of public images")
        if manifest.elements > MAX_BYTES or manifest.elements % image_bytes(config):
            raise ProtocolError(
                f"{manifest.transfer} holds {manifest.elements} bytes: not whole images of"
                f" {image_bytes(config)}, or more than {MAX_BYTES}"
            )


def portion(silo: str, data: bytes) -> Portion:
    """How these bytes are offered to a silo."""
    digest = hashlib.sha256(data).hexdigest()
    return Portion(Manifest(f"pool.{silo}.{digest[:16]}", POOL, -1, 0, UINT8, len(data), CHUNK), digest)


def encode(offered: Portion, data: bytes, folder: Path) -> None:
    """Write the portion's transfer into a folder."""
    manifest, values = offered.manifest, np.frombuffer(data, np.uint8)
    with closing(Spool(manifest.path(folder), manifest)) as spool:
        for index in range(spool.chunks, manifest.chunks):
            start = index * manifest.chunk_elements
            payload = pack(values[start : start + manifest.count(index)])
            spool.append(index, payload, checksum(payload))
        spool.commit(spool.digest())


def decode(offered: Portion, folder: Path, config: FederationConfig) -> bytes:
    """The bytes of a received transfer, looked through: what it must hold, of the digest that was offered.

    Raises ProtocolError for anything else, StoreError if its file is damaged.
    """
    manifest = offered.manifest
    with closing(Transfer(manifest.path(folder))) as transfer:
        data = b"".join(
            unpack(payload, manifest.count(index), manifest.count(index)).tobytes()
            for index, payload, _ in transfer.chunks()
        )
    found = hashlib.sha256(data).hexdigest()
    if found != offered.digest:
        raise ProtocolError(f"{manifest.transfer} holds other bytes than were offered: {found[:16]}")
    try:
        from_bytes(data, config)
    except DataError as error:
        raise ProtocolError(f"{manifest.transfer}: {error}") from None
    return data
