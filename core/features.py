"""Features of images: networks that see what pixels do not tell, each one TorchScript file.

Between the images and their metrics (core/quality.py). Nothing is downloaded; a network is a file that somebody names:
``inception`` is the one that published FIDs are measured with, anything else a module from uint8 images to features,
such as the small classifier of bench/features.py, for places without Inception and for images that it never saw.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.core.errors import ConfigError, DataError
from feddiff.core.moments import MAX_FEATURES
from feddiff.core.quality import Features

Kind: TypeAlias = Literal["inception", "torchscript"]

INCEPTION = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of ``inception-2015-12-05.pt``, 95,607,719 bytes, that StyleGAN2-ADA, EDM and clean-fid use."""
MAX_NETWORK_BYTES = 2 << 30
MAX_CLASSES = 1 << 16


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network from images to features, on its device."""

    name: str
    digest: str
    """SHA-256 of the file, hexadecimal."""
    caution: str
    """Why its numbers are not those of others, or ""."""
    kind: Kind
    device: str
    module: Any
    """The torch.jit.ScriptModule."""

    @classmethod
    def load(cls, path: Path, kind: Kind = "torchscript", device: str | None = None) -> Self:
        """Read a TorchScript file; its name is the file's without its ending. ``device`` defaults to a GPU if any.

        Raises ConfigError for a file that is missing, too large, or no TorchScript.
        """
        import torch

        data = _read(path)
        digest = hashlib.sha256(data).hexdigest()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Not Python's pickle, but still code: TorchScript runs what operators it likes, from_file() among them, for as
        # long as it likes, and its C++ reader has had holes. Load only what you would run.
        try:
            module: Any = torch.jit.load(io.BytesIO(data), map_location=device).eval()
        except Exception as error:  # torch answers a foreign archive with whatever breaks first
            raise ConfigError(f"{path} is no TorchScript module ({type(error).__name__})") from None
        caution = ""
        if kind == "inception" and digest != INCEPTION:
            caution = "not the published inception-2015-12-05.pt: not comparable with published values"
        return cls("inception" if kind == "inception" else path.stem, digest, caution, kind, device, module)

    def features(
        self,
        images: npt.NDArray[np.uint8],
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """Of images, uint8 (N, C, H, W), grey or colour, of any size: networks resize inside, as they were trained.

        ``inception`` repeats grey to three channels, resizes to 299x299 as TensorFlow did, gives 2,048 features and the
        probabilities of 1,008 classes without the output's bias, as the original Inception score. Another module gives
        features (N, D), or these and logits (N, classes). ``progress(done, count)`` follows each batch.

        Raises DataError for other images, ConfigError for a module that cannot take them or gives something else.
        """
        import torch

        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or not images.size
            or images.shape[1] not in (1, 3)
            or batch < 1
        ):
            raise DataError(f"images must be uint8 (N, 1 or 3, H, W), not {images.dtype} {images.shape}")
        values, probabilities = list[npt.NDArray[np.float32]](), list[npt.NDArray[np.float32]]()
        # TF32 would give other features on a GPU than on a CPU.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for start in range(0, len(images), batch):
                part = np.array(images[start : start + batch])
                try:
                    found, classes = self._run(torch.from_numpy(part).to(self.device))
                except Exception as error:  # a module raises what it likes
                    cause = (str(error).strip().splitlines() or [""])[-1]
                    raise ConfigError(
                        f"{self.name} cannot take images of {part.shape[1:]}: {type(error).__name__}: {cause:.200}"
                    ) from None
                values.append(_array(found, len(part), MAX_FEATURES, self.name))
                if classes is not None:
                    probabilities.append(_array(classes, len(part), MAX_CLASSES, self.name))
                if progress is not None:
                    progress(start + len(part), len(images))
        joined = np.concatenate(probabilities) if probabilities else None
        return Features(np.concatenate(values), joined, self.name, self.digest, self.caution)

    def _run(self, images: Any) -> tuple[Any, Any]:
        """Features and probabilities or None, of one batch."""
        import torch

        if self.kind == "inception":
            found = self.module(images.expand(-1, 3, -1, -1).contiguous(), return_features=True)
            # What the module gives with no_output_bias=True, without its passing over the images a second time.
            return found, torch.nn.functional.linear(found, self.module.output.weight).softmax(dim=1)
        found = self.module(images)
        if isinstance(found, tuple):
            features, logits = found
            return features, logits.float().softmax(dim=1)
        return found, None


def check_digest(path: Path, digest: str) -> None:
    """Raises ConfigError unless a file is the federation's extractor: the one with this SHA-256. Loads no torch."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening, as below
            raise ConfigError(f"{path} is not a regular file; name the extractor's TorchScript file")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name the extractor's TorchScript file") from None
    if found != digest:
        raise ConfigError(
            f"{path} is not the federation's extractor: its SHA-256 is {found}, quality.extractor is {digest}"
        )


def _read(path: Path) -> bytes:
    """A file that is a zip archive of bounded size. Raises ConfigError."""
    try:
        status = path.stat()  # before opening: to open a pipe is to wait for ever
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_NETWORK_BYTES:
            raise ConfigError(f"{path} must be a regular file of at most {MAX_NETWORK_BYTES >> 20} MiB")
        with path.open("rb") as file:
            data = file.read(MAX_NETWORK_BYTES)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_NETWORK_BYTES:
                raise ConfigError(f"{path} unpacks to more than {MAX_NETWORK_BYTES >> 20} MiB")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name the extractor's TorchScript file") from None
    except zipfile.BadZipFile:
        raise ConfigError(f"{path} is no TorchScript module; it is not even an archive") from None
    return data


def _array(tensor: Any, count: int, most: int, name: str) -> npt.NDArray[np.float32]:
    """(count, up to most) float32. Raises ConfigError for anything else."""
    shape = tuple(getattr(tensor, "shape", ()))
    if len(shape) != 2 or shape[0] != count or not 1 <= shape[1] <= most:
        raise ConfigError(f"{name} must give ({count}, 1 to {most}) for {count} images, not {shape}")
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
