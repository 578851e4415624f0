from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from feddiff.core.errors import DigestMismatch, OffsetMismatch, ProtocolError, TooLarge
from feddiff.core.spool import Manifest, Spool, Transfer, checksum
from feddiff.core.transfer import BATCH_BYTES, MAX_MANIFESTS, Chunk, Commit, Receiver, Sender, Standing, batches

MANIFEST = Manifest("down.decoder.0.2-3", "decoder.0", 2, 3, "fp32", 12, 4)
PAYLOADS = (b"one", b"two" * 20, b"")


def build(folder: Path, manifest: Manifest = MANIFEST, payloads: tuple[bytes, ...] = PAYLOADS) -> Transfer:
    spool = Spool(manifest.path(folder), manifest)
    for index, payload in enumerate(payloads):
        spool.append(index, payload, checksum(payload))
    return Transfer(spool.commit(spool.digest()))


def named(number: int, chunks: int = 3) -> Manifest:
    return replace(MANIFEST, transfer=f"down.decoder.{number}.2-3", segment=f"decoder.{number}", elements=4 * chunks)


def sender_of(*transfers: Transfer) -> Sender:
    return Sender([each.manifest for each in transfers], {each.manifest: each for each in transfers}.__getitem__)


def deliver(transfer: Transfer, receiver: Receiver) -> None:
    for part in sender_of(transfer).parts(receiver.standing()):
        assert receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)


class Attempts(RuleBasedStateMachine):
    """One offer, any number of broken attempts: parts in any order between transfers, kills, torn and damaged files."""

    @initialize(sizes=st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=5), min_size=1, max_size=4))
    def offer(self, sizes: list[list[bytes]]) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.manifests = [named(number, len(payloads)) for number, payloads in enumerate(sizes)]
        self.transfers = [
            build(self.folder / "sender", manifest, tuple(payloads))
            for manifest, payloads in zip(self.manifests, sizes, strict=True)
        ]
        self.sender = sender_of(*self.transfers)
        self.chunks = [list(transfer.chunks()) for transfer in self.transfers]
        self.inbox = self.folder / "receiver"
        self.safe = [0] * len(sizes)
        self.done = [False] * len(sizes)
        self.begin()

    def begin(self) -> None:
        self.receiver = Receiver(self.inbox, self.manifests)
        standing = self.receiver.standing()
        for at, safe, done, transfer in zip(standing, self.safe, self.done, self.transfers, strict=True):
            assert at == (Standing(transfer.manifest.chunks, True, transfer.digest) if done else Standing(safe))
        self.waiting: dict[int, list[Chunk | Commit]] = {}
        for part in self.sender.parts(standing):
            self.waiting.setdefault(part.offer, []).append(part)
        assert self.waiting.keys() == {number for number, done in enumerate(self.done) if not done}

    @rule(which=st.integers(0, 3), count=st.integers(1, 4))
    def send(self, which: int, count: int) -> None:
        """The next parts of one of the transfers; none that the receiver has is among them."""
        offers = [offer for offer, parts in self.waiting.items() if parts]
        for _ in range(count):
            if not offers or not self.waiting[offers[which % len(offers)]]:
                return
            offer = offers[which % len(offers)]
            part = self.waiting[offer].pop(0)
            if isinstance(part, Chunk):
                assert part.index == self.safe[offer]
                assert self.receiver.chunk(part)
                self.safe[offer] += 1
            else:
                assert self.receiver.commit(part)
                self.done[offer] = True

    @rule(which=st.integers(0, 3))
    def repeat(self, which: int) -> None:
        """What the receiver has is passed over, also after its commit."""
        offer = which % len(self.manifests)
        for index, payload, check in self.chunks[offer][: self.safe[offer]]:
            assert not self.receiver.chunk(Chunk(offer, index, payload, check))
        if self.done[offer]:
            assert not self.receiver.commit(Commit(offer, self.transfers[offer].digest))
            with pytest.raises(DigestMismatch):
                self.receiver.commit(Commit(offer, bytes(32)))

    @rule(which=st.integers(0, 3), ahead=st.integers(1, 3))
    def gap(self, which: int, ahead: int) -> None:
        offer = which % len(self.manifests)
        if not self.done[offer]:
            with pytest.raises(OffsetMismatch):
                self.receiver.chunk(Chunk(offer, self.safe[offer] + ahead, b"x", checksum(b"x")))

    @rule(which=st.integers(0, 3))
    def damage_on_the_way(self, which: int) -> None:
        offer = which % len(self.manifests)
        if not self.done[offer] and self.safe[offer] < self.manifests[offer].chunks:
            index, payload, check = self.chunks[offer][self.safe[offer]]
            with pytest.raises(DigestMismatch):
                self.receiver.chunk(Chunk(offer, index, payload + b"!", check))

    @rule(which=st.integers(0, 3))
    def commit_too_early(self, which: int) -> None:
        offer = which % len(self.manifests)
        if self.safe[offer] < self.manifests[offer].chunks:
            with pytest.raises(OffsetMismatch):
                self.receiver.commit(Commit(offer, self.transfers[offer].digest))

    @rule()
    def break_off(self) -> None:
        self.receiver.close()
        self.begin()

    @rule()
    def kill(self) -> None:
        """Without a farewell: nothing is closed."""
        self.begin()

    @precondition(lambda self: not all(self.done))
    @rule(which=st.integers(0, 3), where=st.floats(0, 1), flip=st.booleans())
    def damage_on_disk(self, which: int, where: float, flip: bool) -> None:
        """The end of a file that was being written is torn, or a byte of it is not what was written."""
        self.receiver.close()
        offers = [offer for offer, done in enumerate(self.done) if not done]
        offer = offers[which % len(offers)]
        place = self.manifests[offer].path(self.inbox)
        part = place.with_name(place.name + ".part")
        text = bytearray(part.read_bytes())
        at = min(int(where * len(text)), len(text) - 1)
        if flip:
            text[at] ^= 0x40
        else:
            del text[at:]
        part.write_bytes(text)
        end, whole = 28 + len(self.manifests[offer].canonical()), 0
        for _, payload, _ in self.chunks[offer][: self.safe[offer]]:
            end += 24 + len(payload)
            whole += end <= at
        self.safe[offer] = whole
        self.begin()

    @invariant()
    def only_what_is_committed_is_visible(self) -> None:
        for manifest, done in zip(self.manifests, self.done, strict=True):
            assert manifest.path(self.inbox).exists() == done

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        self.receiver.close()
        self.begin()
        for parts in self.waiting.values():
            for part in parts:
                assert self.receiver.chunk(part) if isinstance(part, Chunk) else self.receiver.commit(part)
        assert all(at.committed for at in self.receiver.standing())
        assert list(self.sender.parts(self.receiver.standing())) == []
        for transfer in self.transfers:
            assert transfer.manifest.path(self.inbox).read_bytes() == transfer.path.read_bytes()
            transfer.close()
        assert len(list(self.inbox.iterdir())) == len(self.manifests)
        shutil.rmtree(self.folder)


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_transfer_crosses(tmp_path: Path) -> None:
    transfer = build(tmp_path / "sender")
    receiver = Receiver(tmp_path / "receiver", [MANIFEST])
    parts = list(sender_of(transfer).parts(receiver.standing()))
    assert parts == [
        *(Chunk(0, index, payload, checksum(payload)) for index, payload in enumerate(PAYLOADS)),
        Commit(0, transfer.digest),
    ]
    for part in parts:
        assert receiver.chunk(part) if isinstance(part, Chunk) else receiver.commit(part)
    assert MANIFEST.path(tmp_path / "receiver").read_bytes() == transfer.path.read_bytes()


def test_what_was_received_can_be_passed_on_as_it_lies(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    build(folders[0])
    for one, another in pairwise(folders):
        deliver(Transfer(MANIFEST.path(one)), Receiver(another, [MANIFEST]))
    assert MANIFEST.path(folders[2]).read_bytes() == MANIFEST.path(folders[0]).read_bytes()


def test_a_sender_of_something_else_makes_the_receiver_start_over(tmp_path: Path) -> None:
    """The silo trained again after losing its disk: the same transfer by name, other weights."""
    old, new = build(tmp_path / "old"), build(tmp_path / "new", payloads=(b"other", b"weights", b"now"))
    receiver = Receiver(tmp_path / "receiver", [MANIFEST])
    first = next(iter(sender_of(old).parts(receiver.standing())))
    assert isinstance(first, Chunk)
    receiver.chunk(first)
    with pytest.raises(DigestMismatch):
        deliver(new, receiver)
    assert receiver.standing() == [Standing(0)]
    deliver(new, receiver)
    assert MANIFEST.path(tmp_path / "receiver").read_bytes() == new.path.read_bytes()


def test_what_was_committed_is_not_replaced(tmp_path: Path) -> None:
    old, new = build(tmp_path / "old"), build(tmp_path / "new", payloads=(b"other", b"weights", b"now"))
    receiver = Receiver(tmp_path, [MANIFEST])
    shutil.copy(old.path, MANIFEST.path(tmp_path))
    with pytest.raises(DigestMismatch):
        list(sender_of(new).parts(receiver.standing()))
    with pytest.raises(DigestMismatch):
        receiver.commit(Commit(0, new.digest))
    assert not receiver.chunk(Chunk(0, 0, b"other", checksum(b"other")))
    assert MANIFEST.path(tmp_path).read_bytes() == old.path.read_bytes()


def test_an_oversized_chunk_is_refused(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, [MANIFEST])
    huge = bytes(1 << 16)
    with pytest.raises(TooLarge):
        receiver.chunk(Chunk(0, 0, huge, checksum(huge)))
    assert receiver.standing() == [Standing(0)]


def test_parts_of_no_transfer_are_refused(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, [MANIFEST])
    with pytest.raises(ProtocolError):
        receiver.chunk(Chunk(1, 0, b"", checksum(b"")))
    with pytest.raises(ProtocolError):
        receiver.commit(Commit(1, bytes(32)))


@pytest.mark.parametrize(
    ("standing", "refusal"),
    [
        ([], ProtocolError),
        ([Standing(), Standing()], ProtocolError),
        ([Standing(4)], ProtocolError),
        ([Standing(3, True, bytes(32))], DigestMismatch),
        ([Standing(3, True)], DigestMismatch),
    ],
)
def test_standings_that_cannot_be(tmp_path: Path, standing: list[Standing], refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        list(sender_of(build(tmp_path)).parts(standing))


def test_a_receiver_that_lacks_only_the_commit(tmp_path: Path) -> None:
    transfer = build(tmp_path)
    assert list(sender_of(transfer).parts([Standing(3)])) == [Commit(0, transfer.digest)]


def test_an_offer_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        Receiver(tmp_path, [named(number) for number in range(MAX_MANIFESTS + 1)])
    assert list(tmp_path.iterdir()) == []


def test_an_offer_names_no_transfer_twice(tmp_path: Path) -> None:
    """Two spools would write one file."""
    with pytest.raises(ProtocolError, match="twice"):
        Receiver(tmp_path, [MANIFEST, named(1), replace(MANIFEST, elements=8)])


@given(st.lists(st.one_of(st.integers(0, 2 * BATCH_BYTES), st.none()), max_size=30))
def test_batches_keep_parts_and_order_and_are_bounded(sizes: list[int | None]) -> None:
    parts = [Commit(0, b"") if size is None else Chunk(0, 0, bytes(size), b"") for size in sizes]
    found = list(batches(parts))
    assert [part for batch in found for part in batch] == parts
    weights = [[len(part.payload) if isinstance(part, Chunk) else 0 for part in batch] for batch in found]
    assert all(batch and (len(batch) == 1 or sum(batch) <= BATCH_BYTES) for batch in weights)
    for one, following in pairwise(weights):
        assert sum(one) + following[0] + 64 * (len(one) + 1) > BATCH_BYTES, "the next part would have fitted"
