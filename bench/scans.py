"""What reading scanners' files costs: decoded the first time, out of the cache after that, beside a folder of PNG.

``python -m feddiff.bench.scans [--data PNGS]``. Pictures (made here, or those of a folder) are written as PNG and as CT
slices of 512 x 512, then read as a silo's training reads them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feddiff.core import console
from feddiff.core.config import FederationConfig, from_table

SIDE = 512


def pictures(folder: Path | None, count: int) -> list[npt.NDArray[np.uint8]]:
    """Grey pictures, (512, 512): of a folder's PNG files, or smooth noise."""
    from PIL import Image

    if folder is not None:
        paths = sorted(folder.rglob("*.png"))[:count]
        return [np.asarray(Image.open(path).convert("L").resize((SIDE, SIDE))) for path in paths]
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (count, 32, 32), np.uint8)
    return [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for each in small]


def scan(picture: npt.NDArray[np.uint8], path: Path, number: int, packed: bool) -> None:
    """Write a picture as a CT slice: 0 to 255 are -1100 to 200 HU; ``packed``: as RLE Lossless."""
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

    stored = np.round(picture * (1300 / 255)).astype(np.int16)
    slice = Dataset()
    slice.file_meta = FileMetaDataset()
    slice.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice.SOPClassUID, slice.SOPInstanceUID = CTImageStorage, generate_uid()
    slice.SeriesInstanceUID, slice.Modality = "1.2.3", "CT"
    slice.ImageType, slice.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], number
    slice.Rows, slice.Columns = stored.shape
    slice.SamplesPerPixel = 1
    slice.PhotometricInterpretation, slice.PixelRepresentation = "MONOCHROME2", 1
    slice.BitsAllocated, slice.BitsStored, slice.HighBit = 16, 16, 15
    slice.RescaleSlope, slice.RescaleIntercept = 1, -1100
    slice.PixelData = stored.tobytes()
    slice["PixelData"].VR = "OW"
    if packed:
        slice.compress(RLELossless)
    dcmwrite(path, slice, enforce_file_format=True)


def timed(what: str, count: int, do: Callable[[], object]) -> float:
    """Seconds that it took, printed."""
    begun = time.perf_counter()
    do()
    took = time.perf_counter() - begun
    print(f"{what:<44} {took:7.2f} s  {count / took:8.0f} slices/s", flush=True)
    return took


def rules(size: int) -> FederationConfig:
    return from_table({"model": {"sample_size": size, "in_channels": 1, "out_channels": 1}}, "scans")


def measure(data: Path | None, count: int, size: int) -> None:
    """Print the table."""
    from PIL import Image

    from feddiff.core.images import read_images
    from feddiff.silo.collection import collect
    from feddiff.silo.source import Source

    config = rules(size)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        some = pictures(data, count)
        for name in ("png", "plain", "rle"):
            (home / name).mkdir()
        for number, each in enumerate(some):
            Image.fromarray(each).save(home / "png" / f"{number:05}.png")
            scan(each, home / "plain" / f"{number:05}", number, packed=False)
            scan(each, home / "rle" / f"{number:05}", number, packed=True)
        count = len(some)
        print(f"{count} slices of {SIDE} x {SIDE} for a model of {size} x {size}, {console.cpus()} CPUs")
        png = timed("PNG, every start", count, lambda: read_images(home / "png", config))
        for name in ("plain", "rle"):
            read = partial(collect, Source(home / name, window="lung"), config, home / f"{name}-cache")
            cold = timed(f"DICOM {name}, first start", count, read)
            warm = timed(f"DICOM {name}, every start after it", count, read)
            print(f"  first start {cold / png:.2f} times PNG, later ones {warm / png:.2f} times")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m feddiff.bench.scans", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="PNG files (default: pictures made here)")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=64, help="of the model's images (default: 64)")
    options = parser.parse_args(arguments)
    measure(options.data, options.count, options.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
