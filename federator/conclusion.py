"""The end of a round of peers: averaged by the owners, checked by others, fetched by all, then published.

``conclude`` is asked again and again by the loop that advances the rounds, and does the next thing that can be done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from feddiff.core.manifests import publication
from feddiff.core.peers import Folding, Input, Sample, mark
from feddiff.core.ranges import Range, digest, split
from feddiff.federator.checking import Checking
from feddiff.federator.exchange import Exchange
from feddiff.federator.holdings import Made
from feddiff.federator.rounds import Decision
from feddiff.federator.weighting import LOSS, weigh

if TYPE_CHECKING:
    from feddiff.federator.federation import Federation

log = logging.getLogger("feddiff.federator")


def conclude(exchange: Exchange, federation: Federation, silos: Sequence[str]) -> Mapping[str, int] | None:
    """Bring the round nearer to its end with the updates of these silos; the versions it makes once it has.

    Raises BadUpdate for one that an owner cannot average.
    """
    with federation.changed:
        exchange.watch(time.monotonic())
        if exchange.abandoned or not silos:
            return {}
        if exchange.bad is not None:
            bad, exchange.bad = exchange.bad, None
            exchange.restart()
            raise bad
        if exchange.chosen is None:
            if not set(silos) <= exchange.complete():
                return None  # an owner went this very moment
            _choose(exchange, federation, tuple(silos))
        waiting = sorted(
            {exchange.owners[range] for range, _ in exchange.foldings.values() if range not in exchange.results}
        )
        if waiting:
            exchange.reason = f"{', '.join(waiting)} average"
            return None
        if not exchange.candidates:
            if not _checked(exchange, federation):
                return None
            _share(exchange, federation)
        if not _held(exchange, federation) or not _kept(exchange, federation):
            return None
        exchange.holdings.pin(exchange.candidates)
        exchange.carrying.keep(exchange.candidates, exchange.results, exchange.owners)
        return dict(exchange.candidates)


def under_way(federation: Federation, decision: Decision) -> Decision:
    """What ``rounds.decide`` said, unless the silos of a federation of peers are already bringing the round to an end.

    Whose updates count does not change any more then; and owners are watched all the time.
    """
    exchange = federation.exchange
    if exchange is None or federation.open_round() is None:
        return decision
    with federation.changed:
        exchange.watch(time.monotonic())
        if exchange.abandoned:
            return Decision("fold", f"the round is abandoned: {exchange.abandoned}")
        if exchange.chosen is not None:
            return Decision("fold", exchange.reason or "owners average", exchange.chosen)
    return decision


def _choose(exchange: Exchange, federation: Federation, silos: tuple[str, ...]) -> None:
    """These updates count: say to the owners what they are to average."""
    current = federation.round
    assert current is not None
    told = federation.journal.metrics(current.round).get(current.round, {})
    losses = {silo: values[LOSS] for silo, values in told.items() if LOSS in values}
    codec = federation.config.codec
    foldings: dict[str, tuple[Range, Folding]] = {}
    for each, owner in sorted(exchange.owners.items()):
        reporting = [silo for silo in exchange.senders(each.segment) if silo in silos]
        if not reporting:
            continue
        base, size = federation.current[each.segment], federation.layout[each.segment].size
        weights = weigh(federation.config.weights, {s: current.weights[s] for s in reporting}, losses)
        inputs = []
        for silo in reporting:
            declared = exchange.declared[silo][each.segment]
            checks = split(declared.checksums, declared.manifest.chunks)[each.first : each.end]
            inputs.append(Input(silo, weights[silo].value, digest(each.of(declared.manifest), checks)))
        carries = exchange.carrying.carries(each, base, exchange.near.reached(owner) | {owner})
        whole = publication(codec, each.segment, size, base if codec.delta else -1, base + 1)
        result = each.of(whole, mark(inputs, carries))
        foldings[result.transfer] = (each, Folding(result, base, tuple(inputs), carries))
    exchange.chosen, exchange.foldings = silos, foldings
    federation.changed.notify_all()


def _checked(exchange: Exchange, federation: Federation) -> bool:
    """Whether samples of every owner's results were averaged again and came out the same."""
    if exchange.checking is None:
        checking = exchange.checking = Checking()
        samples: dict[str, list[Sample]] = {}
        for range, folding in exchange.foldings.values():
            owner, found = exchange.owners[range], exchange.results[range]
            checks = split(found.checksums, range.chunks)
            losses = split(found.lost, range.chunks) if found.lost else [b""] * range.chunks
            for index, (check, loss) in enumerate(zip(checks, losses, strict=True)):
                chunk = range.first + index
                inputs = []
                for each in folding.inputs:
                    declared = exchange.declared[each.silo][range.segment]
                    sent = split(declared.checksums, declared.manifest.chunks)[chunk]
                    inputs.append(Input(each.silo, each.weight, sent))
                before = exchange.carrying.before(range.segment, chunk, folding.carries)
                samples.setdefault(owner, []).append(
                    Sample(owner, folding.result, folding.base, chunk, tuple(inputs), before, check, loss)
                )
        for owner, chunks in samples.items():
            checking.begin(owner, chunks, federation.config.peer.checked)
        federation.changed.notify_all()
    refused = exchange.checking.assign({silo for silo in exchange.planned() if exchange.near.alive(silo)})
    if refused:
        exchange.near.bar(refused, "gives nobody what is to be checked")
        exchange.restart()
        return False
    if waiting := exchange.checking.waiting():
        exchange.reason = f"what {', '.join(waiting)} averaged is being checked"
        return False
    return True


def _share(exchange: Exchange, federation: Federation) -> None:
    """All silos may have what was made."""
    pieces: dict[str, list[Made]] = {}
    for range, folding in exchange.foldings.values():
        found = exchange.results[range]
        made = digest(folding.result, split(found.checksums, range.chunks))
        pieces.setdefault(range.segment, []).append(Made(range, folding.result, made, exchange.owners[range]))
    versions = {segment: federation.current[segment] + 1 for segment in pieces}
    for segment, mine in pieces.items():
        exchange.holdings.made(segment, versions[segment], mine)
    exchange.share(versions)


def _held(exchange: Exchange, federation: Federation) -> bool:
    """Whether the silos of the round hold what it made; those that are late are given ``rounds.grace``."""
    now, wanted = time.monotonic(), exchange.candidates
    silos = [silo for silo in exchange.planned() if silo in federation.presence]
    have = {s for s in silos if all(federation.presence[s].held.get(name) == v for name, v in wanted.items())}
    late = [silo for silo in silos if silo not in have and exchange.near.alive(silo)]
    if have and exchange.held_since is None:
        exchange.held_since = now
    if have and not late:
        return True
    if have and now - (exchange.held_since or now) > federation.config.rounds.grace:
        if len(have) > 1:
            return True
        exchange.abandoned = f"{', '.join(late)} cannot fetch what it made from {', '.join(have)}"
    exchange.reason = f"{', '.join(late) or 'nobody'} fetch what the round made"
    return False


def _kept(exchange: Exchange, federation: Federation) -> bool:
    """Whether the federator has the weights, in rounds in which it wants them."""
    number, rules = federation.open_round() or 0, federation.config
    if not rules.peer.due(number, rules.rounds.count):
        return True
    current = {name: version for name, version in {**federation.current, **exchange.candidates}.items() if version}
    there = exchange.near.listening(exchange.planned())
    keeps = exchange.holdings.keeps(current, there)
    if keeps != exchange.keeps:
        exchange.keeps = keeps
        federation.changed.notify_all()
    if all(federation.versions.weights(name, version).exists() for name, version in current.items()):
        exchange.keeps = {}
        return True
    exchange.reason = "the federator keeps the weights"
    return False
