"""The operator's desk: questions and orders to a federation, running or not.

Orders and live status go through the daemon's local socket; what is on disk is read from disk, so that the ledger, the
samples and the report outlive the daemon.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddiff.core import wire
from feddiff.core.config import FederationConfig, load
from feddiff.core.errors import ConfigError, FederatorUnavailable, StoreError
from feddiff.core.segments import F32, Layout
from feddiff.core.store import WeightsReader
from feddiff.federator import appraisal, tally
from feddiff.federator.database import Database
from feddiff.federator.federation import Federation
from feddiff.federator.ledger import OVERHEAD, Ledger
from feddiff.federator.measure import amount
from feddiff.federator.operator import ADDRESS_FILE
from feddiff.federator.operator import status as status_of
from feddiff.v1 import operator_pb2 as pb
from feddiff.v1 import operator_pb2_grpc

if TYPE_CHECKING:
    from feddiff.federator.report import Story

GRIDS = 12
"""Silos whose pictures the report shows."""
_REQUESTS = {
    "status": ("GetStatus", pb.StatusRequest),
    "pause": ("Pause", pb.PauseRequest),
    "resume": ("Resume", pb.ResumeRequest),
    "stop": ("Stop", pb.StopRequest),
    "evict": ("Evict", pb.EvictRequest),
    "reinstate": ("Reinstate", pb.ReinstateRequest),
}


def opened(config: Path) -> Federation:
    """The federation on disk, read only by convention. Raises StoreError if it has not begun."""
    rules, folder = load(config), config.resolve().parent
    if not (folder / "layout.json").exists() or not (folder / "federation.db").exists():
        raise StoreError(f"{folder} holds no federation that has begun; run `feddiff-federator serve` first")
    layout = Layout.from_json((folder / "layout.json").read_text())
    return Federation(folder, rules, layout, Database(folder / "federation.db"))


def order(config: Path, command: str, fields: Mapping[str, str]) -> str:
    """Give an order to the running daemon; returns its status. Raises FederatorUnavailable, ConfigError."""
    return _status_text(_ask(config, command, fields))


def status(config: Path, as_json: bool) -> str:
    """Live if the daemon runs; from disk otherwise."""
    try:
        reply = _ask(config, "status", {})
    except FederatorUnavailable:
        reply = status_of(opened(config), live=False)
    if as_json:
        return json.dumps(_plain(reply), indent=2)
    database = config.resolve().parent / "federation.db"
    measured = appraisal.newest(list(Ledger(Database(database)).quality()))
    return "\n".join([_status_text(reply), *([f"  quality: {measured}"] if measured else [])])


def _ask(config: Path, command: str, fields: Mapping[str, str]) -> pb.StatusReply:
    import grpc

    load(config)  # a wrong file is said first
    folder = config.resolve().parent
    try:
        address = (folder / ADDRESS_FILE).read_text()
    except OSError:
        raise FederatorUnavailable(f"no federator is running in {folder}") from None
    method, request = _REQUESTS[command]
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        try:
            reply: pb.StatusReply = getattr(operator_pb2_grpc.OperatorStub(channel), method)(
                request(**fields), timeout=10
            )
            return reply
        except grpc.RpcError as error:
            found = wire.raised(error)
            if isinstance(found, FederatorUnavailable):
                raise FederatorUnavailable(f"no federator is running in {folder}") from None
            raise found from None


def _plain(reply: pb.StatusReply) -> dict[str, Any]:
    told = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields if field.name != "silos"}
    fields = {name: None if value != value else value for name, value in told.items()}  # NaN is not JSON
    fields["silos"] = [
        {
            field.name: list(value) if field.name == "up" else None if value != value else value
            for field in silo.DESCRIPTOR.fields
            for value in [getattr(silo, field.name)]
        }
        for silo in reply.silos
    ]
    return fields


def _status_text(reply: pb.StatusReply) -> str:
    lines = [
        f"{reply.federation}: {reply.phase}, round {reply.round} of {reply.rounds}, plan {reply.policy}",
        f"  {reply.reason}",
        *([f"  round {reply.round}, {reply.plan}"] if reply.plan else []),
        f"  on the wire so far: {amount(reply.wire_down)} down, {amount(reply.wire_up)} up",
        f"  the server's certificate is good for {reply.server_days:.3g} more days, the CA {reply.authority[:16]} for"
        f" {reply.authority_days:.0f}",
        *([f"  {reply.rotation}"] if reply.rotation else []),
        *([f"  audit log: entry {reply.audit}"] if reply.audit else []),
        f"  {'silo':<20} {'enrolled':<9} {'reachable':<10} {'planned':<8} {'training':<9} {'images':>8}  {'loss':<7}"
        f" {'days':>5}  doing",
    ]
    for silo in reply.silos:
        truths = ["yes" if t else "no" for t in (silo.enrolled, silo.reachable, silo.planned, silo.training)]
        doing = "committed" if silo.committed else silo.phase + (f" {silo.step}/{silo.steps}" if silo.steps else "")
        days = "-" if math.isnan(silo.certificate_days) else f"{silo.certificate_days:.3g}"
        loss = "-" if math.isnan(silo.loss) else f"{silo.loss:.4f}"
        lines.append(
            f"  {silo.name:<20} {truths[0]:<9} {truths[1]:<10} {truths[2]:<8} {truths[3]:<9} {silo.samples:>8}"
            f"  {loss:<7} {days:>5}  {doing}{f' ({silo.note})' if silo.note else ''}"
        )
        if reply.policy == "budget":
            links = [f"{rate:.3g} Mbit/s" if rate else "not measured" for rate in (silo.down_mbit, silo.up_mbit)]
            lines.append(f"    {silo.plan or 'not planned yet'}; its link: {links[0]} down, {links[1]} up")
    if not reply.silos:
        lines.append("  no silo is enrolled; `feddiff-federator invite NAME` makes an invitation")
    return "\n".join(lines)


def ledger(config: Path, as_json: bool, peers: bool = False) -> str:
    """All rows: of the federator's own line, or of what ``peers`` sent each other. Sizes in bytes."""
    if peers:
        flows = list(opened(config).tally.flows())
        return json.dumps([asdict(each) for each in flows], indent=1) if as_json else tally.text(flows)
    entries = list(opened(config).ledger.entries())
    if as_json:
        return json.dumps([asdict(entry) for entry in entries], indent=1)
    columns = ("parameters", "raw", "encoded", "wire", "retransmitted")
    head = f"{'round':>5} {'silo':<20} {'segment':<12} {'way':<4}" + "".join(f"{name:>14}" for name in columns)
    lines = [head + f"{'seconds':>9}"]
    for entry in entries:
        name = "(overhead)" if entry.segment == OVERHEAD else entry.segment
        lines.append(
            f"{entry.round:>5} {entry.silo or '(unknown)':<20} {name:<12} {entry.direction:<4}"
            + "".join(f"{getattr(entry, column):>14}" for column in columns)
            + f"{entry.seconds:>9.2f}"
            + (" estimated" if entry.estimated else "")
        )
    total = "".join(f"{sum(getattr(entry, column) for entry in entries):>14}" for column in columns)
    return "\n".join([*lines, f"{'total':<44}{total}{sum(entry.seconds for entry in entries):>9.2f}"])


def quality(config: Path, as_json: bool) -> str:
    """All readings: of the global model and of silos' own. A value that is not finite is null in JSON."""
    found = list(opened(config).ledger.quality())
    if not as_json:
        return appraisal.text(found)
    plain = [{"round": each.round, "of": each.of or None, **asdict(each.measured)} for each in found]
    finite = [{**row, "value": row["value"] if math.isfinite(row["value"]) else None} for row in plain]
    return json.dumps(finite, indent=1)


def global_state(federation: Federation) -> dict[str, F32]:
    """The global model: parameter name to float32 array. Raises ConfigError for plans that have none."""
    config: FederationConfig = federation.config
    if not config.has_global_model:
        raise ConfigError(
            f"plan {config.plan} has no global model: {', '.join(federation.sharing.personal)} never leaves a silo;"
            " use `feddiff-silo sample` or `feddiff-silo export` at a silo"
        )
    if config.peers and not all(federation.versions.model(*each).exists() for each in federation.current.items()):
        raise ConfigError(
            "the silos average for each other, and the federator has no weights of the newest version: set"
            " peer.checkpoint in the rules of a new federation; `feddiff-silo export` writes a silo's own model"
        )
    vectors: dict[str, F32] = {}
    for name in federation.layout.names:
        with WeightsReader(federation.versions.model(name, federation.current[name])) as reader:
            vectors[name] = reader.read(name)
    return federation.layout.scatter(vectors)


def sample(
    config: Path, out: Path, count: int, steps: int, seed: int, scale: int, guidance: float | None = None
) -> None:
    """Draw a grid of images from the global model."""
    federation = opened(config)
    state = global_state(federation)
    from feddiff.core.grid import draw

    draw(federation.config, state, out, count, steps, seed, scale, guidance)


def export(config: Path, folder: Path) -> str:
    """Write the global model; returns how it is loaded."""
    federation = opened(config)
    state = global_state(federation)
    from feddiff.core import network

    return network.of(federation.config).export(federation.config, state, folder)


def _drawn(folder: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """(the newest round's picture of the global model, the newest ones of silos' own), with titles."""
    shared = [(f"global model, round {round}", path) for round, path in _by_round(folder.glob("samples/round-*.png"))]
    silos = [(round, sorted(each.glob("*.png"))) for round, each in _by_round(folder.glob("grids/round-*"))]
    round, newest = next((each for each in reversed(silos) if each[1]), (0, []))
    return shared[-1:], [(f"{path.stem}, round {round}", path) for path in newest[:GRIDS]]


def _by_round(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    """Those that are named as ``round-0005``, in order of the rounds; an operator's own files are not."""
    named = [(path.stem.removeprefix("round-"), path) for path in paths]
    return sorted((int(number), path) for number, path in named if number.isdecimal())


def story(federation: Federation, samples: list[tuple[str, Path]]) -> Story:
    """What the report tells."""
    from feddiff.federator.report import RoundSummary, Story

    metrics = federation.journal.metrics()
    rounds = [
        RoundSummary(
            each.round,
            len(each.silos),
            len(each.plan.assignments),
            {
                silo: by["loss"]
                for silo, by in metrics.get(each.round, {}).items()
                if "loss" in by and silo in each.silos
            },
            each.opened_at,
            each.closed_at,
            each.weights,
        )
        for each in federation.journal.rounds()
        if each.closed_at is not None
    ]
    config, (shared, own) = federation.config, _drawn(federation.folder)
    return Story(
        federation=config.name,
        policy=config.plan,
        config=json.dumps(json.loads(config.canonical()), indent=2),
        config_digest=config.digest,
        layout=federation.layout,
        rounds=rounds,
        entries=list(federation.ledger.entries()),
        samples=[*samples, *shared],
        grids=own,
        readings=list(federation.ledger.quality()),
        verdicts=federation.verdicts.all(),
        kept=dict.fromkeys(federation.sharing.personal, "personal")
        | dict.fromkeys(federation.sharing.frozen, "frozen"),
        codec_up="by the plan" if config.budget else config.codec.up,
        codec_down="by the plan" if config.budget else config.codec.down,
    )


def report(config: Path, folder: Path, samples: list[Path]) -> str:
    """Write charts and page; returns the summary."""
    from feddiff.federator import report as page

    for each in samples:
        if not each.is_file():
            raise ConfigError(f"--samples {each}: there is no such picture")
    told = story(opened(config), [(path.stem, path) for path in samples])
    folder.mkdir(parents=True, exist_ok=True)
    page.write(told, folder)
    return page.summary(told)
