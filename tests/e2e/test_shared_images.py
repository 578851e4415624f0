"""Public images that a federator shares: how many, which, for whom, at what cost; kills; lies. Real daemons."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from noise import Noise
from stage import FEDERATOR, SEED, TINY_UNET, Hospital, Process, Stage, images

from feddiff.core.config import load
from feddiff.core.errors import ProtocolError
from feddiff.core.images import Images, read_images
from feddiff.core.pool import draw, encode, portion, to_bytes
from feddiff.core.segments import Layout
from feddiff.core.spool import Spool
from feddiff.core.store import WeightsReader
from feddiff.silo.learner import training_seed

POOL, SIDE = 40, 8
SAMPLES = {"hospital-a": 30, "hospital-b": 7, "hospital-c": 101}
SHARED, PORTION = 13, 6
"""0.1 of 138 images are 13.8; half of 13 are 6.5."""
RULES = "quorum = 3\n[pool]\nbeta = 0.1\nalpha = 0.5\n"


def pool(stage: Stage, count: int = POOL) -> Path:
    """A folder of public images; they can be told from each other."""
    place = stage.folder / "pool"
    images(place, count, seed=9)
    return place


def pixels(found: Images | None) -> set[bytes]:
    return set() if found is None else {each.tobytes() for each in found.pixels}


def expected(stage: Stage, place: Path, silo: str, shared: int = SHARED, count: int = PORTION) -> Images:
    """A silo's portion, worked out anew: which of the folder's images are G, which of G are the silo's."""
    whole = read_images(place, load(stage.rules)).pixels
    chosen = whole[draw(SEED, "", len(whole), shared)]
    return Images(chosen[draw(SEED, silo, shared, count)], None, {}, ())


def given(hospital: Hospital, round: int) -> Images | None:
    return hospital.learner.public[training_seed(SEED, round, hospital.name)]


def test_who_accepts_gets_its_own_draw_of_the_shared_set_and_counts_it(stage: Stage) -> None:
    stage.found(rounds=2, silos=3, more=RULES)
    place, hospitals = pool(stage), [stage.hospital(name, samples) for name, samples in SAMPLES.items()]
    for hospital in hospitals[:2]:
        hospital.accept_pool = True
    server = stage.serve("--pool", str(place))
    for hospital in hospitals:
        hospital.start()
    assert server.wait() == 0, server.told()

    told = server.told()
    assert "round 1 waits for the shared set of 13 images, 0.1 of the 138 of 3 silos" in told
    everything = pixels(read_images(place, load(stage.rules)))
    for number in (1, 2):
        sets = [pixels(given(hospital, number)) for hospital in hospitals]
        assert [len(each) for each in sets] == [PORTION, PORTION, 0]
        assert sets[0] | sets[1] <= everything
        places = [set(draw(SEED, hospital.name, SHARED, PORTION).tolist()) for hospital in hospitals[:2]]
        assert len(sets[0] & sets[1]) == len(places[0] & places[1]) not in (0, PORTION)
        assert sets[:2] == [pixels(expected(stage, place, hospital.name)) for hospital in hospitals[:2]]

        assert stage.opened().journal.rounds()[number - 1].weights == {
            "hospital-a": 30 + PORTION,
            "hospital-b": 7 + PORTION,
            "hospital-c": 101,
        }
        for name in stage.layout.names:
            weights = dict(zip(SAMPLES, (36, 13, 101), strict=True))
            results = [weights[each.name] * each.result_of(number)[name].astype(np.float64) for each in hospitals]
            mean = np.sum(results, axis=0) / sum(weights.values())
            np.testing.assert_allclose(stage.published(name, number), mean, rtol=1e-6, atol=1e-7)

    rows = [row for row in stage.ledger() if row["segment"] == "pool"]
    assert [(row["round"], row["silo"], row["direction"]) for row in rows] == [
        (1, "hospital-a", "down"),
        (1, "hospital-b", "down"),
    ]
    for row in rows:
        assert (row["parameters"], row["raw"], row["retransmitted"]) == (0, PORTION * SIDE**2, 0)
        # Noise, which zstd only frames; then the manifest's digest, gRPC, HTTP/2 and TLS.
        assert row["raw"] < row["encoded"] < row["raw"] + 32 < row["wire"] < row["raw"] + 300
    total = sum(row["wire"] for row in stage.ledger() if row["direction"] == "down")
    assert stage.opened().ledger.wire("down") == total
    stage.operate("report", "--out", str(stage.folder / "report"))
    assert "pool (public images)" in (stage.folder / "report" / "report.html").read_text()


def test_a_silo_that_comes_later_gets_its_portion_of_the_same_set(stage: Stage) -> None:
    stage.found(rounds=2, silos=1, more="[pool]\nbeta = 0.5\nalpha = 1.0\n")
    place = pool(stage)
    first, late = stage.hospital("hospital-a", 20), stage.hospital("hospital-b", 1000)
    first.accept_pool = late.accept_pool = True
    gate = first.gate[1] = threading.Event()
    server = stage.serve("--pool", str(place))
    first.start()
    stage.until("round 1 trains", lambda: first.training(1))
    digest = (stage.opened().pool.chosen or pytest.fail("no set")).digest
    server.kill()
    server = stage.serve("--pool", str(place))
    late.start()
    stage.until("the other has joined", lambda: stage.silo_status("hospital-b").get("reachable"))
    gate.set()
    assert server.wait() == 0, server.told()
    chosen = stage.opened().pool.chosen
    assert chosen is not None
    assert (chosen.count, chosen.digest, chosen.images, chosen.silos) == (10, digest, 20, 1)
    assert hashlib.sha256((stage.home / "pool" / "shared.images").read_bytes()).hexdigest() == digest
    # All of G, at both.
    assert pixels(given(late, 2)) == pixels(given(first, 1)) == pixels(given(first, 2))
    assert stage.opened().journal.rounds()[1].weights == {"hospital-a": 30, "hospital-b": 1010}
    assert [row["round"] for row in stage.ledger() if row["segment"] == "pool"] == [1, 2]


DOOMED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import noise
from feddiff.core.transfer import Receiver
def chunk(self, part, before=Receiver.chunk):
    if self.manifests[part.offer].public and part.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, part)
Receiver.chunk = chunk
noise.main()
"""
"""A silo that is killed by the third chunk of public images."""


def test_a_silo_is_killed_while_public_images_arrive(stage: Stage) -> None:
    count = 60_000
    stage.found(rounds=1, silos=1, more="[pool]\nbeta = 1.0\nalpha = 1.0\n")
    place = stage.folder / "pool"
    place.mkdir()
    stack = np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE), np.uint8)
    np.save(place / "stack.npy", stack)
    server = stage.serve("--pool", str(place))
    state = stage.enrol("hospital-a")
    options = (str(state), stage.address, "--samples", str(count), "--digest", stage.layout.digest, "--accept-pool")
    here = Path(__file__).parent
    doomed = stage.run("hospital-a", "-c", DOOMED.format(here=str(here)), *options)
    assert doomed.wait() == -9
    offered = portion("hospital-a", stack.tobytes())
    arriving = offered.manifest.path(state / "inbox")
    assert arriving.with_name(f"{arriving.name}.part").exists()
    spool = Spool(arriving, offered.manifest)
    assert (spool.chunks, offered.manifest.chunks) == (2, 4)
    spool.close()

    again = stage.run("hospital-a", str(here / "noise.py"), *options)
    assert [again.wait(), server.wait()] == [0, 0], server.told()
    (kept,) = (state / "pool").iterdir()
    assert kept.name == f"{offered.digest}.images"
    assert kept.read_bytes() == stack.tobytes()
    assert not list((state / "inbox").iterdir())
    (row,) = [each for each in stage.ledger() if each["segment"] == "pool"]
    assert row["raw"] == stack.size
    # What was safe at the silo did not come again, but what was on its way may have.
    assert row["wire"] - row["retransmitted"] == pytest.approx(row["encoded"], rel=0.01)
    assert row["retransmitted"] <= 2 << 20


def warmup(stage: Stage) -> int | None:
    """The process that trains the warm-up model of this federation."""
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (each / "cmdline").read_bytes().split(b"\0")
            if b"feddiff.silo.warmup" in command and any(str(stage.home).encode() in word for word in command):
                status = (each / "status").read_text()
                if int(status.partition("SigIgn:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
                    return int(each.name)  # past its first lines: it is tied to the federator
    return None


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_first_round_starts_from_a_model_trained_on_the_shared_set_whatever_is_killed(stage: Stage) -> None:
    import torch

    from feddiff.core import diffusion
    from feddiff.silo.trainer import train
    from feddiff.silo.warmup import alone

    torch.set_num_threads(1)
    more = "[pool]\nbeta = 0.5\nalpha = 0.0\nwarmup = 3\n"
    stage.found(rounds=1, silos=1, unet=TINY_UNET, more=more)
    place = pool(stage)
    server: Process = stage.serve("--pool", str(place))
    stage.layout = Layout.from_json((stage.home / "layout.json").read_text())
    hospital = stage.hospital("hospital-a", 24).start()
    found: list[int] = []

    def stopped() -> bool:
        if pid := warmup(stage):
            os.kill(pid, signal.SIGSTOP)
            found.append(pid)
        return bool(found)

    stage.until("the warm-up model is trained", stopped)
    stage.until("it is told", lambda: "round 1 waits for the warm-up model, 3 epochs on 12" in stage.status()["reason"])
    digest = (stage.opened().pool.chosen or pytest.fail("no set")).digest
    server.kill()
    stage.until("the training dies with its federator", lambda: not alive(found[0]))
    server = stage.serve("--pool", str(place))
    assert server.wait() == 0, server.told()
    assert (stage.opened().pool.chosen or pytest.fail("no set")).digest == digest

    config = load(stage.rules)
    whole = read_images(place, config).pixels
    chosen = Images(whole[draw(SEED, "", len(whole), 12)], None, {}, ())
    begun = diffusion.initial_state(config)
    trained = train(alone(config), begun, chosen, training_seed(SEED, 0, ""), progress=lambda _: True)
    assert trained is not None
    assert trained.metrics["images"] == 3 * 12
    for name, vector in stage.layout.gather(trained.state).items():
        assert np.array_equal(stage.published(name, 0), vector)
        assert np.array_equal(hospital.start_of(1)[name], vector)
        with WeightsReader(stage.home / "initial.safetensors") as reader:
            assert not np.array_equal(reader.read(name), vector)
    assert given(hospital, 1) is None
    assert not [row for row in stage.ledger() if row["segment"] == "pool"]


def test_other_images_than_were_offered_end_the_silo(stage: Stage) -> None:
    stage.found(rounds=1, silos=3, more=RULES)
    place, hospitals = pool(stage), [stage.hospital(name, samples) for name, samples in SAMPLES.items()]
    hospitals[0].accept_pool = True
    true = expected(stage, place, "hospital-a")
    offered = portion("hospital-a", to_bytes(true))
    (stage.home / "pool").mkdir()
    encode(offered, bytes(len(to_bytes(true))), stage.home / "pool")  # of this manifest, whole, and black
    stage.serve("--pool", str(place))
    for hospital in hospitals:
        hospital.start()
    with pytest.raises(AssertionError, match="holds other bytes than were offered"):
        stage.until("the silo ends", lambda: False)
    assert isinstance(hospitals[0].error, ProtocolError)
    assert not list(stage.folder.glob("hospital-a/pool/*"))
    assert not list(stage.folder.glob("hospital-a/inbox/*.transfer"))
    assert not hospitals[0].learner.public


class TestConsent:
    def refused(self, stage: Stage, *options: str) -> tuple[int, str]:
        done = stage.call(FEDERATOR, "serve", "--config", str(stage.rules), *options)
        (said,) = done.err.splitlines()
        assert not (stage.home / "federation.db").exists()
        return done.code, str(said)

    def test_of_the_federator_is_a_folder_and_only_where_the_rules_share_one(self, stage: Stage) -> None:
        stage.found(more=RULES.replace("quorum = 3", ""))
        code, said = self.refused(stage)
        assert (code, "give --pool FOLDER" in said) == (78, True)
        code, said = self.refused(stage, "--pool", str(stage.folder / "none"))
        assert (code, "a folder of images was expected" in said) == (78, True)
        stage.rules.write_text(stage.rules.read_text().partition("[pool]")[0])
        code, said = self.refused(stage, "--pool", str(stage.folder))
        assert (code, "rules have no table [pool]" in said) == (78, True)

    def test_too_few_images_end_the_federator_with_the_numbers(self, stage: Stage) -> None:
        stage.found(rounds=1, silos=1, more="[pool]\nbeta = 0.5\nalpha = 1.0\n")
        server = stage.serve("--pool", str(pool(stage)))
        stage.hospital("hospital-a", 200).start()
        assert server.wait() == 66
        last = server.told().strip().splitlines()[-1]
        assert "the shared set is to be 100 images" in last
        assert last.count("holds 40") == 1


def test_consent_withdrawn_the_images_are_gone(stage: Stage) -> None:
    stage.found(rounds=2, silos=1, more="[pool]\nbeta = 0.5\nalpha = 1.0\n")
    hospital = stage.hospital("hospital-a", 20)
    hospital.accept_pool = True
    gate = hospital.gate[2] = threading.Event()
    server = stage.serve("--pool", str(pool(stage)))
    hospital.start()
    stage.until("round 2 trains", lambda: hospital.training(2))
    assert list((hospital.state / "pool").iterdir())
    hospital.stop()
    gate.set()
    hospital.accept_pool = False
    hospital.learner = Noise(20, stage.layout.digest)
    hospital.start()
    assert server.wait() == 0, server.told()
    assert given(hospital, 2) is None
    assert not list((hospital.state / "pool").iterdir())
    assert "hospital-a does not accept public images" in server.told()
