"""The nouns of federations of peers as messages, and back: bounded and checked like all of core/wire.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from feddiff.core import errors, wire
from feddiff.core.identity import check_name, parse_address
from feddiff.core.peers import (
    KINDS,
    Accept,
    Carry,
    Dealings,
    Declared,
    Duty,
    Folding,
    Input,
    Kind,
    Result,
    Sample,
    Source,
    Tallied,
)
from feddiff.core.ranges import Range
from feddiff.core.spool import Manifest
from feddiff.v1 import federation_pb2
from feddiff.v1 import peer_pb2 as pb

MAX_ROWS = 1 << 16
"""Silos, ranges, inputs or rows in a message."""


def _few(messages: Sequence[Any]) -> Sequence[Any]:
    if len(messages) > MAX_ROWS:
        raise errors.TooLarge(f"{len(messages)} rows in one message; at most {MAX_ROWS}")
    return messages


def range_to(range: Range) -> pb.Range:
    return pb.Range(segment=range.segment, first=range.first, end=range.end)


def range_from(message: pb.Range) -> Range:
    return Range(message.segment, message.first, message.end)


def addresses_to(addresses: Mapping[str, str]) -> list[pb.Peer]:
    return [pb.Peer(silo=silo, address=address) for silo, address in sorted(addresses.items())]


def addresses_from(messages: Sequence[pb.Peer]) -> dict[str, str]:
    """Raises ProtocolError for a name or an address that is none."""
    try:
        for each in _few(messages):
            check_name(each.silo)
            if each.address:
                parse_address(each.address)
    except errors.ConfigError as error:
        raise errors.ProtocolError(str(error)) from None
    return {each.silo: each.address for each in messages}


def deal(task: federation_pb2.RoundTask, dealings: Dealings, down: Iterable[Manifest]) -> None:
    """Put what a task says of other silos into its message."""
    task.revision = dealings.revision
    task.peers.extend(addresses_to(dealings.addresses))
    task.owners.extend(pb.Owned(range=range_to(each), owner=owner) for each, owner in dealings.owners.items())
    if dealings.sources:
        known = [dealings.sources.get(each.transfer, Source("")) for each in down]
        task.sources.extend(pb.Source(silo=each.silo, digest=each.digest) for each in known)


def dealings_from(task: federation_pb2.RoundTask, down: Sequence[Manifest]) -> Dealings | None:
    """None in a federation whose federator averages all. Raises ProtocolError, TooLarge."""
    if not task.revision:
        return None
    if len(task.sources) not in (0, len(down)):
        raise errors.ProtocolError(f"{len(task.sources)} sources for {len(down)} transfers")
    sources = {each.transfer: Source(at.silo, at.digest) for each, at in zip(down, task.sources, strict=False)}
    owners = {range_from(each.range): each.owner for each in _few(task.owners)}
    return Dealings(task.revision, addresses_from(task.peers), owners, sources)


def _inputs_to(inputs: Iterable[Input]) -> list[pb.Input]:
    return [pb.Input(silo=each.silo, weight=each.weight, digest=each.digest) for each in inputs]


def _inputs_from(messages: Sequence[pb.Input]) -> tuple[Input, ...]:
    return tuple(Input(each.silo, each.weight, each.digest) for each in _few(messages))


def duty_to(duty: Duty) -> pb.Duty:
    return pb.Duty(
        id=duty.id,
        round=duty.round,
        peers=addresses_to(duty.addresses),
        accepts=[
            pb.Accept(range=range_to(each.range), elements=each.elements, base=each.base, senders=each.senders)
            for each in duty.accepts
        ],
        folds=[
            pb.Folding(
                result=wire.manifest_to(each.result),
                base=each.base,
                inputs=_inputs_to(each.inputs),
                carries=[pb.Carry(range=range_to(carry.range), silo=carry.silo) for carry in each.carries],
            )
            for each in duty.folds
        ],
        samples=[
            pb.Sample(
                owner=each.owner,
                result=wire.manifest_to(each.result),
                base=each.base,
                chunk=each.chunk,
                inputs=_inputs_to(each.inputs),
                before=each.before,
                checksum=each.checksum,
                lost=each.lost,
            )
            for each in duty.samples
        ],
        keeps=[wire.manifest_to(each) for each in duty.keeps],
        grants=[pb.Grant(silo=silo, transfers=names) for silo, names in sorted(duty.grants.items())],
    )


def duty_from(message: pb.Duty) -> Duty:
    """Raises ProtocolError, TooLarge."""
    return Duty(
        message.id,
        message.round,
        addresses_from(message.peers),
        tuple(
            Accept(range_from(each.range), each.elements, each.base, tuple(each.senders))
            for each in _few(message.accepts)
        ),
        tuple(
            Folding(
                wire.manifests_from([each.result])[0],
                each.base,
                _inputs_from(each.inputs),
                tuple(Carry(range_from(carry.range), carry.silo) for carry in _few(each.carries)),
            )
            for each in _few(message.folds)
        ),
        tuple(
            Sample(
                each.owner,
                wire.manifests_from([each.result])[0],
                each.base,
                each.chunk,
                _inputs_from(each.inputs),
                each.before,
                each.checksum,
                each.lost,
            )
            for each in _few(message.samples)
        ),
        tuple(wire.manifests_from(message.keeps)),
        {each.silo: tuple(each.transfers) for each in _few(message.grants)},
    )


def declared_to(updates: Iterable[Declared]) -> list[pb.Declared]:
    return [
        pb.Declared(manifest=wire.manifest_to(each.manifest), checksums=each.checksums, encoded=each.encoded)
        for each in updates
    ]


def declared_from(messages: Sequence[pb.Declared]) -> list[Declared]:
    """What they say is not checked. Raises ProtocolError, TooLarge."""
    manifests = wire.manifests_from(each.manifest for each in messages)
    return [
        Declared(manifest, each.checksums, each.encoded) for manifest, each in zip(manifests, messages, strict=True)
    ]


def result_from(message: pb.Folded) -> Result:
    return Result(message.transfer, message.checksums, message.lost, message.encoded)


def tallies_to(rows: Iterable[Tallied]) -> list[pb.Tallied]:
    return [pb.Tallied(**vars(each)) for each in rows]


def tallies_from(messages: Sequence[pb.Tallied]) -> list[Tallied]:
    """Raises ProtocolError, TooLarge."""
    for each in _few(messages):
        if each.kind not in KINDS or not 0 <= each.seconds < 1e9:
            raise errors.ProtocolError(f"a row of what silos exchanged is of {each.kind!r:.20}, {each.seconds} s")
    return [
        Tallied(m.source, m.target, m.segment, cast(Kind, m.kind), m.parameters, m.encoded, m.wire, m.seconds)
        for m in messages
    ]
