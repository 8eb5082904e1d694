"""Who may send: what is signed, from where, and how often."""

import hmac
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import limits
from schemas.errors import Refused
from schemas.links import Advertiser
from tracker.senders import PAGES, SERVERS, Rates, check_signature, is_within, without_signature

NETWORKS = ("192.0.2.0/24", "2001:db8::/32", "198.51.100.7")
SENT = b"click_id=x&order_id=1"


def advertiser(**fields: Any) -> Advertiser:
    return Advertiser(**{"v": (1, 1), "id": 1, "status": "active"} | fields)


@pytest.mark.parametrize(
    ("ip", "within"),
    [
        ("192.0.2.1", True), ("192.0.3.1", False), ("198.51.100.7", True), ("198.51.100.8", False),
        ("::ffff:192.0.2.9", True), ("2001:db8::1", True), ("2001:db8::1%eth0", True), ("2001:db9::1", False),
        ("", False), ("192.0.2", False), ("192.0.2.1, 10.0.0.1", False), ("x", False),
    ],
)  # fmt: skip
def test_an_address_is_within_its_networks_or_it_is_not(ip: str, within: bool) -> None:
    assert is_within(ip, NETWORKS) is within
    assert not is_within(ip, ())


def signature(key: str, sent: bytes = SENT) -> str:
    return hmac.new(key.encode(), sent, sha256).hexdigest()


RIGHT = signature("key")
ACCEPTED = {
    "none, none wanted": ({}, ""),
    "one that means something else": ({}, "mine"),
    "none, with a key": ({"signing_key": "key"}, ""),
    "a right one": ({"signing_key": "key"}, RIGHT),
    "a right one in capitals": ({"signing_key": "key", "signature_required": True}, RIGHT.upper()),
}
REFUSED = {
    "none": ({"signing_key": "key", "signature_required": True}, ""),
    "a wrong one where none is needed": ({"signing_key": "key"}, signature("kez")),
    "of something else": ({"signing_key": "key"}, signature("key", SENT + b"&")),
    "one too short": ({"signing_key": "key", "signature_required": True}, RIGHT[:-1]),
    "no ASCII": ({"signing_key": "key"}, "ä" * 64),
    "a lone surrogate": ({"signing_key": "key"}, "\udcff" * 64),
    "one needed, and no key to make it with": ({"signature_required": True}, ""),
    "that of an empty key": ({"signature_required": True}, signature("")),
    "that of an empty key, which is none": ({"signature_required": True, "signing_key": ""}, signature("")),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_signed_as_its_advertiser_wants_it_is_taken(name: str) -> None:
    fields, given_ = ACCEPTED[name]
    check_signature(advertiser(**fields), SENT, given_)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_refused(name: str) -> None:
    fields, given_ = REFUSED[name]
    with pytest.raises(Refused) as refusal:
        check_signature(advertiser(**fields), SENT, given_)
    assert refusal.value.code == "wrong_signature"


@pytest.mark.parametrize(
    ("text", "signed"),
    [
        ("a=1&signature=f00&b=2", b"a=1&b=2"),
        ("signature=f00&a=1", b"a=1"),
        ("a=1&SIGNATURE=f00", b"a=1"),
        ("a=1&signatures=f00&xsignature=1", b"a=1&signatures=f00&xsignature=1"),
        ("a=%C3%BC&b=signature=1", b"a=%C3%BC&b=signature=1"),
        ("", b""),
    ],
)
def test_all_is_signed_but_the_signature_itself(text: str, signed: bytes) -> None:
    assert without_signature(text) == signed


@given(st.lists(st.tuples(st.integers(0, 300_000), st.sampled_from([SERVERS, PAGES]), st.integers(1, 5))))
def test_in_no_minute_are_more_taken_than_agreed_and_one_batch(said: list[tuple[int, str, int]]) -> None:
    rates, of = Rates(), advertiser(postbacks_per_minute=3)
    taken: dict[tuple[int, str], int] = {}
    for at_ms, doors, n in sorted(said):
        key = (at_ms // 60_000, doors)
        after_s = refused_for_s(rates, of, doors, n, at_ms)
        assert (after_s is not None) == (taken.get(key, 0) >= 3)
        if after_s is None:
            taken[key] = taken.get(key, 0) + n
        else:
            assert 1 <= after_s <= 60
            assert (at_ms + after_s * 1000) // 60_000 == key[0] + 1


def refused_for_s(rates: Rates, of: Advertiser, doors: str, n: int, at_ms: int) -> int | None:
    try:
        rates.take(of, doors, n, at_ms)
    except Refused as refusal:
        return int(refusal.headers["Retry-After"])
    return None


def test_pages_that_anybody_can_speak_for_get_less_than_servers() -> None:
    rates, of = Rates(), advertiser()
    rates.take(of, SERVERS, limits.POSTBACKS_PER_MINUTE - 1, 0)
    rates.take(of, SERVERS, 1, 0)
    taken = [is_taken(rates, of, f"192.0.{n % 50}.0") for n in range(limits.PAGES_PER_MINUTE + 100)]
    assert taken == [True] * limits.PAGES_PER_MINUTE + [False] * 100


def test_one_network_cannot_use_up_what_all_pages_may_send() -> None:
    rates, of = Rates(), advertiser()
    taken = [is_taken(rates, of, "192.0.2.0") for _ in range(limits.PAGES_PER_MINUTE)]
    assert sum(taken) == limits.PAGES_OF_NETWORK_PER_MINUTE
    assert is_taken(rates, of, "198.51.100.0")
    assert is_taken(rates, advertiser(id=2), "192.0.2.0")
    assert len(rates.taken) == 5


def is_taken(rates: Rates, of: Advertiser, network: str) -> bool:
    try:
        rates.take_page(of, network, 0)
    except Refused:
        return False
    return True


def test_each_advertiser_has_its_own_minute() -> None:
    rates = Rates()
    for advertiser_id in (1, 2):
        rates.take(advertiser(id=advertiser_id, postbacks_per_minute=1), SERVERS, 1, 0)
    with pytest.raises(Refused):
        rates.take(advertiser(id=2, postbacks_per_minute=1), SERVERS, 1, 59_999)
    rates.take(advertiser(id=2, postbacks_per_minute=1), SERVERS, 1, 60_000)
    assert len(rates.taken) == 1
