"""Who a visitor is behind proxies: believed from those that are named, and from nobody else."""

import tracemalloc
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults import edges
from loadtests.faults.edges import Filled, ask, request
from schemas.events import Click
from schemas.limits import FORWARDED_MAX
from schemas.settings import BadSettings
from tracker.proxies import client_ip, client_scheme

TRUSTED = frozenset(map(ip_network, ("10.0.0.0/8", "2001:db8::/32")))
VISITOR = "198.51.100.7"


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("10.0.0.1", VISITOR, VISITOR),
        ("10.0.0.1", "", "10.0.0.1"),
        ("192.0.2.1", VISITOR, "192.0.2.1"),
        ("10.0.0.1", f"1.1.1.1, {VISITOR}", VISITOR),
        ("10.0.0.1", f"1.1.1.1, {VISITOR}, 10.2.2.2 , 10.3.3.3", VISITOR),
        ("10.0.0.1", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
        ("10.0.0.1", f"{VISITOR}:4711", VISITOR),
        ("10.0.0.1", "[2a00::1]:4711", "2a00::1"),
        ("10.0.0.1", "[2a00::1]", "2a00::1"),
        ("10.0.0.1", "2A00:0::1", "2a00::1"),
        ("10.0.0.1", "::ffff:198.51.100.7", VISITOR),
        ("::ffff:10.0.0.1", VISITOR, VISITOR),
        ("2001:db8::9", f"{VISITOR}, 2001:db8::1", VISITOR),
        ("10.0.0.1", f"{VISITOR}, unknown", "10.0.0.1"),
        ("10.0.0.1", f"{VISITOR}, unix:, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", f"{VISITOR},, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "1.2.3.4.5", "10.0.0.1"),
        ("10.0.0.1", "'; DROP TABLE click; --", "10.0.0.1"),
        ("", VISITOR, ""),  # a unix socket
        ("/run/edge.sock", VISITOR, "/run/edge.sock"),
        ("10.0.0.1", VISITOR + ", 10.2.2.2" * 300, "10.2.2.2"),
        ("10.0.0.1", "1" * FORWARDED_MAX, "10.0.0.1"),
    ],
)
def test_the_visitor_is_the_right_most_address_that_is_no_proxy_of_ours(peer: str, forwarded: str, found: str) -> None:
    assert client_ip(peer, forwarded, TRUSTED) == found


def test_what_a_visitor_writes_is_not_held_however_much_it_is() -> None:
    """As keys of a cache, headers of 8 kB would come to hundreds of MB."""
    tracemalloc.start()
    for n in range(500):
        assert client_ip("10.0.0.1", f"{n}," * 2_000 + VISITOR, TRUSTED) == VISITOR
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 500 * 2 * FORWARDED_MAX


addresses = st.ip_addresses().map(str)
entries = st.lists(addresses | st.text(alphabet="0123456789abcdef.:[]% ", max_size=20), max_size=6)


@given(entries, st.ip_addresses(v=4).filter(lambda ip: ip not in ip_network("10.0.0.0/8")).map(str))
def test_nothing_that_a_visitor_writes_makes_him_another(forged: list[str], visitor: str) -> None:
    assert client_ip("10.0.0.1", ",".join([*forged, visitor, "10.9.9.9"]), TRUSTED) == visitor


@given(entries, addresses)
def test_nobody_is_believed_unless_he_is_named(forged: list[str], peer: str) -> None:
    assert client_ip(peer, ",".join(forged), frozenset()) == peer
    if not any(ip_address(peer) in network for network in TRUSTED):
        assert client_ip(peer, ",".join(forged), TRUSTED) == peer


@pytest.mark.parametrize(
    ("peer", "said", "found"),
    [
        ("10.0.0.1", "https", "https"),
        ("10.0.0.1", "http, HTTPS", "https"),
        ("10.0.0.1", "gopher", "http"),
        ("10.0.0.1", "", "http"),
        ("192.0.2.1", "https", "http"),
    ],
)
def test_the_scheme_is_that_which_a_trusted_proxy_was_asked_by(peer: str, said: str, found: str) -> None:
    assert client_scheme(peer, "http", said, TRUSTED) == found


@pytest.mark.parametrize(("trusted", "network"), [("127.0.0.0/8,::1", "198.51.100.0"), ("", "127.0.0.0")])
async def test_an_edge_records_the_network_of_the_visitor_behind_its_proxies(
    tmp_path: Path, redis_url: str, publisher: Filled, trusted: str, network: str
) -> None:
    async with edges.running_edge(edges.settings(tmp_path, redis_url, trusted_proxies=trusted)) as running:
        headers = {"X-Forwarded-For": f"8.8.8.8, {VISITOR}"}
        assert (await ask(running.port, request("/c/demo", headers=headers))).status == 302
    clicks = [event for event in running.wrote() if isinstance(event, Click)]
    assert [click.ip for click in clicks] == [network]


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "proxy.internal", "10.0.0.0/8,", "10.0.0.0/33", "*"])
def test_what_is_no_network_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(BadSettings, match=r"CLICKDAM_TRUSTED_PROXIES.*must be networks"):
        edges.settings(tmp_path, "redis://127.0.0.1:1", trusted_proxies=wrong)
