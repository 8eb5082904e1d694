"""Each vendor's documented postbacks mean what that vendor means."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from loadtests.faults import edges
from schemas import click_id, events
from schemas.click_id import ClickKey
from schemas.conversions.dialects import DIALECTS, IGNORED, OWN, click_parameters, paths, token_parameters
from schemas.conversions.posted import Posted
from schemas.conversions.reading import ADV, click_candidates, posted_form, read_form, token_of
from schemas.errors import Refused
from schemas.money import major_to_minor
from schemas.outcomes import Status

# As the vendors' pages write them (they are named in the data files), placeholders filled in.
DOCUMENTED: list[tuple[str, str, dict[str, Any]]] = [
    (
        "everflow", "https://trk.example/?nid=12&transaction_id=a1b2c3d4e5f64b7890a1b2c3d4e5f678",
        {"click_id": "a1b2c3d4e5f64b7890a1b2c3d4e5f678"},
    ),
    (
        "everflow", "https://trk.example/?nid=12&transaction_id=abc&amount=12,34&adv1=x&adv2=y&adv5=z",
        {"click_id": "abc", "amount": "12,34", "adv": {"adv1": "x", "adv2": "y", "adv5": "z"}},
    ),
    (
        "everflow",
        "https://trk.example/?nid=12&oid=7&transaction_id=abc&event_id=3&order_id=o1&coupon_code=SAVE&user_id=u",
        {"click_id": "abc", "event": "3", "order_id": "o1", "coupon_code": "SAVE", "customer_id": "u"},
    ),
    ("everflow", "https://trk.example/?nid=1&transaction_id=abc&adv_event_id=9", {"click_id": "abc", "event": "9"}),
    ("everflow", "https://trk.example/?nid=1&transaction_id=a&event_id=0", {"click_id": "a", "event": "sale"}),
    (
        "tune", "http://examplenetwork.go2cloud.org/aff_lsr?offer_id=26&transaction_id=1027c887059b47bc69c699f45466b9",
        {"click_id": "1027c887059b47bc69c699f45466b9"},
    ),
    (
        "tune", "http://demo.go2cloud.org/aff_lsr?transaction_id=t&amount=9.99&adv_sub=s1&adv_sub2=s2&adv_unique1=u1",
        {"click_id": "t", "amount": "9.99", "adv": {"adv1": "s1", "adv2": "s2", "adv6": "u1"}},
    ),
    (
        "tune", "http://demo.go2cloud.org/aff_lsr?offer_id=2391&transaction_id=t&conversion_unique_id=2016-P",
        {"click_id": "t", "order_id": "2016-P"},
    ),
    ("tune", "http://demo.go2cloud.org/aff_goal?a=lsr&goal_id=12&transaction_id=t", {"click_id": "t", "event": "12"}),
    ("affise", "https://rocketcompany.affise.com/postback?clickid=5f1c", {"click_id": "5f1c"}),
    ("affise", "http://offers.affise.com/postback?clickid=5f1c&action_id=t9", {"click_id": "5f1c", "order_id": "t9"}),
    (
        "affise",
        "https://x.affise.com/postback?click_id=5f1c&goal=2&sum=10.5&ip=192.0.2.1&status=5&promo_code=P&user_id=7"
        "&custom_field1=a&custom_field10=b&custom_field15=c&comment=hi",
        {
            "click_id": "5f1c", "event": "2", "amount": "10.5", "status": "pending", "original_status": "5",
            "coupon_code": "P", "customer_id": "7", "adv": {"adv1": "a", "adv10": "b"},
        },
    ),
    (
        "voluum", "https://voluum_dedicated_domain.com/postback?cid=wCL&payout=3.5&txid=77",
        {"click_id": "wCL", "revenue": "3.5", "order_id": "77"},
    ),
    (
        "voluum", "https://track.radantus.com/postback?cid=w&payout=1&txid=2&currency=EUR&et=upsell&param1=a&param5=e",
        {
            "click_id": "w", "revenue": "1", "order_id": "2", "currency": "EUR", "event": "upsell",
            "adv": {"adv1": "a", "adv5": "e"},
        },
    ),
    (
        "keitaro", "https://example.com/key/postback?subid=s&status=lead&payout=10&currency=EUR",
        {"click_id": "s", "status": "pending", "original_status": "lead", "revenue": "10", "currency": "EUR"},
    ),
    (
        "keitaro",
        "http://192.0.2.4/e89bcbe/postback?subid=s&payout=5&status=lead&tid=8&from=adcombo.com&lead_status=hold"
        "&sale_status=lead&rejected_status=reject",
        {"click_id": "s", "revenue": "5", "status": "approved", "original_status": "lead", "order_id": "8"},
    ),
    (
        "keitaro", "https://example.com/key/postback?subid=s&status=topup&lead_status=reg,topup&sale_status=billed",
        {"click_id": "s", "status": "pending", "original_status": "topup"},
    ),
    (
        "keitaro", "https://example.com/key/postback?subid=s&status=rebill&tid=2&sub_id_1=x&extra_param_3=y&return=OK",
        {"click_id": "s", "status": "approved", "original_status": "rebill", "order_id": "2", "adv": {"adv3": "y"}},
    ),
    ("binom", "https://tracker.example/click.php?cnv_id=c&payout=2.5", {"click_id": "c", "revenue": "2.5"}),
    (
        "binom",
        "https://tracker.example/click.php?cnv_id=c&payout=2&cnv_status=Hold&cnv_currency=USD&to_offer=2"
        "&disable_postback=1&event1=15",
        {
            "click_id": "c", "revenue": "2", "status": "pending", "original_status": "Hold", "currency": "USD",
            "adv": {"adv1": "15"},
        },
    ),
    ("redtrack", "http://your.tracking.domain.com/postback?clickid=c&sum=7", {"click_id": "c", "revenue": "7"}),
    (
        "redtrack", "http://track.example/postback?clickid=c&type=Deposit&rdtk_event_id=e1&status=Declined",
        {"click_id": "c", "event": "Deposit", "order_id": "e1", "status": "rejected", "original_status": "Declined"},
    ),
    ("redtrack", "http://track.example/postback?clickid=c&status=other", {"click_id": "c", "original_status": "other"}),
    (
        "prosper202", "https://my.example/tracking202/static/gpb.php?subid=1234&amount=12.50",
        {"click_id": "1234", "revenue": "12.50"},
    ),
    ("prosper202", "https://my.example/tracking202/static/gpb.php?sid=1&oid=o9", {"click_id": "1", "order_id": "o9"}),
    (
        "prosper202", "https://my.example/tracking202/static/gpb.php?subid=1&txid=t&status=reversed&cust=c",
        {"click_id": "1", "order_id": "t", "status": "reversed", "original_status": "reversed", "customer_id": "c"},
    ),
    (
        "postaffiliatepro", "https://pap.example/scripts/sale.php?TotalCost=120.50&OrderID=ORD_12345XYZ&ProductID=test+product",
        {"amount": "120.50", "order_id": "ORD_12345XYZ"},
    ),
    (
        "postaffiliatepro",
        "https://pap.example/scripts/track.php?visitorId=b910a79d013c8856a01393511GPTWP0s&t=100&f=&o=oid&p=pid&d1=data1value"
        "&a=testaff&c=55a22310&ch=channelid&cc=&s=A&cr=Eur&cp=couponcode",
        {
            "click_id": "b910a79d013c8856a01393511GPTWP0s", "amount": "100", "order_id": "oid", "status": "approved",
            "original_status": "A", "currency": "Eur", "coupon_code": "couponcode", "adv": {"adv1": "data1value"},
        },
    ),
    (
        "postaffiliatepro", "https://pap.example/scripts/sale.php?ActionCode=lead&CustomCommission=5&Status=D",
        {"event": "lead", "payout": "5", "status": "rejected", "original_status": "D"},
    ),
    (
        "clickdam",
        "https://edge.example/postback?click_id=c&order_id=o&amount=49.90&currency=EUR&event=lead&status=Pending&revenue=5"
        "&payout=3&customer_id=u&coupon_code=X&event_id=e&refund_amount=1&remaining_amount=2&event_time=1795399300&adv10=z",
        {
            "click_id": "c", "order_id": "o", "amount": "49.90", "currency": "EUR", "event": "lead",
            "status": "pending", "original_status": "Pending", "revenue": "5", "payout": "3", "customer_id": "u",
            "coupon_code": "X", "event_id": "e", "refund_amount": "1", "remaining_amount": "2",
            "event_time": "1795399300", "adv": {"adv10": "z"},
        },
    ),
]  # fmt: skip


def read(dialect: str, query: str, status_map: dict[str, str] | None = None) -> Posted:
    return posted_form(read_form(query), DIALECTS[dialect], status_map or {})


@pytest.mark.parametrize(("dialect", "url", "expected"), DOCUMENTED, ids=lambda value: str(value)[:60])
def test_a_documented_postback_means_what_its_vendor_means(dialect: str, url: str, expected: dict[str, Any]) -> None:
    assert read(dialect, urlsplit(url).query) == Posted(**expected)


@pytest.mark.parametrize(("dialect", "url"), [(dialect, url) for dialect, url, _ in DOCUMENTED])
def test_a_documented_postback_comes_to_a_path_of_its_dialect(dialect: str, url: str) -> None:
    path = urlsplit(url).path
    pattern = next(part for part in path.split("/") if part) if "{token}" in DIALECTS[dialect].paths[0] else None
    assert (
        path.replace(pattern, "{token}", 1) in DIALECTS[dialect].paths if pattern else path in DIALECTS[dialect].paths
    )


def test_every_dialect_has_documented_postbacks_that_are_tested() -> None:
    assert {dialect for dialect, _, _ in DOCUMENTED} == set(DIALECTS)


@pytest.mark.parametrize(
    ("name", "meanings"),
    [
        ("transaction_id", {"everflow": "click_id", "tune": "click_id", "prosper202": "order_id"}),
        ("oid", {"prosper202": "order_id", "everflow": None, "clickdam": None}),
        ("tid", {"keitaro": "order_id", "everflow": None, "voluum": None}),
        (
            "payout",
            {
                "voluum": "revenue", "keitaro": "revenue", "binom": "revenue", "redtrack": "revenue",
                "clickdam": "payout", "everflow": "payout", "tune": "payout", "affise": "payout",
                "postaffiliatepro": "payout", "prosper202": "payout",
            },
        ),
        ("amount", {"prosper202": "revenue", "everflow": "amount", "tune": "amount", "clickdam": "amount"}),
        ("sum", {"affise": "amount", "redtrack": "revenue", "clickdam": None}),
        ("event_id", {"everflow": "event", "clickdam": "event_id", "tune": "event_id"}),
        ("s", {"postaffiliatepro": "status", "clickdam": None}),
        ("cid", {"voluum": "click_id", "keitaro": None}),
        ("subid", {"keitaro": "click_id", "prosper202": "click_id", "voluum": None}),
        ("sid", {"prosper202": "click_id", "tune": None}),
    ],
)  # fmt: skip
def test_a_name_means_what_its_dialect_means(name: str, meanings: dict[str, str | None]) -> None:
    assert {key: DIALECTS[key].fields.get(name, (None,))[0] for key in meanings} == meanings


@pytest.mark.parametrize("key", DIALECTS)
def test_a_dialect_is_unambiguous_and_in_our_words(key: str) -> None:
    dialect = DIALECTS[key]
    ours = set(Posted.__struct_fields__) - {"adv", "original_status"} | set(ADV)
    assert set(dialect.parameters) <= ours
    names = [*chain(*dialect.parameters.values()), *dialect.tokens, *dialect.status_lists, *dialect.refused]
    assert [name for name, n in Counter(names).items() if n > 1] == []
    assert [name for name in (*names, *dialect.statuses) if name != name.lower()] == []
    assert set(dialect.statuses.values()) <= {*Status, ""}
    assert set(dialect.status_lists.values()) <= {*Status, IGNORED}
    assert all(path.startswith("/") for path in dialect.paths)
    assert dialect.answer.isascii()
    assert dialect.answer.isprintable()


@pytest.mark.parametrize("key", DIALECTS)
def test_our_own_names_are_understood_where_they_mean_nothing_else(key: str) -> None:
    dialect = DIALECTS[key]
    for field, (name,) in DIALECTS[OWN].parameters.items():
        assert name in dialect.fields, "a name of ours means something, in every dialect"
        if name not in chain(*dialect.parameters.values()):
            assert dialect.fields[name][0] == field


@pytest.mark.parametrize("key", DIALECTS)
def test_our_own_statuses_are_understood_in_every_dialect(key: str) -> None:
    name = DIALECTS[key].parameters.get("status", ("status",))[0]
    for status in Status:
        assert read(key, f"{name}=+{status.upper()}+").status == status


def test_the_first_name_that_has_a_value_counts_in_whatever_order_they_come() -> None:
    assert read("everflow", "adv_event_id=2&event_id=1").event == "1"
    assert read("everflow", "adv_event_id=2&event_id=").event == "2"
    assert read("prosper202", "oid=b&txid=a").order_id == "a"
    assert read("voluum", "c=old&cid=new&p=1&payout=2") == Posted(click_id="new", revenue="2")


@pytest.mark.parametrize(
    ("dialect", "query", "status_map", "status"),
    [
        ("keitaro", "status=sale", {}, "approved"),
        ("keitaro", "status=sale&lead_status=sale", {}, "pending"),
        ("keitaro", "status=sale&lead_status=sale", {"sale": "rejected"}, "rejected"),
        ("keitaro", "status=x&sale_status=a,%20X%20,b", {}, "approved"),
        ("affise", "status=3", {}, "rejected"),
        ("clickdam", "status=refunded", {"refunded": "reversed"}, "reversed"),
        ("clickdam", "status=Geprüft", {"geprüft": "approved"}, "approved"),
        ("clickdam", "status=", {"": "rejected"}, ""),
    ],
)
def test_a_status_is_the_advertisers_then_the_postbacks_then_the_dialects(
    dialect: str, query: str, status_map: dict[str, str], status: str
) -> None:
    assert read(dialect, query, status_map).status == status


@pytest.mark.parametrize(
    ("dialect", "query", "status_map", "code"),
    [
        ("clickdam", "status=paid", {}, "unknown_status"),
        ("clickdam", "status=lead", {}, "unknown_status"),
        ("affise", "status=4", {}, "unknown_status"),
        ("tune", "status=1", {}, "unknown_status"),
        ("keitaro", "status=%2C&sale_status=a,,b", {}, "unknown_status"),
        ("keitaro", "status=%20", {}, "unknown_status"),
        ("keitaro", "status=ping&ignore_status=ping,test", {}, "ignored_status"),
        ("keitaro", "status=sale&ignore_status=sale", {}, "ignored_status"),
        ("clickdam", "status=ping", {"ping": "ignored"}, "ignored_status"),
        ("postaffiliatepro", "TotalCost=10&FixedCost=2", {}, "unsupported_parameter"),
        ("postaffiliatepro", "TotalCost=10&f=%2510", {}, "unsupported_parameter"),
        ("postaffiliatepro", "sale=%5B%7B%22t%22%3A%22100%22%7D%5D", {}, "unsupported_parameter"),
    ],
)
def test_what_a_dialect_does_not_know_of_money_is_refused(
    dialect: str, query: str, status_map: dict[str, str], code: str
) -> None:
    with pytest.raises(Refused) as refusal:
        read(dialect, query, status_map)
    assert refusal.value.code == code


def test_a_cost_of_nothing_is_no_cost() -> None:
    assert read("postaffiliatepro", "TotalCost=10&FixedCost=0.00").amount == "10"


def test_a_token_is_found_under_any_trackers_name_ours_first() -> None:
    assert token_parameters()[0] == "token"
    for name in ("token", "security_token", "secure", "verification_token", "upd_key", "adv_sectkn"):
        assert token_of({name: "T", "nid": "12"}) == "T"
    assert token_of({"secure": "b", "token": "a"}) == "a"
    assert token_of({"secure": "b", "token": ""}) == "b"
    assert token_of({"nid": "12"}) == ""


def test_a_click_may_come_under_any_trackers_name_before_the_dialect_is_known() -> None:
    assert {"click_id", "clickid", "transaction_id", "cid", "subid", "cnv_id", "visitorid"} <= click_parameters()
    assert "order_id" not in click_parameters()
    assert click_candidates({"cid": "a", "subid": "b", "sid": "a", "order_id": "o", "clickid": ""}) == {"a", "b"}


def test_every_path_of_every_dialect_is_known_once() -> None:
    assert set(paths()) == set(chain(*(dialect.paths for dialect in DIALECTS.values())))
    assert len(set(paths())) == len(paths())


def test_the_data_files_are_part_of_the_package() -> None:
    pyproject = (Path(events.__file__).parents[1] / "pyproject.toml").read_text()
    assert '"schemas.conversions" = ["dialects/*.toml"]' in pyproject


async def test_an_edge_takes_every_documented_postback_at_its_vendors_path(
    tmp_path: Path, shared_redis_url: str
) -> None:
    """With our click id and token in it, and nothing else changed."""
    async with (
        edges.filled(shared_redis_url) as publisher,
        edges.running_edge(edges.settings(tmp_path, shared_redis_url)) as running,
    ):
        await edges.follows(running.edge)
        for n, (key, url, expected) in enumerate(DOCUMENTED):
            await publisher.write(edges.advertiser(dialect=key))
            running.edge.links.tier.void_all()
            answer = await edges.get(running.port, at_our_edge(key, url, n))
            assert answer.status == 200, (url, answer.body)
            wanted = "OK" if "return=OK" in url else DIALECTS[key].answer
            assert (answer.body.decode() if wanted else answer.json()["result"]) == (wanted or "accepted"), url
            await running.edge.recorder.drained()
            (event,) = running.wrote()[n:]
            assert isinstance(event, events.Conversion)
            assert meant(event) == meant_by(key, expected), url


def at_our_edge(key: str, url: str, n: int) -> str:
    parts, said = urlsplit(url), dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    names = {name for name, (field, _) in DIALECTS[key].fields.items() if field == "click_id"}
    name = next((name for name in said if name.lower() in names), DIALECTS[key].parameters["click_id"][0])
    said[name] = click_id.mint(
        ClickKey(1, b"\xab" * 32), click_id.uuid7_bytes(1_795_399_200_000, n.to_bytes(10, "big")), 1, 1, 1, 0
    )
    if DIALECTS[key].paths[0].startswith("/{token}"):
        return f"/{edges.TOKEN}/postback?{urlencode(said)}"
    return (
        f"{parts.path}?{urlencode(said | {DIALECTS[key].tokens[0] if DIALECTS[key].tokens else 'token': edges.TOKEN})}"
    )


def meant(event: events.Conversion) -> dict[str, Any]:
    return {
        "dialect": event.dialect, "order_id": event.order_id, "event": event.event, "status": event.status,
        "original_status": event.original_status, "currency": event.currency, "amount": event.amount_minor,
        "revenue": event.revenue_minor, "refund_amount": event.refund_minor, "remaining_amount": event.remaining_minor,
        "customer_id": event.customer_id, "coupon_code": event.coupon_code, "adv": event.adv,
    }  # fmt: skip


def meant_by(key: str, expected: dict[str, Any]) -> dict[str, Any]:
    words = ("order_id", "status", "original_status", "customer_id")
    money = ("amount", "revenue", "refund_amount", "remaining_amount")
    return (
        {"dialect": key, "event": expected.get("event", "sale"), "adv": expected.get("adv", {})}
        | {word: expected.get(word, "") for word in words}
        | {"currency": expected.get("currency", "EUR").upper(), "coupon_code": expected.get("coupon_code", "").upper()}
        | {name: major_to_minor(expected[name], "EUR") if name in expected else None for name in money}
    )
