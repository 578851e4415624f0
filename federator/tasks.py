"""A silo's task as a message: its part in the open round, or what is waited for."""

from __future__ import annotations

from feddiff.core import peer_wire, wire
from feddiff.federator.federation import Federation
from feddiff.federator.lookout import left_out, told_finished
from feddiff.v1 import federation_pb2 as pb


def task(federation: Federation, silo: str) -> pb.Task:
    """What a silo is to do now; the same until it is done."""
    if federation.finished:
        rounds = len(federation.journal.rounds())
        told_finished(federation, silo)
        reason = federation.journal.fact("finished") or ""
        return pb.Task(id="finished", reason=reason, finished=pb.Finished(rounds=rounds))
    work = federation.work(silo)
    if work is None:
        if out := federation.verdicts.out(federation.upcoming).get(silo):
            return pb.Task(id="filtered", reason=f"{out}; the federation's operator can reinstate it", wait=pb.Wait())
        reason = left_out(federation, silo) or federation.decision.reason
        return pb.Task(id="wait", reason=reason, wait=pb.Wait())
    note, offered = federation.verdicts.note(silo, work.round), federation.pool.portion(silo)
    found = pb.Task(
        id=f"round-{work.round}",
        reason="; ".join((federation.decision.reason, *([note] if note else []))),
        round=pb.RoundTask(
            round=work.round,
            down=[wire.manifest_to(manifest) for manifest in work.down],
            up=[wire.manifest_to(manifest) for manifest in work.up],
            personal=work.personal,
            seed=federation.config.seed,
            start=[
                pb.Held(segment=name, version=version, digest=federation.versions.digest(name, version))
                for name, version in work.start.items()
            ],
            pool=None if offered is None else wire.portion_to(offered),
        ),
    )
    if work.dealings is not None:
        peer_wire.deal(found.round, work.dealings, work.down)
    return found
