"""Who exchanges weights with whom (docs/peer.md).

star    every silo with the federator, which averages
peer    every silo with every other: each averages some ranges of chunks, the federator sees digests
mixed   as peer; who does not listen sends to those who do and fetches from them, and owns nothing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from feddiff.core.sections import Section

if TYPE_CHECKING:
    from feddiff.core.config import FederationConfig

Topology = Literal["star", "peer", "mixed"]


class PeerConfig(Section):
    """How far the federator trusts silos that average, and when it wants the weights itself."""

    checked: Annotated[int, Field(ge=0, le=100_000)] = 2
    """Chunks of each owner's results that another silo averages again, in each round; 0: none."""
    checkpoint: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """The federator asks for the weights after every so many rounds, and after the last; 0: never."""

    def due(self, round: int, rounds: int) -> bool:
        """Whether the federator asks for the weights of this round."""
        return self.checkpoint > 0 and (round % self.checkpoint == 0 or round == rounds)


def check(rules: FederationConfig) -> None:
    """Raises ValueError for what the federator cannot do without the weights, and owners cannot do yet."""
    if not rules.peers:
        if rules.peer != PeerConfig():
            raise ValueError('[peer] is of federations whose silos average; set topology = "peer", or leave it out')
        return
    told = f'topology = "{rules.topology}"'
    if rules.plan == "budget":
        raise ValueError(f'{told} does not count what transfers cost; use another plan than "budget"')
    if rules.pool is not None:
        raise ValueError(f"{told} shares no public images yet; leave [pool] out")
    if rules.quality is not None or rules.filter is not None:
        raise ValueError(f"{told} leaves the federator nothing to measure; leave [quality] and [filter] out")
    if rules.outer.optimizer != "sgd" or rules.outer.ema:
        raise ValueError(f'{told} keeps no moments or averages of the model; leave outer.ema out, optimizer = "sgd"')
    if rules.rounds.sampled is not None:
        raise ValueError(f"{told} takes all silos into every round; leave rounds.sampled out")
