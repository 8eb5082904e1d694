"""A click id says what it was minted with, and nothing else is accepted as one."""

import os
import random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import click_id
from schemas.click_id import ClickId, ClickKey, ClickKeys, Forged, NotAClickId, RetiredKey, UnknownKey
from schemas.outcomes import ClickClass

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
KEYS = ClickKeys((ClickKey(1, b"k" * 32), ClickKey(2, b"o" * 16), ClickKey(3, b"")))
U32 = st.integers(0, 2**32 - 1)
REFUSALS = (NotAClickId, UnknownKey, RetiredKey, Forged)


def mint(click_class: int = ClickClass.NORMAL, at_ms: int = 1_795_000_000_000, key: ClickKey = KEYS.signing) -> str:
    return click_id.mint(key, click_id.uuid7_bytes(at_ms, os.urandom(10)), 11, 22, 33, click_class)


def is_accepted(text: str) -> bool:
    try:
        click_id.read(KEYS, text)
    except REFUSALS:
        return False
    return True


@pytest.mark.parametrize("click_class", ClickClass)
@given(at_ms=st.integers(0, 2**48 - 1), link=U32, offer=U32, partner=U32, noise=st.binary(min_size=10, max_size=10))
def test_an_id_says_what_it_was_minted_with(
    click_class: ClickClass, at_ms: int, link: int, offer: int, partner: int, noise: bytes
) -> None:
    uuid = click_id.uuid7_bytes(at_ms, noise)
    text = click_id.mint(KEYS.signing, uuid, link, offer, partner, click_class)
    assert len(text) == click_id.TEXT_LENGTH
    found = click_id.read(KEYS, text)
    assert found == ClickId(UUID(bytes=uuid), link, offer, partner, click_class)
    assert (found.at_ms, found.uuid.version, found.uuid.variant) == (at_ms, 7, "specified in RFC 4122")


def test_every_change_of_one_character_is_refused() -> None:
    for click_class in ClickClass:
        text = mint(click_class)
        changed = (text[:at] + other + text[at + 1 :] for at in range(len(text)) for other in ALPHABET)
        assert [each for each in changed if each != text and is_accepted(each)] == []


def test_20_000_random_changes_are_refused() -> None:
    rng = random.Random(7)
    original = mint()
    for _ in range(20_000):
        characters = list(original)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(characters) + 1)
            characters[at : at + rng.randint(0, 2)] = rng.choices(ALPHABET + "=+/ \n\0\u00e9", k=rng.randint(0, 2))
        changed = "".join(characters)
        assert changed == original or not is_accepted(changed)


def test_random_text_is_refused() -> None:
    rng = random.Random(8)
    for _ in range(20_000):
        assert not is_accepted("".join(rng.choices(ALPHABET, k=click_id.TEXT_LENGTH)))


def test_one_id_has_one_spelling() -> None:
    for _ in range(200):
        text = mint()
        last = ALPHABET.index(text[-1])
        spare_bits = [text[:-1] + ALPHABET[last ^ bits] for bits in (1, 2, 3)]
        others = [*spare_bits, text + "=", text + "A", f" {text}", f"{text}\n", text.replace("-", "+"), text + "\0"]
        others += [text.replace("_", "/"), text.translate({ord("-"): "+", ord("_"): "/"}), text[:-1], ""]
        assert [other for other in others if other != text and is_accepted(other)] == []


def test_characters_that_only_look_like_digits_are_no_click_id() -> None:
    with pytest.raises(NotAClickId):
        click_id.read(KEYS, "\uff11" * click_id.TEXT_LENGTH)


def test_an_older_key_still_verifies() -> None:
    assert click_id.read(KEYS, mint(key=KEYS.keys[1])).link_id == 11


def test_a_retired_key_is_told_from_an_unknown_one() -> None:
    with pytest.raises(RetiredKey):
        click_id.read(KEYS, mint(key=ClickKey(3, b"x" * 16)))
    with pytest.raises(UnknownKey):
        click_id.read(KEYS, mint(key=ClickKey(9, b"x" * 16)))


def test_an_id_of_another_secret_is_forged() -> None:
    with pytest.raises(Forged):
        click_id.read(KEYS, mint(key=ClickKey(1, b"x" * 32)))


def test_an_id_of_another_version_is_no_click_id_of_ours() -> None:
    text = mint()
    with pytest.raises(NotAClickId, match="version"):
        click_id.read(KEYS, "Q" + text[1:])


def test_a_class_that_does_not_exist_is_forged() -> None:
    with pytest.raises(Forged):
        click_id.read(KEYS, mint(click_class=6))


def test_the_class_cannot_be_read_without_the_key() -> None:
    """The class byte takes many values for one class, and the same id but for its class differs in the tag too."""
    masked = {click_id._decode(mint())[29] for _ in range(500)}
    assert len(masked) > 150
    uuid = click_id.uuid7_bytes(1_795_000_000_000, bytes(10))
    texts = {click_id.mint(KEYS.signing, uuid, 1, 2, 3, click_class) for click_class in ClickClass}
    raws = [click_id._decode(text) for text in texts]
    assert len({raw[30:] for raw in raws}) == len(ClickClass)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "each key is"),
        ("1", "not hexadecimal|0 bytes"),
        ("32:" + "ab" * 16, "each key is"),
        ("-1:" + "ab" * 16, "each key is"),
        ("x:" + "ab" * 16, "each key is"),
        ("1:zz", "key 1 is not hexadecimal"),
        ("1:abab", "has 2 bytes"),
        ("1:" + "ab" * 65, "has 65 bytes"),
        ("1:retired", "cannot be retired"),
        ("1:" + "ab" * 16 + ",1:" + "cd" * 16, "must differ"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_showing_them(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        ClickKeys.parse(text)
    assert "abab" not in str(refusal.value)
    assert "cdcd" not in str(refusal.value)


def test_keys_never_show_their_secret() -> None:
    assert "secret" not in repr(ClickKeys.parse("1:" + "ab" * 16))
    assert "ab" * 4 not in repr(ClickKeys.parse("1:" + "ab" * 16))
