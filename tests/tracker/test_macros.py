"""Macros fill path, query and fragment, percent-encoded, once."""

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults.edges import offer, programme
from schemas.limits import VALUE_MAX
from schemas.links import Partner
from tracker import params
from tracker.macros import compile_url, compiled, fill, pass_on, referer_host, without_parameter
from tracker.steps import Click, Target
from tracker.visitor import Agent, Place

NOW = 1_795_399_200_000  # 2026-11-23T02:00:00Z
TARGET = Target(
    programme(), None, offer(7, name="Größe & more", advertiser_id=3),
    Partner(v=(1, 1), id=5, name="P & Q", status="active"),
)  # fmt: skip
SUBS = {f"sub{n}": f"value {n}" for n in range(1, 11)}
SAID = SUBS | {
    "source_id": "news", "click_ref": "r&1", "coupon_code": "X", "creative_id": "b", "uid": "u", "gclid": "g",
    "gbraid": "gb", "wbraid": "wb", "fbclid": "f", "msclkid": "m", "ttclid": "t", "li_fat_id": "l", "twclid": "tw",
}  # fmt: skip


def click(**fields: Any) -> Click:
    seen: dict[str, Any] = {
        "at_ms": NOW, "ip": "203.0.113.77", "user_agent": "Mozilla/5.0 (X)", "referer": "https://me@blog.example/a?b=c",
        "query": "", "params": SAID, "place": Place("203.0.113.0", "US"), "agent": Agent("mobile", "iOS", "Safari"),
    }  # fmt: skip
    return Click(**(seen | fields))


def expand(url: str, said: dict[str, str] | None = None, parameter: str = "click_id", **fields: Any) -> str:
    clicked = click(**fields) if said is None else click(params=said, **fields)
    return fill(compile_url(url, parameter), clicked, TARGET, "CLICK")


# conventions of the field, name by name
MACROS = {
    "click_id": "CLICK", "transaction_id": "CLICK", "clickid": "CLICK", "subid": "CLICK",
    "offer_id": "7", "offer_name": "Größe & more", "affiliate_id": "5", "affiliate_name": "P & Q", "advertiser_id": "3",
    **SAID,
    "country": "US", "device": "mobile", "os": "iOS", "browser": "Safari", "ip": "203.0.113.0",
    "user_agent": "Mozilla/5.0 (X)", "referer": "blog.example",
    "timestamp": "1795399200", "datetime": "2026-11-23T02:00:00Z", "date": "2026-11-23",
    # what we do not look up
    "region": "", "city": "", "unique_click": "",
    # what only a postback has
    **dict.fromkeys(
        "conversion_id transaction_id_adv order_id event_id event_name status status_detail payout payout_amount sum "
        "amount sale_amount currency adv1 adv2 adv3 adv4 adv5 delta_payout".split(), ""
    ),
    "raw:sub1": "", "raw:url": "", "url": "", "path": "", "nothing": "", "qr": "",
    # other trackers' names
    "aff_id": "5", "affid": "5", "pid": "5", "t202pubid": "5", "oid": "7", "aff_sub": "value 1", "aff_sub5": "value 5",
    "sub_id_1": "value 1", "sub_id_10": "value 10", "SubId3": "value 3", "c1": "value 1", "c4": "value 4",
    "s5": "value 5", "data2": "value 2", "source": "news", "aff_click_id": "r&1", "externalid": "r&1", "ref_id": "r&1",
    "promo_code": "X", "a_bid": "b", "url_id": "u",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MACROS.items())
def test_every_macro_of_the_field_brings_what_it_says_percent_encoded(name: str, value: str) -> None:
    for written in (f"{{{name}}}", f"{{{name.upper()}}}"):
        assert expand(f"https://s.example/?p={{click_id}}&v={written}&e=1") == (
            f"https://s.example/?p=CLICK&v={quote(value, safe='')}&e=1"
        )
    if ":" not in name:
        assert expand(f"https://s.example/[[{name}]]?p={{click_id}}") == (
            f"https://s.example/{quote(value, safe='')}?p=CLICK"
        )


@pytest.mark.parametrize("alias", sorted(set(params.ALIASES) - {"dub-no-track"}))
def test_every_alias_of_a_parameter_is_one_of_its_macro(alias: str) -> None:
    name = params.ALIASES[alias]
    known = MACROS.get(name, "")
    assert expand(f"https://s.example/?p={{click_id}}&v={{{alias}}}").endswith(f"&v={quote(known, safe='')}")


def test_a_random_number_is_another_one_each_time() -> None:
    found = {expand("https://s.example/?p={click_id}&r={random}") for _ in range(20)}
    assert len(found) > 15
    assert all(url.rpartition("=")[2].isdigit() for url in found)


@pytest.mark.parametrize("name", ["offer_name", "affiliate_name", "advertiser_id"])
def test_a_deep_link_cannot_ask_what_only_the_operator_may_say(name: str) -> None:
    assert expand(f"https://s.example/?p={{click_id}}&v={{{name}}}", deep_link=True) == (
        "https://s.example/?p=CLICK&v="
    )


def test_without_an_offer_and_a_partner_their_macros_are_empty() -> None:
    url = "https://s.example/?{offer_id}{offer_name}{advertiser_id}{affiliate_id}{affiliate_name}"
    assert fill(compiled(url, ""), click(), Target(programme()), "CLICK") == "https://s.example/?"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://s.example/[[click_id]]/x", "https://s.example/CLICK/x"),
        ("https://s.example/?p={click_id}#{source_id}", "https://s.example/?p=CLICK#news"),
        ("https://s.example/#{click_id}", "https://s.example/#CLICK"),
        ("https://s.example/{click_id}{uid}{uid}", "https://s.example/CLICKuu"),
        ("https://s.example/?p={click_id}&a={}&b={a b}&c={é}", "https://s.example/?p=CLICK&a={}&b={a%20b}&c={%C3%A9}"),
        ("https://s.example/münchen?p={click_id}", "https://s.example/m%C3%BCnchen?p=CLICK"),
        ("https://s.example/%20?p={click_id}", "https://s.example/%20?p=CLICK"),
        ("https://{sub1}.example/{click_id}", "https://{sub1}.example/CLICK"),
        ("https://s.example:{sub1}/{click_id}", "https://s.example:{sub1}/CLICK"),
    ],
)
def test_a_macro_is_replaced_from_the_path_on(url: str, expected: str) -> None:
    assert expand(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://s.example", "https://s.example?click_id=CLICK"),
        ("https://s.example/", "https://s.example/?click_id=CLICK"),
        ("https://s.example/?", "https://s.example/?click_id=CLICK"),
        ("https://s.example/?a=1", "https://s.example/?a=1&click_id=CLICK"),
        ("https://s.example/?a=1&", "https://s.example/?a=1&click_id=CLICK"),
        ("https://s.example/?a={uid}#f?g", "https://s.example/?a=u&click_id=CLICK#f?g"),
        ("https://s.example/#f", "https://s.example/?click_id=CLICK#f"),
    ],
)
def test_a_destination_without_the_click_id_gets_it_as_its_last_parameter(url: str, expected: str) -> None:
    assert expand(url) == expected
    assert expand(url, parameter="cid") == expected.replace("click_id=", "cid=")
    assert expand(url, parameter="") == quote(url, safe=":/?=&#{}").replace("{uid}", "u")


@pytest.mark.parametrize("written", ["cid=", "cid", "CID=old", "c%69d=old", "cid=&cid=old", "cid={sub1}"])
def test_a_click_id_is_there_once_also_where_its_place_was_left_open(written: str) -> None:
    """Of two, many servers read the first."""
    assert expand(f"https://s.example/?a=1&{written}#f", parameter="cid") == "https://s.example/?a=1&cid=CLICK#f"
    assert expand(f"https://s.example/?{written}&p={{clickid}}", parameter="cid").count("CLICK") == 1


def test_what_a_macro_brings_is_never_expanded_again() -> None:
    assert expand("https://s.example/{sub1}?p={click_id}", {"sub1": "{sub2}[[sub2]]", "sub2": "secret"}) == (
        "https://s.example/%7Bsub2%7D%5B%5Bsub2%5D%5D?p=CLICK"
    )


def test_macros_that_only_come_about_by_joining_are_not_macros() -> None:
    assert expand("https://s.example/?p={click_id}&{s{sub1}}", {"sub1": "ub2", "sub2": "no"}) == (
        "https://s.example/?p=CLICK&{sub2}"
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_arrives_as_it_was_and_changes_nothing_around_it(value: str) -> None:
    found = urlsplit(expand("https://s.example/a/{sub1}/b?x={sub1}&p={click_id}", {"sub1": value}))
    assert (found.scheme, found.netloc, found.fragment) == ("https", "s.example", "")
    assert found.path.startswith("/a/")
    assert found.path.endswith("/b")
    assert found.path.count("/") == 3
    assert parse_qs(found.query, keep_blank_values=True) == {"x": [value], "p": ["CLICK"]}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("color=red&Size=4", "&color=red&Size=4"),
        ("color=r%20e%26d", "&color=r%20e%26d"),
        ("color=red&color=blue", "&color=red"),
        ("color=", "&color="),
        ("a1=theirs&A1=theirs", ""),
        ("click_id=forged&Click_ID=forged", ""),
        ("click.id=forged&click_id%5B%5D=forged&click%20id=forged&%20click_id=forged&click_id%00=forged", ""),
        ("sub1=x&aff_sub=x&offer_id=1&oid=1&url=x&redir_url=x&path=x&bot=1&no_track=1&qr=1&key=x&t202id=x", ""),
        ("gclid=g&utm_source=s&utm_medium=m", "&gclid=g&utm_source=s&utm_medium=m"),
        ("x" * 65 + "=1", ""),
    ],
)
def test_what_passes_to_a_destination_are_plain_parameters_that_neither_we_nor_it_know(
    query: str, expected: str
) -> None:
    assert pass_on("https://s.example/?a1=ours&click_id=CLICK#f", query) == (
        f"https://s.example/?a1=ours&click_id=CLICK{expected}#f"
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://s.example/?click_id=old&a=1&CLICK_ID=x&click%5Fid=y#click_id=z", "https://s.example/?a=1#click_id=z"),
        ("https://s.example/?click_id", "https://s.example/?"),
        ("https://s.example/click_id=1", "https://s.example/click_id=1"),
        ("https://s.example/?a=1&&b", "https://s.example/?a=1&&b"),
    ],
)
def test_an_old_click_id_is_taken_out_of_a_query(url: str, expected: str) -> None:
    assert without_parameter(url, "click_id") == expected


@pytest.mark.parametrize(
    ("referer", "host"),
    [
        ("https://blog.example/a/b?name=me#x", "blog.example"),
        ("https://me:secret@Blog.example:8080/", "blog.example"),
        ("", ""),
        ("nonsense", ""),
        ("http://[::1", ""),
        ("https://" + "x" * 5000, "x" * VALUE_MAX),
        ("android-app://com.x/", "com.x"),
    ],
)
def test_of_a_referer_the_host_is_kept_and_nothing_more(referer: str, host: str) -> None:
    assert referer_host(referer) == host
