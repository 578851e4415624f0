"""federator/pool.py: G is drawn from a folder once; a silo that accepts gets its portion of it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feddiff.core.config import FederationConfig, from_table
from feddiff.core.errors import DataError, NotSelected, StoreError
from feddiff.core.pool import SHARED, decode, draw, from_bytes
from feddiff.core.spool import Transfer
from feddiff.federator.database import Database
from feddiff.federator.journal import Journal
from feddiff.federator.pool import RULES, Pool, collect

SEED, COUNT = 11, 9
PUBLIC = {"a": 12, "b": 4}
"""Images of each class; an image's pixels are its number."""


def rules(alpha: float = 0.5) -> FederationConfig:
    model = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "num_class_embeds": 2}
    table = {"model": model, "data": {"classes": ["a", "b"]}, "seed": SEED}
    return from_table({**table, "pool": {"alpha": alpha, "beta": 0.5}}, "rules.toml")


def folder(place: Path) -> Path:
    number = 0
    for label, count in PUBLIC.items():
        (place / label).mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(place / label / f"{number:02}.png")
            number += 1
    return place


@pytest.fixture
def made(tmp_path: Path) -> Pool:
    """A pool of which G is drawn."""
    config = rules()
    found = Pool(tmp_path, config, Journal(Database(tmp_path / "federation.db")))
    found.folder.mkdir()
    (found.folder / RULES).write_bytes(config.canonical())
    collect(found.folder, folder(tmp_path / "public"), COUNT)
    return found


def test_the_set_is_drawn_from_all_images_with_their_labels(made: Pool) -> None:
    assert made.chosen is None
    chosen = made.choose(18, 3)
    assert made.chosen == chosen
    assert (chosen.count, chosen.images, chosen.silos) == (COUNT, 18, 3)
    shared = from_bytes((made.folder / SHARED).read_bytes(), rules())
    places = draw(SEED, "", sum(PUBLIC.values()), COUNT)
    assert shared.pixels[:, 0, 0, 0].tolist() == places.tolist()
    assert shared.labels is not None
    assert shared.labels.tolist() == [int(place >= PUBLIC["a"]) for place in places]


def test_only_who_accepts_is_given_anything_until_it_does_not(made: Pool) -> None:
    made.consent("clinic", accepts=True)
    assert (made.given("clinic"), made.portion("clinic")) == (0, None)  # nothing is drawn yet
    made.choose(18, 3)
    assert (made.given("clinic"), made.given("other")) == (4, 0)
    assert made.portion("other") is None
    made.consent("clinic", accepts=False)
    assert (made.given("clinic"), made.portion("clinic")) == (0, None)


def test_a_portion_is_the_silos_own_draw_and_the_same_after_a_restart(made: Pool, tmp_path: Path) -> None:
    made.choose(18, 3)
    for silo in ("clinic", "other"):
        made.consent(silo, accepts=True)
    again = Pool(tmp_path, rules(), Journal(Database(tmp_path / "federation.db")))
    offered = made.portion("clinic")
    assert offered is not None
    assert offered == again.portion("clinic") != made.portion("other")
    transfer = again.open("clinic", offered.manifest)
    assert isinstance(transfer, Transfer)
    transfer.close()
    found = from_bytes(decode(offered, made.folder, rules()), rules())
    shared = from_bytes((made.folder / SHARED).read_bytes(), rules())
    assert np.array_equal(found.pixels, shared.pixels[draw(SEED, "clinic", COUNT, 4)])

    made.check("clinic", [offered.manifest])
    with pytest.raises(NotSelected):
        made.check("other", [offered.manifest])
    with pytest.raises(NotSelected):
        made.check("nobody", [offered.manifest])


def test_a_set_that_is_another_than_was_drawn_is_given_to_nobody(made: Pool) -> None:
    made.choose(18, 3)
    made.consent("clinic", accepts=True)
    place = made.folder / SHARED
    place.write_bytes(place.read_bytes()[:-1] + b"\xff")
    with pytest.raises(StoreError, match="another set than was drawn"):
        made.portion("clinic")
    place.unlink()
    with pytest.raises(StoreError, match="No such file"):
        made.portion("clinic")


def test_a_damaged_transfer_is_encoded_anew(made: Pool) -> None:
    made.choose(18, 3)
    made.consent("clinic", accepts=True)
    offered = made.portion("clinic")
    assert offered is not None
    made.open("clinic", offered.manifest).close()
    place = offered.manifest.path(made.folder)
    whole = place.read_bytes()
    place.write_bytes(whole[:-3])
    with pytest.raises(StoreError):
        made.open("clinic", offered.manifest)
    made.open("clinic", offered.manifest).close()
    assert place.read_bytes() == whole
    made.discard([offered.manifest])
    assert not place.exists()


@pytest.mark.parametrize(
    ("count", "why"), [(17, "is to be 17 images, by pool.beta; .* holds 16"), (1 << 30, "at most")]
)
def test_too_few_images_and_too_many_are_refused(made: Pool, tmp_path: Path, count: int, why: str) -> None:
    with pytest.raises(DataError, match=why):
        collect(made.folder, tmp_path / "public", count)
