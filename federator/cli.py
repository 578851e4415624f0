"""``feddiff-federator``: everything the coordinating site types.

Only parses and prints; imports what a command needs when it needs it, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from feddiff.core import console

if TYPE_CHECKING:
    from feddiff.federator.journal import Round


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="feddiff-federator", description="The coordinating site of a federation.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, config: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if config:
            command.add_argument(
                "--config",
                type=Path,
                default=Path("federation.toml"),
                help="the federation's TOML file; its folder holds the state (default: ./federation.toml)",
            )
        return command

    init = add("init", "Make a CA, a server certificate and an example federation.toml in a folder.", config=False)
    init.add_argument("folder", type=Path)
    init.add_argument("--address", required=True, metavar="HOST:PORT", help="where silos will reach this federator")
    init.add_argument("--also", action="append", default=[], metavar="NAME", help="another name or IP of this host")
    init.add_argument("--name", default="federation", help="the federation's name")
    init.add_argument("--preset", default="digits-16", help="the model to begin with")
    init.add_argument(
        "--lifetime", default="30d", metavar="TIME", help="of certificates, which renew themselves (default: 30d)"
    )
    invite = add("invite", "Print the command that makes an institution a silo of this federation.")
    invite.add_argument("name", help="the silo's name, e.g. hospital-a")
    invite.add_argument("--expires", default="7d", metavar="TIME", help="e.g. 12h or 7d (default: 7d)")
    invite.add_argument("--token-only", action="store_true", help="print only the token")
    approve = add("approve", "Make the grant of a request that was carried here, where no invitation can be pasted.")
    approve.add_argument("request", type=Path)
    approve.add_argument("--fingerprint", metavar="HEX", help="of the request, as the institution reads it to you")
    approve.add_argument("--out", type=Path, required=True, metavar="GRANT")
    rotate = add("rotate-ca", "Replace the CA, while the federation goes on: silos learn the new one as they renew.")
    rotate.add_argument("--within", metavar="TIME", help="then the old one goes in any case (default: a lifetime)")
    rotate.add_argument("--finish", action="store_true", help="let the old one go now")
    operator = add("operator", "Print a new token with which a person steers this federation from its page.")
    operator.add_argument("name", help="the operator's name, e.g. anna")
    operator.add_argument("--expires", default="30d", metavar="TIME", help="e.g. 12h or 30d (default: 30d)")
    serve = add("serve", "Run the federation until its rounds are done.")
    serve.add_argument("--listen", metavar="HOST:PORT", help="default: all addresses, the port given to init")
    serve.add_argument("--initial", type=Path, metavar="PATH", help="a published model, for rules that begin with it")
    serve.add_argument("--extractor", type=Path, metavar="FILE", help="TorchScript that makes features of images")
    serve.add_argument("--reference", type=Path, metavar="FOLDER", help="LABEL/IMAGE: what the model is measured by")
    serve.add_argument("--pool", type=Path, metavar="FOLDER", help="public images: consent to give them to silos")
    serve.add_argument("--http", metavar="HOST:PORT", help="show a live page to browsers, e.g. 127.0.0.1:8080")
    host_text = "a name under which a proxy serves the page; reading it then needs an operator's token"
    serve.add_argument("--http-host", action="append", default=[], metavar="NAME", help=host_text)
    serve.add_argument("--metrics", metavar="HOST:PORT", help="tell Prometheus here, e.g. 127.0.0.1:9464")
    serve.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="TRACKER",
        help="tell every round, measurement and grid of samples to tensorboard:FOLDER or mlflow:http://HOST:PORT",
    )
    serve.add_argument("--verbose", action="store_true")
    serve.add_argument("--log", choices=("text", "json"), default="text", help="how log lines look (default: text)")
    doctor = add("doctor", "Say what is wrong with this federator, and what to do. Give it what `serve` is given.")
    doctor.add_argument("--listen", default="", metavar="HOST:PORT", help="as for serve")
    doctor.add_argument("--extractor", type=Path, metavar="FILE", help="as for serve")
    doctor.add_argument("--reference", type=Path, metavar="FOLDER", help="as for serve")
    doctor.add_argument("--pool", type=Path, metavar="FOLDER", help="as for serve")
    doctor.add_argument("--json", action="store_true", help="findings as JSON")
    for name, text in (
        ("status", "What the federation is doing, and what it waits for."),
        ("ledger", "What every round cost: one row per round, silo, segment and direction."),
        ("quality", "What every measured round was worth: one row per model (docs/quality.md)."),
    ):
        asked = add(name, text)
        asked.add_argument("--json", action="store_true")
        if name == "ledger":
            asked.add_argument("--peers", action="store_true", help="what silos sent each other, where they average")
    for name, text in (
        ("pause", "Let the open round end, then open no new one."),
        ("resume", "Go on after a pause."),
        ("stop", "Let the open round end, then finish the federation."),
    ):
        add(name, text)
    revoke = add("revoke", "Refuse a silo's certificate from now on and cut its streams; or an operator's token.")
    revoke.add_argument("name", help="of a silo, an invited one, or an operator")
    revoke.add_argument("--reason", default="by the operator")
    add("reinstate", "Take back a silo that the filter put out.").add_argument("name")
    audit = add(
        "audit", "Who did what and when, signed: verify the log, or show it (docs/operations.md).", config=False
    )
    questions = audit.add_subparsers(dest="question", required=True, metavar="QUESTION")
    verify = questions.add_parser("verify", help="Check hashes, signatures and order; names the first broken line.")
    verify.add_argument("--key", metavar="HEX", help="the fingerprint of the log's key, as init printed it")
    verify.add_argument(
        "--expect", metavar="HASH", help="of an entry that was noted once, e.g. by a silo: it must be there"
    )
    show = questions.add_parser("show", help="Print the entries.")
    show.add_argument("--since", metavar="TIME", help="e.g. 2026-05-01 or 7d")
    show.add_argument("--json", action="store_true", help="as they are in the file")
    for each in (verify, show):
        each.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: audit.jsonl beside --config")
        each.add_argument("--config", type=Path, default=Path("federation.toml"))
    sample = add("sample", "Draw images from the global model.")
    sample.add_argument("--out", type=Path, required=True, metavar="GRID.PNG")
    sample.add_argument("--count", type=int, default=64)
    sample.add_argument("--steps", type=int, default=50)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--scale", type=int, default=1, help="enlarge each pixel")
    sample.add_argument("--guidance", type=float, metavar="S", help="instead of the rules' diffusion.guidance")
    export = add("export", "Write the global model as a folder of safetensors, a UNet's for diffusers.")
    export.add_argument("folder", type=Path)
    report = add("report", "Write charts and report.html.")
    report.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    report.add_argument("--samples", type=Path, action="append", default=[], metavar="PNG")
    return root


_FIELDS = {"reinstate": {"silo": "name"}}
"""Of an order's request, and the options that they are."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return console.run("feddiff-federator", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.command == "init":
        from feddiff.federator import site

        print(site.init(options.folder, options.name, options.preset, options.address, options.also, options.lifetime))
        return 0
    if options.command == "invite":
        from feddiff.federator import site

        token = site.invite(options.config, options.name, options.expires)
        print(token if options.token_only else site.invitation_text(token, options.name, options.expires))
        return 0
    if options.command == "operator":
        from feddiff.federator import site

        print(site.operator(options.config, options.name, options.expires))
        return 0
    if options.command == "approve":
        from feddiff.federator import approval

        print(approval.approve(options.config, options.request, options.fingerprint, options.out))
        return 0
    if options.command in ("revoke", "rotate-ca"):
        from feddiff.federator import custody

        if options.command == "revoke":
            print(custody.revoke(options.config, options.name, options.reason))
        else:
            print(custody.rotate(options.config, options.within, options.finish))
        return 0
    if options.command == "audit":
        from feddiff.federator import examiner

        if options.question == "verify":
            print(examiner.verify(options.config, options.file, options.key, options.expect))
        else:
            for text in examiner.show(options.config, options.file, options.since, options.json):
                print(text)
        return 0
    if options.command == "serve":
        return _serve(options)
    if options.command == "doctor":
        from feddiff.core import finding
        from feddiff.core.wire import SOFTWARE
        from feddiff.federator import doctor

        given = (options.extractor, options.reference, options.pool)
        patient = doctor.Patient(options.config, options.listen, *given)
        return finding.tell(doctor.examine(patient), SOFTWARE, options.json)
    from feddiff.federator import desk

    if options.command in ("pause", "resume", "stop", "reinstate"):
        order = {name: getattr(options, key) for name, key in _FIELDS.get(options.command, {}).items()}
        print(desk.order(options.config, options.command, order))
    elif options.command == "status":
        print(desk.status(options.config, options.json))
    elif options.command == "ledger":
        print(desk.ledger(options.config, options.json, options.peers))
    elif options.command == "quality":
        print(desk.quality(options.config, options.json))
    elif options.command == "sample":
        desk.sample(
            options.config, options.out, options.count, options.steps, options.seed, options.scale, options.guidance
        )
        print(f"{options.count} images in {options.out}")
    elif options.command == "export":
        print(f"{options.folder}: {desk.export(options.config, options.folder)}")
    elif options.command == "report":
        print(desk.report(options.config, options.out, options.samples))
    return 0


def _serve(options: argparse.Namespace) -> int:
    import signal
    import threading
    from contextlib import nullcontext

    from feddiff.core.errors import ConfigError
    from feddiff.federator import handshakes

    handshakes.watch()
    console.one_heap()
    console.many_files()
    console.log_lines(options.verbose, options.log)
    from feddiff.core.config import load
    from feddiff.core.exposition import Exposition
    from feddiff.federator import metrics, site, tracking
    from feddiff.federator.daemon import Federator
    from feddiff.federator.progress import round_line

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    config = load(options.config)
    folder = options.config.resolve().parent
    listen = options.listen or f"[::]:{site.address(folder)[1]}"
    bound = None
    if options.http:
        from feddiff.federator import web

        bound = web.bind(options.http, options.http_host)
    elif options.http_host:
        raise ConfigError("--http-host is of the page, and there is none without --http HOST:PORT")
    exposition = None if options.metrics is None else Exposition(options.metrics)
    trackers = {target: tracking.parse(target) for target in options.track}
    given = (options.extractor, options.reference, options.initial, options.pool)
    federator = Federator(folder, config, listen, *given)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: federator.stop())
    if stopping.is_set():  # the signal came while the federator was being made
        federator.stop()
    console.tell(f"{config.name}: {config.plan}, {config.rounds.count} rounds, port {federator.port}")
    if exposition is not None:
        metrics.tell(exposition, federator.federation)
    tracked = tracking.Tracking(federator.federation, trackers)
    tracked.start()

    def told(closed: Round) -> None:
        console.tell(round_line(federator.federation, closed))
        tracked.told(closed)

    page = nullcontext() if bound is None else web.serving(federator.federation, bound, options.http_host)
    try:
        with page:
            federator.run(told)
    finally:
        tracked.close()
        if exposition is not None:
            exposition.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
