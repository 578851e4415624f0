from __future__ import annotations

import ipaddress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddiff.federator.traffic import peer_connection


@pytest.mark.parametrize(
    ("peer", "connection"),
    [
        ("ipv4:127.0.0.1:4711", ("127.0.0.1", 4711)),
        ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
        ("ipv6:[::1]:4711", ("::1", 4711)),
        ("ipv6:%5B2001:0DB8:0:0::1%5D:4711", ("2001:db8::1", 4711)),
        # A dual-stack socket's IPv4 peer is the one that the kernel lists, by either name.
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", ("192.0.2.7", 4711)),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", ("fe80::1", 4711)),
        ("unix:/run/feddiff.sock", None),
        ("unix:", None),
        ("vsock:3:4711", None),
        ("ipv4:127.0.0.1", None),
        ("ipv4:127.0.0.1:", None),
        ("", None),
    ],
)
def test_a_peer_as_grpc_writes_it(peer: str, connection: tuple[str, int] | None) -> None:
    assert peer_connection(peer) == connection


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    if address.version == 4:
        assert peer_connection(f"ipv4:{address}:{port}") == (str(address), port)
    else:
        found = peer_connection(f"ipv6:{quote(f'[{address.exploded}]', safe=':')}:{port}")
        assert found == (str(address.ipv4_mapped or address), port)
