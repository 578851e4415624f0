"""The codecs on real training: how small, how fast, how far off, for each one.

``python -m feddiff.bench.codec`` trains the preset digits-16 for twenty rounds of one epoch on 600 digits, then encodes
each round's change of the weights as a silo would: by segment, in the chunks of the preset.

    ratio     raw float32 bytes / payload bytes
    MB/s      raw float32 bytes (1 MB = 1e6) per second, encoding and decoding, with one thread
    a round   |decoded change - change| / |change| (L2 over the model), mean of the rounds
    the sum   the same of all rounds' sum: what a receiver of nothing but these changes is off by in the end
    feedback  the same of the sum with error feedback (core/feedback.py): all that is off is the last round's loss

It is one training, whatever is sent: how training goes on from weights that are off is not seen here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from feddiff.core import console
from feddiff.core.codec import CODECS, Codec
from feddiff.core.config import FederationConfig, from_table
from feddiff.core.segments import F32, Layout

Chunks: TypeAlias = list[F32]
"""A model's weights, in the order of its segments."""


@dataclass(frozen=True)
class Measured:
    """One codec; errors relative in L2, speeds in MB/s."""

    codec: str
    ratio: float
    encode: float
    decode: float
    round: float
    sum: float
    feedback: float

    def __str__(self) -> str:
        errors = "".join(f"{100 * error:10.3f} %" for error in (self.round, self.sum, self.feedback))
        return f"{self.codec:8}{self.ratio:8.2f}{self.encode:10.0f}{self.decode:10.0f}{errors}"


HEADER = f"{'codec':8}{'ratio':>8}{'encode':>10}{'decode':>10}{'a round':>12}{'the sum':>12}{'feedback':>12}"


def digits(rounds: int, images: int) -> list[Chunks]:
    """The weights before the first round and after each; the same training every time on one machine."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from feddiff.core import diffusion
    from feddiff.core.images import Images
    from feddiff.silo.trainer import train

    config = from_table({"preset": "digits-16", "training": {"epochs": 1, "threads": 1}}, "digits-16")
    data, size = load_digits(), config.model["sample_size"]
    scans = (Image.fromarray(np.clip(scan * 16, 0, 255).astype(np.uint8)) for scan in data.images[:images])
    pixels = np.stack([np.asarray(scan.resize((size, size), Image.Resampling.BICUBIC)) for scan in scans])
    dealt = Images(pixels[:, np.newaxis], data.target[:images].astype(np.int64), {}, ())
    layout, state = diffusion.layout(config), diffusion.initial_state(config)
    history = [_chunks(config, layout, state)]
    for number in range(rounds):
        trained = train(config, state, dealt, number, progress=lambda _: True)
        assert trained is not None
        state = trained.state
        history.append(_chunks(config, layout, state))
    return history


def _chunks(config: FederationConfig, layout: Layout, state: Mapping[str, F32]) -> Chunks:
    size = config.codec.chunk_elements
    vectors = (segment.gather(state) for segment in layout.segments)
    return [vector[start : start + size] for vector in vectors for start in range(0, vector.size, size)]


def measure(codec: Codec, history: Sequence[Chunks]) -> Measured:
    """Send a training's changes twice, without error feedback and with it."""
    payloads, encoding, decoding = 0, 0.0, 0.0
    rounds = []
    alone = [np.zeros(chunk.size) for chunk in history[0]]
    lost = [np.zeros_like(chunk) for chunk in history[0]]
    for before, after in pairwise(history):
        missed = []
        for index, (base, values) in enumerate(zip(before, after, strict=True)):
            began = time.perf_counter()
            payload = codec.encode(values, base)
            encoded = time.perf_counter()
            decoded = codec.decode(payload, values.size, base)
            decoding += time.perf_counter() - encoded
            encoding += encoded - began
            payloads += len(payload)
            missed.append(decoded.astype(np.float64) - values)
            alone[index] += missed[-1]
            target = values + lost[index]
            lost[index] = target - codec.decode(codec.encode(target, base), values.size, base)
        rounds.append(_norm(missed) / _norm(_change(before, after)))
    whole = _norm(_change(history[0], history[-1]))
    raw = (len(history) - 1) * sum(chunk.nbytes for chunk in history[0])
    return Measured(
        codec.name,
        raw / payloads,
        raw / 1e6 / encoding,
        raw / 1e6 / decoding,
        float(np.mean(rounds)),
        _norm(alone) / whole,
        _norm(lost) / whole,
    )


def _change(before: Chunks, after: Chunks) -> list[npt.NDArray[np.float64]]:
    return [new.astype(np.float64) - old for old, new in zip(before, after, strict=True)]


def _norm(chunks: Sequence[npt.NDArray[np.floating]]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(chunk, dtype=np.float64)) for chunk in chunks)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="feddiff-bench-codec", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=600, help="of scikit-learn's 1797 digits (default: 600)")
    options = parser.parse_args(arguments)

    def run() -> int:
        history = digits(options.rounds, options.images)
        elements = sum(chunk.size for chunk in history[0])
        print(f"{options.rounds} rounds of {elements} weights in {len(history[0])} chunks")
        print(HEADER)
        for codec in CODECS.values():
            print(measure(codec, history), flush=True)
        return 0

    return console.run("feddiff-bench-codec", run)


if __name__ == "__main__":
    sys.exit(main())
