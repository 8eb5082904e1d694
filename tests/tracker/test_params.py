"""Every name of a click's parameters that the field uses, and who wins where several are said."""

from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import limits
from schemas.limits import QUERY_BYTES_MAX, VALUE_MAX
from tracker import params

# conventions of the field: our name, then what others call it
NAMES = {
    "offer_id": "oid o offerid campaign_id t202id",
    "affiliate_id": "aff_id affid pid a_aid a ref via partner_id t202pubid",
    "sub1": "aff_sub aff_sub1 sub_id_1 c1 subId1 s1 data1",
    "sub2": "aff_sub2 sub_id_2 c2 subId2 s2 data2",
    "sub3": "aff_sub3 sub_id_3 c3 subId3 s3",
    "sub4": "aff_sub4 sub_id_4 c4 s4",
    "sub5": "aff_sub5 sub_id_5 s5",
    "sub6": "sub_id_6",
    "sub7": "sub_id_7",
    "sub8": "sub_id_8",
    "sub9": "sub_id_9",
    "sub10": "sub_id_10",
    "click_ref": "aff_click_id external_id externalid ref_id clickRef tid",
    "source_id": "source utm_source",
    "url": "u desturl",
    "path": "",
    "creative_id": "a_bid",
    "uid": "url_id",
    "coupon_code": "promo_code code cp",
    "gclid": "",
    "gbraid": "",
    "wbraid": "",
    "fbclid": "",
    "msclkid": "",
    "ttclid": "",
    "li_fat_id": "",
    "twclid": "",
    "no_track": "dub-no-track",
    "qr": "",
    "bot": "",
}
ROWS = [(name, said) for name, aliases in NAMES.items() for said in (name, *aliases.split())]


@pytest.mark.parametrize(("name", "said"), ROWS)
def test_every_name_of_the_field_is_understood_in_any_case(name: str, said: str) -> None:
    value = "Ä b/ü+{x}&="
    for spelled in (said, said.upper(), said.title()):
        assert params.read(f"x=1&{quote(spelled)}={quote(value)}&y=2")[name] == value


def test_the_tables_say_the_same() -> None:
    assert {said.lower(): name for name, said in ROWS if said.lower() != name} == params.ALIASES


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, said in ROWS if name != said])
def test_our_own_name_wins_over_every_alias_wherever_it_stands(name: str, said: str) -> None:
    assert params.read(f"{said}=theirs&{name}=ours")[name] == "ours"
    assert params.read(f"{name}=ours&{said}=theirs")[name] == "ours"


def test_an_earlier_alias_of_the_table_wins_over_a_later_one() -> None:
    assert params.read("campaign_id=7&oid=1")["offer_id"] == "1"
    assert params.read("via=7&pid=1")["affiliate_id"] == "1"


def test_the_first_of_a_repeated_name_wins() -> None:
    assert params.read("S1=first&s1=second")["sub1"] == "first"


def test_a_link_out_of_the_source_of_a_page_is_read_like_any() -> None:
    assert params.read("offer_id=7&amp;aff_id=8&amp;amp=1&amp;sub1=a%26amp%3Bb") == {
        "offer_id": "7", "aff_id": "8", "affiliate_id": "8", "amp": "1", "sub1": "a&amp;b",
    }  # fmt: skip


def test_what_nobody_knows_is_read_under_its_own_name_and_means_nothing() -> None:
    assert params.read("redir_url=https://evil.example&subid=7&sub11=x&sub_id_11=y") == {
        "redir_url": "https://evil.example", "subid": "7", "sub11": "x", "sub_id_11": "y",
    }  # fmt: skip


@pytest.mark.parametrize("said", ["url", "u", "desturl", "path"])
def test_a_deep_link_is_whole_and_any_other_value_is_cut(said: str) -> None:
    long = "x" * (QUERY_BYTES_MAX - 100)
    assert params.read(f"{said}={long}")["path" if said == "path" else "url"] == long
    assert params.read(f"sub1={long}")["sub1"] == "x" * VALUE_MAX


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=VALUE_MAX))
def test_a_value_comes_as_it_was(value: str) -> None:
    assert params.read(f"aff_sub={quote(value, safe='')}")["sub1"] == value


@pytest.mark.parametrize(
    ("said", "yes"), [("1", True), ("true", True), ("True", True), ("", False), ("0", False), ("no", False)]
)
def test_a_switch_is_on_when_it_says_so(said: str, yes: bool) -> None:
    assert params.says_yes(params.read(f"no_track={said}"), "no_track") is yes


@given(st.text(alphabet="ab1=&-_.~", max_size=20))
def test_a_query_without_anything_to_decode_is_read_as_any_other(query: str) -> None:
    assert params.pairs(query) == parse_qsl(query, keep_blank_values=True)


def test_one_parameter_more_than_the_limit_is_refused_also_where_nothing_is_to_decode() -> None:
    assert len(params.pairs("&".join(["a=1"] * limits.QUERY_PARAMS_MAX))) == limits.QUERY_PARAMS_MAX
    with pytest.raises(ValueError, match="fields"):
        params.pairs("&".join(["a=1"] * (limits.QUERY_PARAMS_MAX + 1)))
