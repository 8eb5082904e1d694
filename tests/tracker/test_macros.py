"""Macros fill path, query and fragment, percent-encoded, once."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.macros import ALIASES, expand

VALUES = {"click_id": "CLICK", "sub1": "one", "affiliate_id": "7", "source_id": "src"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://s.example/?p={click_id}", "https://s.example/?p=CLICK"),
        ("https://s.example/[[click_id]]/x", "https://s.example/CLICK/x"),
        ("https://s.example/?p={CLICK_ID}", "https://s.example/?p=CLICK"),
        ("https://s.example/?p={clickid}&a={sub1}", "https://s.example/?p=CLICK&a=one"),
        ("https://s.example/?p={click_id}#{sub1}", "https://s.example/?p=CLICK#one"),
        ("https://s.example/#{click_id}", "https://s.example/#CLICK"),
        ("https://s.example/?p={click_id}&x={nothing}&y=[[what]]", "https://s.example/?p=CLICK&x=&y="),
        ("https://s.example/{click_id}{sub1}{sub1}", "https://s.example/CLICKoneone"),
        ("https://s.example/?p={click_id}&a={}&b={a b}&c={é}", "https://s.example/?p=CLICK&a={}&b={a%20b}&c={%C3%A9}"),
        ("https://s.example/münchen?p={click_id}", "https://s.example/m%C3%BCnchen?p=CLICK"),
        ("https://s.example/%20?p={click_id}", "https://s.example/%20?p=CLICK"),
    ],
)
def test_a_macro_is_replaced_by_its_value(url: str, expected: str) -> None:
    assert expand(url, VALUES) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://s.example", "https://s.example?click_id=CLICK"),
        ("https://s.example/", "https://s.example/?click_id=CLICK"),
        ("https://s.example/?", "https://s.example/?click_id=CLICK"),
        ("https://s.example/?a=1", "https://s.example/?a=1&click_id=CLICK"),
        ("https://s.example/?a=1&", "https://s.example/?a=1&click_id=CLICK"),
        ("https://s.example/?a={sub1}#f?g", "https://s.example/?a=one&click_id=CLICK#f?g"),
        ("https://s.example/#f", "https://s.example/?click_id=CLICK#f"),
    ],
)
def test_a_destination_without_the_click_id_gets_it_as_its_last_parameter(url: str, expected: str) -> None:
    assert expand(url, VALUES) == expected


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_the_names_of_the_field_are_understood(alias: str) -> None:
    values = {"click_id": "CLICK", ALIASES[alias]: "v"}
    assert expand(f"https://s.example/?c={{click_id}}&a={{{alias}}}", values).endswith("&a=v")


def test_what_a_macro_brings_is_never_expanded_again() -> None:
    values = {"sub1": "{sub2}[[sub2]]", "sub2": "secret", "click_id": "{sub2}"}
    assert expand("https://s.example/{sub1}?p={click_id}", values) == (
        "https://s.example/%7Bsub2%7D%5B%5Bsub2%5D%5D?p=%7Bsub2%7D"
    )


def test_macros_that_only_come_about_by_joining_are_not_macros() -> None:
    assert expand("https://s.example/?p={click_id}&{s{sub1}}", {"click_id": "C", "sub1": "ub2", "sub2": "no"}) == (
        "https://s.example/?p=C&{sub2}"
    )


def test_a_macro_before_the_path_is_left_alone() -> None:
    assert expand("https://{sub1}.example/{click_id}", VALUES) == "https://{sub1}.example/CLICK"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_arrives_as_it_was_and_changes_nothing_around_it(value: str) -> None:
    found = urlsplit(expand("https://s.example/a/{sub1}/b?x={sub1}&p={click_id}", VALUES | {"sub1": value}))
    assert (found.scheme, found.netloc, found.fragment) == ("https", "s.example", "")
    assert found.path.startswith("/a/")
    assert found.path.endswith("/b")
    assert found.path.count("/") == 3
    assert parse_qs(found.query, keep_blank_values=True) == {"x": [value], "p": ["CLICK"]}
