"""``feddiff-silo``: everything an institution types.

Only parses and prints; imports what a command needs when it needs it, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

from feddiff.core import console
from feddiff.silo import checkup
from feddiff.silo.peers.options import add_listening, circle
from feddiff.silo.source import Source, add_options


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="feddiff-silo",
        description="Takes part in a federation: trains on this institution's images, sends weights, never an image.",
    )
    root.add_argument("--data", type=Path, metavar="FOLDER", help="images; sub-folders are class labels")
    root.add_argument("--federator", metavar="HOST:PORT", help="where the federator is")
    root.add_argument("--join", metavar="TOKEN", help="the invitation; needed the first time only")
    root.add_argument(
        "--extractor",
        type=Path,
        metavar="FILE.pt",
        help="consent to measure with this network, and to tell the federator what its rules ask for: numbers of this"
        " silo's model, moments of its images' features (a federated reference), a grid of its model's samples",
    )
    root.add_argument(
        "--accept-pool",
        action="store_true",
        help="consent to train on public images that the federator gives (rules with a table [pool]), beside one's own",
    )
    root.add_argument(
        "--processes", type=int, metavar="N", help="train with so many together (default: one for each GPU, or one)"
    )
    add_listening(root)
    root.add_argument("--metrics", metavar="HOST:PORT", help="tell Prometheus here, e.g. 127.0.0.1:9465")
    root.add_argument("--verbose", action="store_true")
    root.add_argument("--log", choices=("text", "json"), default="text", help="how log lines look (default: text)")
    add_options(root)
    state = argparse.ArgumentParser(add_help=False)
    for each in (root, state):
        each.add_argument(
            "--state",
            type=Path,
            metavar="FOLDER",
            default=argparse.SUPPRESS,
            help="where keys and weights are kept (default: $STATE_DIRECTORY, or a folder for this federator"
            " under ~/.local/state/feddiff)",
        )
    commands = root.add_subparsers(dest="command", metavar="[COMMAND]")
    join = commands.add_parser("join", parents=[state], help="enrol with an invitation, and stop there")
    join.add_argument("token")
    request = commands.add_parser(
        "request", parents=[state], help="where no token can be pasted: write a file that asks to be enrolled"
    )
    request.add_argument("name", help="what this silo is to be called")
    request.add_argument("--federator", metavar="HOST:PORT", required=True)
    request.add_argument("--ca-fingerprint", metavar="HEX", required=True, help="as the federation's operator tells it")
    request.add_argument("--out", type=Path, required=True, metavar="FILE")
    install = commands.add_parser("install", parents=[state], help="enrol with the grant that came back")
    install.add_argument("grant", type=Path)
    install.add_argument("--federator", metavar="HOST:PORT", default=argparse.SUPPRESS)
    for name, text in (
        ("sample", "draw images from this silo's own model"),
        ("export", "write this silo's own model as a folder of safetensors, a UNet's for diffusers"),
    ):
        command = commands.add_parser(name, parents=[state], help=text)
        command.add_argument("--federator", metavar="HOST:PORT", default=argparse.SUPPRESS)
        if name == "sample":
            command.add_argument(
                "--out",
                type=Path,
                required=True,
                metavar="GRID.PNG|FOLDER",
                help="one picture of images of its own model; or a folder LABEL/IMAGE of images to train on, of the"
                " newest published model that it holds, or its own where the plan has no global one",
            )
            command.add_argument("--count", type=int, help="default: 64, or with --balance all that it lacks")
            asked = command.add_mutually_exclusive_group()
            asked.add_argument("--labels", metavar="A,B", help="of these classes (default: all, in turn)")
            asked.add_argument(
                "--balance", type=Path, metavar="DATA", help="what its images in DATA lack of each class"
            )
            command.add_argument("--guidance", type=float, metavar="S", help="instead of the rules' diffusion.guidance")
            command.add_argument("--steps", type=int, default=50)
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--scale", type=int, default=1, help="enlarge each pixel")
            add_options(command, command=True, labels=False)
        else:
            command.add_argument("folder", type=Path)
    personal = commands.add_parser(
        "personalise",
        parents=[state],
        help="go on training the federation's model on this silo's images alone, and write it as `export` does",
        description="Goes on training the federation's model on this silo's images alone; asks nobody, and changes"
        " nothing of the silo's state. What was interrupted goes on with the same command.",
    )
    personal.add_argument("--federator", metavar="HOST:PORT", default=argparse.SUPPRESS)
    personal.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="images, as for the daemon")
    personal.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, as `export` writes")
    personal.add_argument(
        "--from",
        dest="published",
        type=Path,
        metavar="MODEL",
        help="begin with this: the folder that `feddiff-federator export` wrote (default: the newest that was sent)",
    )
    which = personal.add_mutually_exclusive_group()
    which.add_argument("--segments", nargs="+", default=[], metavar="SEGMENT", help="train these alone, e.g. decoder")
    which.add_argument("--frozen", type=int, default=0, metavar="N", help="train all but the first N segments")
    personal.add_argument("--epochs", type=int, default=10, help="over the images (default: 10)")
    personal.add_argument("--learning-rate", type=float, help="default: the federation's")
    add_options(personal, command=True)
    checkup.add(commands, state)
    return root


def main(arguments: list[str] | None = None) -> int:
    root = parser()
    options = root.parse_args(arguments)
    if options.command is None and (options.data is None or options.federator is None):
        root.error("--data and --federator are both needed")
    if options.processes is not None and options.processes < 1:
        root.error(f"--processes must be at least 1 (got {options.processes})")
    return console.run("feddiff-silo", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.command == "join":
        from feddiff.core.identity import Invitation
        from feddiff.silo import enroll
        from feddiff.silo.local import Local

        console.log_lines(options.verbose, options.log)
        invitation = Invitation.parse(options.token)
        folder = _state(options, invitation.address)
        with contextlib.closing(Local(folder)):
            name = enroll.join(invitation, folder, invitation.address)
        print(f"{name} is enrolled; run: feddiff-silo --data FOLDER --federator {invitation.address}")
        return 0
    if options.command in ("request", "install"):
        return _enrol_by_files(options)
    if options.command in ("sample", "export"):
        from feddiff.silo import model

        folder = _state(options, options.federator)
        if options.command == "export":
            print(f"{options.folder}: {model.export(folder, options.folder)}")
        else:
            print(_sample(folder, options))
        return 0
    if options.command == "personalise":
        return _personalise(options)
    if options.command == "doctor":
        return checkup.run(options, partial(_state, options))
    return _take_part(options)


def _enrol_by_files(options: argparse.Namespace) -> int:
    from feddiff.silo import request
    from feddiff.silo.local import Local

    folder = _state(options, options.federator)
    with contextlib.closing(Local(folder)):
        if options.command == "request":
            print(request.ask(folder, options.name, options.federator, options.ca_fingerprint, options.out))
        else:
            print(request.install(folder, options.grant))
    return 0


def _personalise(options: argparse.Namespace) -> int:
    from feddiff.silo.personalise import Chosen, personalise

    console.log_lines(options.verbose, options.log)
    state = _state(options, options.federator)
    chosen = Chosen(options.segments, options.frozen, options.epochs, options.learning_rate)
    data = Source.chosen(options.data, options)
    personalise(state, data, options.out, chosen, lambda line: print(line, flush=True), options.published)
    return 0


def _sample(folder: Path, options: argparse.Namespace) -> str:
    """Draw a picture, or a folder of images; returns a line about it."""
    from feddiff.core.errors import ConfigError
    from feddiff.silo import model, synthetic

    labels = None if options.labels is None else [each.strip() for each in options.labels.split(",")]
    if not options.out.suffix:
        how = synthetic.Drawing(options.steps, options.seed, options.guidance)
        data = None if options.balance is None else Source.chosen(options.balance, options)
        return synthetic.draw(folder, options.out, options.count, how, labels, data)
    if options.balance is not None:
        raise ConfigError(f"--balance draws images to train on; give a folder's name instead of --out {options.out}")
    count = 64 if options.count is None else options.count
    model.sample(folder, options.out, count, options.steps, options.seed, options.scale, options.guidance, labels)
    return f"{count} images in {options.out}"


def _state(options: argparse.Namespace, address: str | None) -> Path:
    """The state folder. Raises ConfigError, StoreError."""
    from feddiff.silo import place

    return place.state_folder(getattr(options, "state", None), address)


def _take_part(options: argparse.Namespace) -> int:
    import signal
    import threading

    console.one_heap()
    console.log_lines(options.verbose, options.log)
    from feddiff.core.identity import Invitation, parse_address
    from feddiff.silo import enroll, place
    from feddiff.silo.collection import check
    from feddiff.silo.local import DECODED, Local, read_identity

    parse_address(options.federator)
    options.join = options.join or enroll.handed_over()
    data = Source.chosen(options.data, options)
    data.check_folder()
    folder = _state(options, options.federator)
    place.check_apart(folder, options.data)
    check(data)
    invitation = None if options.join is None else Invitation.parse(options.join)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if invitation is None:
        read_identity(folder)  # without an identity nothing is made there
    local = Local(folder)
    enrolled = (folder / "identity.json").exists()
    # The same token may stay in a unit file; a new one is the way back in after an eviction or an expired certificate.
    if invitation is not None and not (enrolled and read_identity(folder)[1] == enroll.spent(invitation)):
        enroll.join_patiently(invitation, folder, options.federator, stopping)
    if stopping.is_set():
        return 0
    name, _ = read_identity(folder)

    from feddiff.silo import metrics
    from feddiff.silo.client import Client
    from feddiff.silo.daemon import Silo
    from feddiff.silo.display import Display
    from feddiff.silo.learner import ImageLearner

    display = Display()
    client = Client(options.federator, folder)
    make_learner = partial(
        ImageLearner, data=data, extractor=options.extractor, processes=options.processes, cache=folder / DECODED
    )
    others = circle(options, name, local, client)
    silo = Silo(name, local, client, make_learner, display, options.accept_pool, others)
    exposition = None if options.metrics is None else metrics.expose(options.metrics, folder, silo, client)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: silo.stop())
    if stopping.is_set():  # the signal came while the silo was being made
        silo.stop()
    try:
        if silo.run():
            rules = local.rules()
            last = "; its last model is the federator's to give (`feddiff-federator export`)"
            console.tell(f"{name}: the federation is finished{last if rules and rules.has_global_model else ''}")
    finally:
        if exposition is not None:
            exposition.close()
        display.close()
        client.close()
        local.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
