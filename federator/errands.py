"""What a silo is to do for the others of a round: said as state, so that it may be asked for again and again."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from feddiff.core.peers import Accept, Duty, lost

if TYPE_CHECKING:
    from feddiff.federator.exchange import Exchange
    from feddiff.federator.federation import Federation


def errand(exchange: Exchange, federation: Federation, silo: str, round: int) -> Duty:
    """A silo's duty now; its id changes whenever anything in it does."""
    codec, sizes = federation.config.codec, {each.name: each.size for each in federation.layout.segments}
    accepts = tuple(
        Accept(each, sizes[each.segment], federation.current[each.segment], exchange.senders(each.segment))
        for each, owner in sorted(exchange.owners.items())
        if owner == silo
    )
    folds = tuple(
        folding
        for range, folding in exchange.foldings.values()
        if exchange.owners.get(range) == silo and range not in exchange.results
    )
    grants: dict[str, list[str]] = {}
    for range, folding in exchange.foldings.values():
        whole = lost(codec, range.segment, sizes[range.segment], folding.base) if folding.carries else None
        for carry in folding.carries:
            if whole is not None and carry.silo == silo:
                grants.setdefault(exchange.owners[range], []).append(carry.range.of(whole).transfer)
    samples = exchange.checking.of(silo) if exchange.checking is not None else ()
    if exchange.checking is not None:
        for checker, names in exchange.checking.grants(silo, codec, sizes, round).items():
            grants.setdefault(checker, []).extend(names)
    duty = Duty(
        "",
        round,
        {name: exchange.near.advertised(name) for name in exchange.planned()},
        accepts,
        folds,
        samples,
        tuple(exchange.keeps.get(silo, ())),
        {name: tuple(sorted(names)) for name, names in sorted(grants.items())},
    )
    return replace(duty, id=hashlib.sha256(repr(duty).encode()).hexdigest()[:16])
