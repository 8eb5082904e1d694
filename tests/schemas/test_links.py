"""What may be a destination, a link code and a config."""

import time

import msgspec
import pytest

from schemas import links, redis_keys
from schemas.limits import CODE_MAX, DESTINATION_MAX, DOMAINS_MAX

OWN = ("https://go.example.com", "http://127.0.0.1:8080")


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/",
        "https://shop.example",
        "HTTPS://Shop.Example/A",
        "http://shop.example:8080/a/b?c={click_id}#d",
        "https://shop.example?{sub1}={sub2}",
        "https://shop.example/{sub1}/[[sub2]]",
        "https://shop.example/?u=https%3A%2F%2Fother.example&x=a@b.example",
        "https://shop.example/@user/path:with:colons",
        "https://xn--mnchen-3ya.example/",
        "https://127.0.0.1:9999/",
        "https://[2001:db8::1]:8443/",
        "https://[2001:db8::1]/",
        "https://a-b.shop.example/",
        "https://go.example.com:8443/",  # our host, but not our origin
        "http://go.example.com/",
        "http://127.0.0.1:8082/",
        "https://go.example.com.evil.example/",
        "https://shop.example:/",
        "https://shop.example/münchen?q=ü",
        "https://s.example/" + "x" * (DESTINATION_MAX - len("https://s.example/")),
    ],
)
def test_an_http_address_with_a_plain_host_is_a_destination(url: str) -> None:
    links.check_destination(url, OWN)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *(
            (url, "must start with")
            for url in (
                "",
                "shop.example",
                "//shop.example/",
                "///shop.example",
                "/path",
                "?query",
                "http:shop.example",
                "http:/shop.example",
                "https:shop.example",
                "javascript:alert(1)",
                "JaVaScRiPt:alert(1)",
                "ftp://shop.example/",
                "javascript://shop.example/%0aalert(1)",
                "data:text/html,<script>alert(1)</script>",
                "data://shop.example/",
                "vbscript:msgbox(1)",
                "file:///etc/passwd",
                "blob:https://shop.example/1",
                "about:blank",
                "httpx://shop.example/",
                "{sub1}://shop.example/",
                "{sub1}",
                "mailto:a@b.example",
                "ws://shop.example/",
                "view-source:https://a.example",
            )
        ),
        *(
            (url, "no usable host")
            for url in (
                "http://",
                "https:///path",
                "https://?q",
                "https://#f",
                "https://:80/",
                "https://./",
                "https://.shop.example/",
                "https://-shop.example/",
                "https://münchen.example/",
                "https://shop。example/",
                "https://shop%2eexample/",
                "https://shop.example%00/",
                "https://shop,example/",
                "https://shop;example/",
                "https://shop!example/",
                "https://a_b.example/",
                "https://" + "a" * 254 + "/",
                "https://shop.example./",
                "https://go.example.com.:443/",
            )
        ),
        *(
            (url, "macro")
            for url in (
                "https://{sub1}/",
                "https://{sub1}.example/",
                "https://shop.{sub1}/",
                "https://{sub1}@shop.example/",
                "https://shop.example{sub1}/",
                "https://shop.example{sub1}",
            )
        ),
        *(
            (url, "credentials")
            for url in (
                "https://user@shop.example/",
                "https://user:pass@shop.example/",
                "https://shop.example@evil.example/",
                "https://shop.example:80@evil.example/",
                "https://@shop.example/",
            )
        ),
        *(
            (url, "backslash or a control")
            for url in (
                "https:\\\\shop.example",
                "https://shop.example\\@evil.example/",
                "https://shop.example/\\evil",
                "\\\\shop.example",
                "https://shop.example/\r\nSet-Cookie: a=b",
                "https://shop.example/\n",
                "https://shop.example/\0",
                "https://shop.example/ x",
                " https://shop.example/",
                "https://shop.example/ ",
                "\thttps://shop.example/",
                "java\tscript:alert(1)",
                "https://shop.example/\x7f",
                "https://shop.example/\x85",
                "https://shop.example/\u2028",
                "\x01https://shop.example/",
                "ht\ntps://shop.example/",
            )
        ),
        *(
            (url, "is not a URL")
            for url in (
                "https://shop.example:99999/",
                "https://shop.example:x/",
                "https://shop.example:-1/",
                "https://[::1/",
                "https://[[sub1]]/",
                "https://shop.example:{sub1}/",
                "https://shop.example:80:80/",
                "https://shop.example/\ud800",
                "https://shop\u2100.example/",
            )
        ),
        *(
            (url, "leads back")
            for url in (
                "https://go.example.com",
                "https://go.example.com/c/demo",
                "https://go.example.com:443/",
                "HTTPS://GO.EXAMPLE.COM/x",
                "http://127.0.0.1:8080/c/x",
                "https://go.example.com:0443/",
                "https://go.example.com?x",
                "https://go.example.com:/",
            )
        ),
        ("https://shop.example:0/", "port 0"),
        ("https://s.example/" + "x" * DESTINATION_MAX, "longer than"),
    ],
)
def test_everything_else_is_refused_and_told_why(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        links.check_destination(url, OWN)


def test_the_destinations_of_an_import_cost_little_however_many_domains_there_are() -> None:
    own = tuple(f"{scheme}://d{n}.example" for n in range(DOMAINS_MAX) for scheme in ("http", "https"))
    started_s = time.process_time()
    for n in range(30_000):
        links.check_destination(f"https://shop.example/{n}", own)
    assert time.process_time() - started_s < 8  # it was half a minute, in which the API answered nobody


def test_an_own_origin_without_its_port_is_known_by_its_default_port() -> None:
    with pytest.raises(ValueError, match="leads back"):
        links.check_destination("http://go.example/", ("http://go.example:80",))
    with pytest.raises(ValueError, match="leads back"):
        links.check_destination("http://go.example:80/", ("http://GO.example",))


@pytest.mark.parametrize("code", ["a", "A-b_9", "0", "x" * CODE_MAX])
def test_a_code_is_letters_digits_hyphens_and_underscores(code: str) -> None:
    assert links.CODE.fullmatch(code)


@pytest.mark.parametrize(
    "code", ["", "-a", "_a", "a b", "a\n", "ä", "a:b", "a/b", "a.b", "\uff11", "x" * (CODE_MAX + 1)]
)
def test_anything_else_is_no_code(code: str) -> None:
    assert not links.CODE.fullmatch(code)


@pytest.mark.parametrize(
    ("key", "config"),
    [
        (redis_keys.link("a"), links.Link(v=(1, 2), id=1, code="a", offer_id=2, partner_id=3, status="active")),
        (redis_keys.partner(1), links.Partner(v=(1, 2), id=1, name="ü", status="active")),
        (redis_keys.advertiser("ab"), links.Advertiser(v=(1, 2), id=1, status="active")),
        (redis_keys.advertiser_by_id(1), links.Advertiser(v=(1, 2), id=1, status="active", networks=("::/0",))),
        (redis_keys.pixel("ab"), links.Reference(v=(1, 2), id=1)),
        (redis_keys.PROGRAMME, links.Programme(v=(1, 2), timezone="UTC", currency="EUR")),
    ],
)
def test_a_config_is_read_by_the_kind_its_key_names(key: str, config: links.Config) -> None:
    assert links.decode(key, msgspec.json.encode(config)) == config
    with pytest.raises(msgspec.DecodeError):
        links.decode(key, b"{}")


def test_an_older_edge_reads_what_a_newer_publisher_adds_but_for_rules_that_it_cannot_keep() -> None:
    programme = {
        "v": [1, 2], "timezone": "UTC", "currency": "EUR", "new": 1,
        "domains": {"a.example": {"own_links": True, "new": 1}},
    }  # fmt: skip
    read = links.decode(redis_keys.PROGRAMME, msgspec.json.encode(programme))
    assert isinstance(read, links.Programme)
    assert read.domains == {"a.example": links.Domain(own_links=True)}
    partner = {"v": [1, 2], "id": 1, "name": "P", "status": "active"}
    cap = {"id": 1, "period": "day", "clicks": 5, "new": 1}
    assert links.decode(redis_keys.partner(1), msgspec.json.encode(partner | {"caps": [cap]}))
    offer = {
        "v": [1, 2], "id": 1, "advertiser_id": 1, "name": "O", "status": "active",
        "destination_url": "https://s.example/", "currency": "EUR", "targeting": {"new": 1},
    }  # fmt: skip
    with pytest.raises(msgspec.DecodeError):
        links.decode(redis_keys.offer(1), msgspec.json.encode(offer))
