"""A deep link leads only to a host that its offer names, however it is written."""

import pytest

from tracker.deep_links import allowed, asked

HOSTS = frozenset({"shop.example", "*.brand.example", "dev.example:8443", "self.example"})
OWN = {"go.example", "self.example"}


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example",
        "https://shop.example/",
        "http://shop.example/a?b=c#d",
        "HTTPS://Shop.Example/A",
        "https://shop.example:443/",
        "http://shop.example:80/",
        "https://a.brand.example/",
        "https://a.b.brand.example/",
        "https://dev.example:8443/x",
        "https://shop.example/?next=https://evil.example",
        "https://shop.example/a@b",
        "https://shop.example/{click_id}",
        "https://shop.example/?" + "{sub1}[[sub1]]" * 8,
    ],
)
def test_a_page_of_a_host_that_the_offer_names(url: str) -> None:
    assert allowed(url, HOSTS, OWN)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://www.shop.example/",
        "https://brand.example/",
        "https://xbrand.example/",
        "https://evil-brand.example/",
        "https://a.brand.example.evil.example/",
        "https://shop.example:8443/",
        "https://shop.example:80/",
        "https://shop.example:",
        "https://shop.example:443:443/",
        "https://a.brand.example:8443/",
        "https://dev.example/",
        "https://shop.example./",
        "https://go.example/c/demo",
        "https://self.example/c/demo",
        "https://user@shop.example/",
        "https://shop.example\\@evil.example/",
        "https://{sub1}.brand.example/",
        "https://*.brand.example/",
        "ftp://shop.example/",
        "//shop.example/",
        "/page",
        "shop.example",
        "",
        "https://shop.example/" + "x" * 2_048,
        "https://shop.example/\ud800",
        "https://shop.example/?" + "{sub1}" * 17,
        "https://shop.example/?" + "[[sub1]]" * 17,
    ],
)
def test_anything_else(url: str) -> None:
    assert not allowed(url, HOSTS, OWN)


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ({}, ""),
        ({"url": "https://x.example"}, "https://x.example"),
        ({"url": "https://x.example", "path": "/y"}, "https://x.example"),
        ({"path": "shoes/red?size=4"}, "https://shop.example:8443/shoes/red?size=4"),
        ({"path": "/shoes"}, "https://shop.example:8443/shoes"),
        ({"path": "//evil.example"}, "https://shop.example:8443/evil.example"),
        ({"path": "@evil.example"}, "https://shop.example:8443/@evil.example"),
        ({"path": ".evil.example"}, "https://shop.example:8443/.evil.example"),
        ({"path": "https://evil.example"}, "https://shop.example:8443/https://evil.example"),
        ({"redir_url": "https://evil.example"}, ""),
    ],
)
def test_a_path_stays_on_the_host_of_the_destination(said: dict[str, str], url: str) -> None:
    assert asked(said, "https://shop.example:8443/buy?p={click_id}") == url
