"""First and second moments of image features: all that FID needs of a set of images, and all that leaves a silo for it.

Moments of parts add up to those of the whole. So the exact FID against the union of all silos' images follows from one
``Moments`` of each, without an image leaving (federated reference statistics). They are not anonymous: those of one
image are its features, and those of fewer images than features still span them. Ask silos for many.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import DataError

F64: TypeAlias = npt.NDArray[np.float64]

MAX_FEATURES = 4096
"""Features of an image; Inception has 2048."""
MAX_COUNT = 1 << 40
MAX_HEADER_BYTES = 1024
MAX_MOMENTS_BYTES = 8 + MAX_HEADER_BYTES + 8 * (MAX_FEATURES + MAX_FEATURES * (MAX_FEATURES + 1) // 2)
"""Of the largest file form, 67 MB; that of 2048 features has 17 MB, that of 64 has 17 kB."""
MAX_VALUE = 1e100
"""Of a sum that comes from elsewhere: its products must not overflow."""
BLOCK = 4096
"""Images whose features are held in float64 at once."""
_DIGEST = re.compile(r"[0-9a-f]{0,64}")


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the features of ``count`` images, all float64; ``+`` merges, refusing with DataError what does not belong."""

    count: int
    sum: F64
    """(D,)"""
    outer: F64
    """(D, D), the sum of x x^T; symmetric."""
    digest: str = ""
    """SHA-256 of the extractor's file, so that features of two extractors are never taken together; "" if unknown."""

    @classmethod
    def of(cls, features: npt.NDArray[Any], digest: str = "") -> Self:
        """Of features, (N, D), of whatever float type. Raises DataError if there are none or not all are finite."""
        count, size = checked(features).shape
        total, outer = np.zeros(size), np.zeros((size, size))
        for start in range(0, count, BLOCK):
            block = features[start : start + BLOCK].astype(np.float64)
            total += block.sum(axis=0)
            outer += block.T @ block
        return cls(count, total, (outer + outer.T) / 2, digest)

    def __add__(self, other: Moments) -> Moments:
        comparable(self, other)
        return Moments(self.count + other.count, self.sum + other.sum, self.outer + other.outer, self.digest)

    @property
    def size(self) -> int:
        """D, the features of one image."""
        return int(self.sum.size)

    @property
    def mean(self) -> F64:
        return self.sum / self.count

    @property
    def covariance(self) -> F64:
        """Unbiased, (D, D), as numpy.cov and all published FIDs. Raises DataError for a single image."""
        if self.count < 2:
            raise DataError("the spread of features needs at least 2 images")
        covariance: F64 = (self.outer - np.outer(self.sum, self.mean)) / (self.count - 1)
        return covariance

    def to_bytes(self) -> bytes:
        """The form for a file or the wire: 8-byte little-endian header length, JSON header, little-endian float64.

        The values are the sum, then the upper triangle of ``outer``, row by row.
        """
        header = json.dumps({"count": self.count, "digest": self.digest, "size": self.size}).encode()
        values = np.concatenate([self.sum, self.outer[np.triu_indices(self.size)]]).astype("<f8")
        return len(header).to_bytes(8, "little") + header + values.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What ``to_bytes`` made. Raises DataError for anything that no images can have, or that is too large."""
        try:
            length = int.from_bytes(data[:8], "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(data[8 : 8 + length])
            count, digest, size = header["count"], header["digest"], header["size"]
            if type(count) is not int or type(size) is not int or type(digest) is not str:
                raise ValueError("a header of other types")
            if not (1 <= count <= MAX_COUNT and 1 <= size <= MAX_FEATURES and _DIGEST.fullmatch(digest)):
                raise ValueError(f"{count} images of {size} features")
            if len(data) - 8 - length != 8 * (size + size * (size + 1) // 2):
                raise ValueError(f"{len(data)} bytes for {size} features")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"these are no moments of features: {error}") from None
        values = np.frombuffer(data, "<f8", offset=8 + length).astype(np.float64)
        outer = np.zeros((size, size))
        outer[np.triu_indices(size)] = values[size:]
        outer += np.triu(outer, 1).T
        total, squares = values[:size], outer.diagonal()
        # Cauchy-Schwarz, image by image and feature by feature; the factors leave room for rounding.
        if not (
            (np.abs(values) <= MAX_VALUE).all()  # not so of NaN
            and (squares >= 0).all()
            and (total**2 <= count * squares * (1 + 1e-9)).all()
            and (outer**2 <= np.outer(squares, squares) * (1 + 1e-9)).all()
        ):
            raise DataError("these are no moments of features: no images have such sums")
        return cls(count, total, outer, digest)


def fid(samples: Moments, reference: Moments) -> float:
    """Fréchet Inception distance (Heusel et al. 2017, arXiv 1706.08500, eq. 6), at least 0, the same both ways round.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With S1 = A A^T and S2 = B B^T the trace of the root is the sum of the
    singular values of A^T B. Unlike an iterated matrix root, that is exact for covariances without full rank, which are
    those of no more images than features. A FID of few samples is biased upwards all the same, and comparable only with
    one of as many (Chong & Forsyth 2020, arXiv 1911.07023). Raises DataError for moments that do not belong together.
    """
    comparable(samples, reference)
    one, other = _root(samples.covariance), _root(reference.covariance)
    cross = float(np.linalg.norm(one.T @ other, "nuc")) if one.size and other.size else 0.0
    between = float(np.sum((samples.mean - reference.mean) ** 2))
    return max(between + float(np.sum(one**2) + np.sum(other**2)) - 2 * cross, 0.0)


def comparable(one: Moments, other: Moments) -> None:
    """Raises DataError unless both are of features of the same extractor."""
    if one.size != other.size or (one.digest and other.digest and one.digest != other.digest):
        raise DataError(
            f"features of two extractors cannot be compared: {one.size} of {one.digest[:12] or 'unknown'} "
            f"and {other.size} of {other.digest[:12] or 'unknown'}"
        )


def checked(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same features. Raises DataError unless they are (N, D), N at least 1, and all finite."""
    if features.ndim != 2 or not len(features) or not 1 <= features.shape[1] <= MAX_FEATURES:
        raise DataError(f"features must be (images, 1 to {MAX_FEATURES}), not {features.shape}")
    if not np.isfinite(features).all():
        raise DataError("the extractor gives NaN or infinity for some image")
    return features


def _root(covariance: F64) -> F64:
    """A with A A^T = S, (D, rank). What rounding leaves of missing ranks would count with its root, so it is cut."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    root: F64 = vectors[:, kept] * np.sqrt(values[kept])
    return root
