"""Runs that nobody ran: results as bench/result.py writes them, with planted numbers, for what reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DIGEST = "c0ffee" + "0" * 58
SIZES = {"encoder.in": 9_000, "encoder.0": 33_000, "bottleneck": 42_000, "decoder.0": 70_000, "decoder.out": 300}
CODECS = {"fp32": 1.0, "int8": 0.25, "int4": 0.13, "int2": 0.07, "thrifty": 0.012, "careful": 0.03}
SENT = {"full": 1.0, "usplit": 0.75, "ulatdec": 0.6, "udec": 0.3}
NAMES = tuple("0123456789")


def number(metric: str, value: float, against: str = "test", **more: Any) -> dict[str, Any]:
    """One of ``quality.metrics``."""
    reference = {"test": 359, "training": 400, "": 0}[against]
    found = {"metric": metric, "value": value, "spread": None, "samples": 1000, "reference": reference}
    return found | {"against": against, "extractor": "convnet", "digest": DIGEST, "cautions": []} | more


def result(plan: str, codec: str, seed: int, silos: int = 4, split: str = "iid", rounds: int = 5) -> dict[str, Any]:
    """A cell's result; plan may be a baseline's kind."""
    kind = plan if plan in ("centralised", "alone") else "federated"
    federated, economy = kind == "federated", codec if codec in ("thrifty", "careful") else ""
    weak = {"full": 0, "usplit": 2, "ulatdec": 15, "udec": 19, "centralised": -4, "alone": 90}.get(plan, 5)
    rough = {"int4": 1.0, "int2": 4.0, "thrifty": 2.5}.get(codec, 0.0)
    fid = 38 + weak + rough + 3 * ((seed * 7 + len(plan)) % 3) + (12 if split != "iid" and weak > 9 else 0)
    size = 160_000 * 4 * silos * SENT.get(plan, 0.0) * CODECS.get(codec, 1.0)
    beta = {"dirichlet": 0.5, "quantity": 0.5}.get(split)
    whose = ["global"] if plan in ("full", "usplit", "centralised") else [f"silo-{at}" for at in range(1, silos + 1)]
    ways = {"down": int(size), "up": int(size * (0.5 if plan == "usplit" else 1)) + 900 * federated}
    history = [
        {
            "round": at,
            "silos": silos,
            **ways,
            "raw": 8 * 160_000 * silos,
            "loss": 0.2 + 0.5 / at + 0.01 * seed + 0.004 * weak,
            "quality": [
                {"of": who, **number("fid", fid * (1 + 2.0 / at - 2.0 / rounds) + place)}
                for place, who in enumerate(whose)
            ],
        }
        for at in range(1, rounds * federated + 1)
    ]
    settings = {
        "kind": kind, "plan": plan if federated else None, "up": "int2" if economy else codec if federated else None,
        "down": "int2" if economy else codec if federated else None, "economy": economy if federated else None,
        "outer": "sgd" if federated else None, "outer_rate": 1.0 if federated else None,
        "silos": 1 if kind == "centralised" else silos, "split": None if kind == "centralised" else split,
        "beta": beta if kind != "centralised" else None, "classes": None, "epochs": 2 if federated else 2 * rounds,
        "sampled": None, "steps": None, "rounds": rounds if federated else None, "seed": seed,
    }  # fmt: skip
    dealt = f"{split} {beta}" if beta else split
    words = f"{plan} {codec} K={silos} {dealt} E=2" if federated else f"{plan} K={silos} {dealt}"
    return {
        "key": f"{plan}_{codec}_K{silos}_{split}_seed{seed}",
        "label": words,
        "settings": settings,
        "data": {
            "path": "/somewhere/digits", "digest": "da7a" * 16,
            "silos": {f"silo-{at}": {name: 10 + (at * int(name)) % 7 for name in NAMES} for at in range(1, silos + 1)},
        },
        "rules": {"seed": seed, "training": {"batch_size": 32}, "initial": "send"},
        "parameters": sum(SIZES.values()),
        "rounds": history,
        "segments": {
            name: {way: int(0.98 * rounds * ways[way] * each / sum(SIZES.values())) for way in ways}
            for name, each in SIZES.items() if name.startswith("decoder") or plan != "udec"
        } | {"": {way: int(0.02 * rounds * ways[way]) for way in ways}} if federated else {},
        "totals": {way: rounds * each * federated for way, each in ways.items()}
        | {"encoded_down": 1, "encoded_up": 1, "raw": 8 * 160_000 * silos * rounds * federated}
        | {"images": 4000, "seconds": 6.0, "loss": 0.3},
        "quality": {
            "of": "global" if whose == ["global"] else "silos",
            "validation_loss": {"mean": 0.24 + 0.002 * (weak + rough) + 0.003 * seed, "images": 359, "draws": 40},
            "metrics": [
                number("fid", fid), number("fid", fid - 2, "training"), number("kid", fid / 1500),
                number("precision", 0.9 - fid / 400), number("recall", 0.8 - fid / 350),
                number("inception_score", 9 - fid / 20, ""), number("class_kl", fid / 500),
                number("memorised", 0.012, "training"),
            ],
            "classes": {
                "names": list(NAMES), "reference": [36] * 10,
                "samples": {who: [80 + (at * 37 + seed) % 41 for at in range(10)] for who in whose},
            },
        },
        "samples": {"count": 1000, "steps": 50, "sampler": "ddim"},
        "wall_seconds": 30.0,
        "software": {"python": "3.11", "torch": "2.13.0", "numpy": "2.4"},
    }  # fmt: skip


def pictures(place: Path) -> None:
    """A grid, and an animation of it."""
    frames = [Image.effect_noise((480, 96), 90 - 20 * at) for at in range(4)]
    frames[-1].save(place.with_name(f"{place.name}.png"))
    moving = io.BytesIO()
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:], duration=200, loop=0)
    place.with_name(f"{place.name}.denoising.png").write_bytes(moving.getvalue())


def run(folder: Path, results: Sequence[dict[str, Any]], drawn: bool = False) -> Path:
    """Write a run of these results, their keys as names of files; returns its folder."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    listed = [{each: one[each] for each in ("key", "label", "settings")} for one in results]
    (folder / "sweep.json").write_text(json.dumps({"name": folder.name, "cells": listed}))
    for one in results:
        (folder / "cells" / f"{one['key']}.json").write_text(json.dumps(one))
        if drawn:
            pictures(folder / "cells" / one["key"])
    return folder


@dataclass(frozen=True)
class Planted:
    """How results and runs are made."""

    result: Callable[..., dict[str, Any]] = result
    number: Callable[..., dict[str, Any]] = number
    run: Callable[..., Path] = run
    digest: str = DIGEST


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted()


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run of results into a folder of the test's; returns it."""

    def written(results: Sequence[dict[str, Any]], name: str = "planted", drawn: bool = False) -> Path:
        return run(tmp_path / name, results, drawn)

    return written
