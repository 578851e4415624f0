"""What a silo's images mean under the federation's rules: findings of the inventory (silo/inventory.py).

Counts and the rules' own words only: neither a file's name nor a folder's that the rules do not know, for both may be
a patient's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError, FedDiffError
from feddiff.core.finding import Finding, ok, refusal, warning
from feddiff.silo.inventory import Inventory
from feddiff.silo.source import Source

REASONS = 4
"""Reasons that are told, the most frequent ones."""
_BARE = {"model": {"sample_size": 8, "in_channels": 1, "out_channels": 1}}


def take(source: Source, config: FederationConfig | None, cache: Path | None) -> Inventory | FedDiffError:
    """Read as the training would; without rules every image that can be read counts, whatever its folder.

    ``cache``: the folder of decoded slices, if there is one that no daemon uses.
    """
    from feddiff.silo.collection import collect

    try:
        return collect(source, config or from_table(_BARE, "the doctor"), cache).inventory
    except FedDiffError as error:
        return error


def judge(found: Inventory | FedDiffError, config: FederationConfig | None) -> Iterator[Finding]:
    """Whether that is something to train on under these rules; None: they are not known."""
    if isinstance(found, FedDiffError):
        denied = "PermissionError" in str(found)
        advice = (
            "read access for that user is all it takes, e.g. setfacl -R -m u:USER:rX FOLDER"
            if denied
            else "check --data"
        )
        yield refusal("images", found, advice if isinstance(found, DataError) else "")
        return
    words = f"{found.total} images can be read ({_counted(found.images)})"
    if found.volumes:
        words += f", of {found.volumes} series or volumes"
    if config is not None:
        size, channels = config.model["sample_size"], config.model["in_channels"]
        words += f"; they become {size} x {size}, {'grey' if channels == 1 else 'colour'}"
        if config.data.classes:
            counts = ", ".join(f"{name or 'without one'}: {count}" for name, count in found.labels.items())
            words += f"; by class: {counts}"
    else:
        words += "; the rules, and with them the classes, are not known yet"
    yield ok("images", words, images=found.total, left_out=found.left_out)
    if found.skipped:
        most = sorted(found.skipped.items(), key=lambda each: (-each[1], each[0]))[:REASONS]
        told = "; ".join(f"{count} x {why}" for why, count in most)
        yield warning(
            "images",
            f"{found.left_out} file{'s are' if found.left_out > 1 else ' is'} left out: {told}",
            "`feddiff-silo doctor --verbose` names the first of them, on this terminal only",
        )
    for note in found.notes:
        yield warning("images", note, "docs/data.md says how images are read")
    if found.empty or found.other:
        passed = [
            *([f"{found.empty} slices are left out, for there is next to nothing on them"] if found.empty else []),
            *([f"{found.other} other file{'s are' if found.other > 1 else ' is'} passed over"] if found.other else []),
        ]
        yield ok("images", "; ".join(passed))
    lacking = [name for name in (config.data.classes if config is not None else ()) if not found.labels.get(name)]
    if config is not None and lacking:
        yield warning(
            "classes",
            f"there is no image of {', '.join(lacking)}; the federation's classes are {', '.join(config.data.classes)}",
            "name the labels exactly as the classes; a silo may lack a class, if it really has none",
        )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])))
