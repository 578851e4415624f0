"""Error feedback: nothing that a lossy codec drops is lost for good."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from feddiff.core.codec import CODECS
from feddiff.core.feedback import Feedback, encode
from feddiff.core.segments import F32

SIZE = 500


def _sent(tmp_path: Path, rounds: int, carried: bool) -> tuple[F32, F32]:
    """The sum of what was decoded of a constant small difference, and of the differences themselves."""
    codec, base = CODECS["bf16"], np.zeros(SIZE, np.float32)
    step = np.random.default_rng(3).normal(0, 1e-3, SIZE).astype(np.float32)
    total = np.zeros(SIZE, np.float32)
    for round in range(1, rounds + 1):
        before = tmp_path / f"{round - 1}"
        with closing(Feedback(before, tmp_path / f"{round}", "decoder.0", SIZE)) as feedback:
            for start in (0, 300):
                piece = slice(start, 300 if start == 0 else SIZE)
                _, decoded = encode(codec, step[piece], base[piece], start, feedback if carried else None)
                total[piece] += decoded
            if carried:
                feedback.commit()
    return total, rounds * step


def test_the_sum_of_what_is_sent_follows_the_sum_of_what_was_meant(tmp_path: Path) -> None:
    rounds = 30
    with_feedback, meant = _sent(tmp_path / "a", rounds, carried=True)
    without, _ = _sent(tmp_path / "b", rounds, carried=False)
    # Without, the same rounding error is made every round; with it, only the last one is outstanding.
    assert np.abs(without - meant).max() > 10 * np.abs(with_feedback - meant).max()
    assert np.abs(with_feedback - meant).max() <= 2**-7 * np.abs(meant / rounds).max()


def test_a_lossless_codec_loses_nothing_and_carries_nothing(tmp_path: Path) -> None:
    values = np.arange(SIZE, dtype=np.float32)
    with closing(Feedback(None, tmp_path / "1", "s", SIZE)) as feedback:
        _, decoded = encode(CODECS["fp32"], values, values + 1, 0, feedback)
        feedback.commit()
    assert decoded.tobytes() == values.tobytes()
    with closing(Feedback(tmp_path / "1", tmp_path / "2", "s", SIZE)) as feedback:
        assert feedback.carry(0, values).tobytes() == values.tobytes()


def test_an_encoding_that_was_not_committed_is_forgotten(tmp_path: Path) -> None:
    with closing(Feedback(None, tmp_path / "1", "s", SIZE)) as feedback:
        feedback.keep(0, np.ones(SIZE, np.float32))
    assert not list(tmp_path.iterdir())
