"""What the way to the federator means: findings of a route's facts, step by step until the first that fails.

Pure functions. The case that costs an evening: a firewall that opens TLS shows a certificate of its own, the daemon
says "handshake failed", and nobody knows which of the two authorities is the stranger. Here it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from feddiff.core import wire
from feddiff.core.errors import (
    ConfigError,
    FedDiffError,
    FederatorUnavailable,
    IdentityError,
    ProtocolError,
)
from feddiff.core.finding import Finding, ok, problem, warning
from feddiff.core.identity import Identity, load_certificate
from feddiff.core.premises import answers_to, certificate, hosts
from feddiff.silo.probe import Answer, Line
from feddiff.silo.route import Route

_OPEN = "have the port opened for outgoing TCP connections to this address, without inspection"


def way(route: Route) -> Iterator[Finding]:
    """Name, proxy and port, as far as one gets."""
    where = f"{route.host} port {route.port}"
    if route.proxy:
        yield warning(
            "proxy",
            f"{route.proxy_variable} is set, so connections to {route.host} go through the proxy {route.proxy}",
            f"if {where} can be reached directly, add {route.host} to no_proxy where the daemon is started",
        )
    elif route.unheeded:
        yield warning(
            "proxy",
            f"{route.unheeded} names a proxy, but gRPC heeds only https_proxy and the like in small letters",
            f"if the proxy is needed to reach {route.host}, set https_proxy where the daemon is started",
        )
    if route.unknown:
        yield problem(
            ConfigError,
            "name",
            f"no address is known for {route.host}: {route.unknown}",
            "check the spelling of --federator and this machine's DNS; without DNS, a line in /etc/hosts will do",
        )
        return
    if route.addresses:
        yield ok("name", f"{route.host} is {', '.join(route.addresses[:4])}")
    if route.refused:
        through = f" through the proxy {route.proxy}" if route.proxy else ""
        if route.timed_out:
            advice = f"nothing came back: a firewall drops it; {_OPEN}"
        elif "refused" in route.refused and not route.proxy:
            advice = "the machine answers, but no federator listens there: is the port right, and is it running?"
        else:
            advice = _OPEN
        yield problem(FederatorUnavailable, "port", f"no connection to {where}{through}: {route.refused}", advice)
        return
    yield ok("port", f"{where} takes connections ({1000 * route.connected_s:.0f} ms)")


def handshake(
    route: Route, known: Sequence[x509.Certificate], expected: bytes | None, now: datetime
) -> Iterator[Finding]:
    """TLS, and whose certificate is shown.

    ``known``: the federation's CAs, as installed here or as answered; ``expected``: the fingerprint of the CA that an
    invitation speaks of. Without either nothing can be compared.
    """
    if route.refused or route.unknown:
        return
    if not route.shown:
        yield problem(
            FederatorUnavailable if route.timed_out else ProtocolError,
            "TLS",
            f"what answers at {route.host} port {route.port} does not speak TLS: {route.insecure or 'no certificate'}",
            "check the port; if it is right, something on the way answers in the federator's place: "
            "ask for the port to be let through without inspection",
        )
        return
    try:
        leaf, *chain = (load_certificate(each) for each in route.shown)
    except IdentityError as error:
        yield problem(IdentityError, "TLS", f"the certificate that is shown cannot be read: {error}", _OPEN)
        return
    stranger = _stranger(route, leaf, chain, known, expected)
    if stranger is not None:
        yield stranger
        return
    whose = f"the federator's certificate (issued by {_name(leaf.issuer)})"
    yield certificate(route.shown[0], now, "TLS", f"{route.tls}, {whose}", "the federation's operator must renew it")
    if not answers_to(leaf, route.host):
        yield problem(
            ConfigError,
            "host name",
            f"the federator's certificate is not for {route.host}, but for {', '.join(hosts(leaf)) or 'no host'}",
            f"give one of these names with --federator, or have the operator add it: init --also {route.host}",
        )
    if not route.http2:
        yield problem(
            ProtocolError,
            "HTTP/2",
            "the other end does not agree on HTTP/2, which gRPC needs",
            "something between here and the federator speaks HTTP/1 only; " + _OPEN,
        )


def _stranger(
    route: Route,
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    known: Sequence[x509.Certificate],
    expected: bytes | None,
) -> Finding | None:
    """Who answers in the federator's place; None if it is the federator, as far as can be known."""
    try:
        role = Identity.from_certificate(route.shown[0]).role
    except IdentityError:
        role = "silo"  # of no federation at all
    trusted = [each for each in known if expected is None or each.fingerprint(hashes.SHA256()) == expected]
    if role == "federator" and (signed_by(leaf, trusted) or not known):
        return None
    authority = next((each for each in reversed(chain) if each.issuer == each.subject), None)
    shown = f"its issuer is {_name(leaf.issuer)}"
    if authority is not None:
        shown += f", CA fingerprint {_print(authority)}"
    ours = " or ".join(f"{_name(each.subject)}, fingerprint {_print(each)}" for each in known)
    if expected is not None and not trusted:
        ours = f"the CA with fingerprint {expected.hex()[:16]}, of which the invitation speaks" + (
            f", and not {ours}" if role == "federator" and ours else ""
        )
    if role == "federator":
        return problem(
            IdentityError,
            "authority",
            f"the federator of another federation answers: {shown}; this silo knows {ours}",
            "if the federation was set up anew, ask its operator for a new invitation; else check --federator",
        )
    return problem(
        IdentityError,
        "authority",
        f"somebody else answers in the federator's place, with a certificate for {_name(leaf.subject)}: {shown}"
        + (f"; expected: {ours}" if ours else "; a federator's is issued by its own federation's CA"),
        "typical of a firewall or proxy that opens TLS: have it let "
        f"{route.host} port {route.port} through without inspection (bypass, pass-through)",
    )


def signed_by(leaf: x509.Certificate, known: Sequence[x509.Certificate]) -> bool:
    """Whether one of these CAs signed a certificate."""
    for authority in known:
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return True
    return False


def answer(found: Answer) -> Iterator[Finding]:
    """Whether the two ends understand each other."""
    versions = f"{found.software} at the federator, {wire.SOFTWARE} here"
    if found.protocol != wire.PROTOCOL:
        yield problem(
            ProtocolError,
            "software",
            f"the federator speaks protocol {found.protocol}, this silo {wire.PROTOCOL} ({versions})",
            f"install {found.software} here",
        )
    elif found.software != wire.SOFTWARE:
        yield warning(
            "software", f"{versions}; both speak protocol {wire.PROTOCOL}", "install the same version at both ends"
        )
    else:
        yield ok("software", f"{found.software} at both ends, protocol {wire.PROTOCOL}")


def silence(error: FedDiffError, enrolled: bool) -> Finding:
    """What it means that the federator's port is there, but a question to it failed."""
    if isinstance(error, FederatorUnavailable):
        whose = "this silo's certificate" if enrolled else "the invitation"
        return problem(
            IdentityError if "handshake" in str(error).lower() or "closed" in str(error).lower() else type(error),
            "federator",
            f"the federator ends the connection when it is shown {whose} ({error})",
            "ask the federation's operator whether this silo was evicted or the invitation replaced; its log says why",
        )
    if isinstance(error, ProtocolError):
        return problem(
            ProtocolError,
            "software",
            f"the federator's software does not know how to be examined: {error}",
            "it is older than this silo's: install the same version at both ends",
        )
    return problem(type(error), "federator", error.sentence, "ask the federation's operator for a new invitation")


def line(found: Line) -> Finding:
    """How fast the line is."""
    rates = {"down_mbit_s": found.down * 8e-6, "up_mbit_s": found.up * 8e-6}
    words = ", ".join(f"{_rate(rate)} Mbit/s {way}" for rate, way in zip(rates.values(), ("down", "up"), strict=True))
    told = f"at least {words}, {1000 * found.round_trip_s:.0f} ms there and back"
    return ok("line", f"{told} (measured with {found.moved / 1e6:.1f} MB)", **rates, round_trip_s=found.round_trip_s)


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _name(name: x509.Name) -> str:
    return repr(name.rfc4514_string()[:120])


def _print(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()[:16]
