"""What the administrator of a silo says about other silos: whether it listens for them, and if it may send to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feddiff.silo.client import Client
    from feddiff.silo.local import Local
    from feddiff.silo.peers.circle import Circle


def add_listening(parser: argparse.ArgumentParser) -> None:
    """The options of a federation whose silos average for each other (docs/peer.md)."""
    parser.add_argument("--listen", metavar="HOST:PORT", default="", help="a port for other silos, if silos average")
    parser.add_argument("--advertise", metavar="HOST:PORT", default="", help="where they reach it (default: --listen)")
    parser.add_argument(
        "--accept-peers",
        action="store_true",
        help="send to other silos and fetch from them without listening, where the federation allows it",
    )


def circle(options: argparse.Namespace, name: str, local: Local, client: Client) -> Circle:
    """This silo among others, as the options say. Raises ConfigError."""
    from feddiff.silo.peers.circle import Circle

    said = (options.listen, options.advertise, options.accept_peers)
    return Circle(name, local, options.federator, *said, renewal=client.renewal)
