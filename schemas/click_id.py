"""The signed click id: it proves link, offer, partner, time and that we minted it, with no look-up.

38 bytes, base64url without padding (51 characters):

    version and key   1   high 3 bits the version, low 5 bits the key's number
    uuid             16   UUIDv7 (RFC 9562), its first 48 bits are milliseconds since 1970
    link offer partner 12 three big-endian u32, 0 where unknown
    class             1   XORed with a keyed byte, so that a visitor cannot read it
    tag               8   truncated keyed BLAKE2b (RFC 7693) over all of the above, the class unmasked

The mask is the ninth byte of the same digest, so minting costs one hash; verifying tries the six classes.
"""

from __future__ import annotations

import binascii
import hmac
import struct
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from uuid import UUID

from schemas.outcomes import ClickClass

VERSION = 1
SIZE_BYTES = 38
TEXT_LENGTH = 51
KEY_NUMBERS = range(32)
_HEAD = struct.Struct(">B16sIII")
_IDS = struct.Struct(">III")
_BYTES = tuple(bytes((n,)) for n in range(256))
_CLASSES = tuple(ClickClass)
_STANDARD = bytes.maketrans(b"-_", b"+/")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class NotAClickId(ValueError):
    """The text has not the form of a click id: wrong length, alphabet or version."""


class UnknownKey(LookupError):
    """The id names a key that this process does not have (yet): ask the sender to repeat."""


class RetiredKey(ValueError):
    """The id was signed with a key that is no longer accepted."""


class Forged(ValueError):
    """The tag does not match: we did not mint this id."""


@dataclass(frozen=True, slots=True)
class ClickKey:
    """One signing key. `secret` is empty when the key is retired."""

    number: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClickKeys:
    """The keys a process knows; the first one signs, the others only verify."""

    keys: tuple[ClickKey, ...]

    @property
    def signing(self) -> ClickKey:
        return self.keys[0]

    def find(self, number: int) -> ClickKey:
        for key in self.keys:
            if key.number == number:
                return key
        raise UnknownKey(number)

    @classmethod
    def parse(cls, text: str) -> ClickKeys:
        """Read `1:<hex>,2:<hex>,3:retired`. Raises ValueError that says what is wrong, never showing a secret."""
        keys = tuple(_parse_key(part.strip()) for part in text.split(","))
        numbers = [key.number for key in keys]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"key numbers must differ, found {numbers}")
        if not keys[0].secret:
            raise ValueError("the first key signs and so cannot be retired")
        return cls(keys)


def _parse_key(part: str) -> ClickKey:
    number, _, secret = part.partition(":")
    if not number.isascii() or not number.isdigit() or int(number) not in KEY_NUMBERS:
        raise ValueError("each key is <number 0-31>:<hex secret> or <number>:retired")
    if secret == "retired":  # noqa: S105
        return ClickKey(int(number), b"")
    try:
        raw = bytes.fromhex(secret)
    except ValueError:
        raise ValueError(f"the secret of key {number} is not hexadecimal") from None
    if not 16 <= len(raw) <= 64:
        raise ValueError(f"the secret of key {number} has {len(raw)} bytes, wanted 16 to 64")
    return ClickKey(int(number), raw)


@dataclass(frozen=True, slots=True)
class ClickId:
    """What a click id says once its tag has been checked."""

    uuid: UUID
    link_id: int
    offer_id: int
    partner_id: int
    click_class: ClickClass

    @property
    def at_ms(self) -> int:
        return uuid_ms(self.uuid)


def uuid_ms(uuid: UUID) -> int:
    """Milliseconds since 1970 of a UUIDv7."""
    return uuid.int >> 80


def uuid7_bytes(at_ms: int, random: bytes) -> bytes:
    """A UUIDv7 (RFC 9562, 5.7) from a time and ten random bytes."""
    return (
        at_ms.to_bytes(6, "big") + bytes((0x70 | random[0] & 0x0F, random[1], 0x80 | random[2] & 0x3F)) + random[3:10]
    )


def mint(key: ClickKey, uuid: bytes, link_id: int, offer_id: int, partner_id: int, click_class: int) -> str:
    """The text of a new click id. `uuid` is the 16 bytes of a UUIDv7; ids are u32, 0 where unknown."""
    return mint_packed(key, uuid, pack(link_id, offer_id, partner_id), click_class)


def pack(link_id: int, offer_id: int, partner_id: int) -> bytes:
    """What all click ids of a link have in common."""
    return _IDS.pack(link_id, offer_id, partner_id)


def mint_packed(key: ClickKey, uuid: bytes, ids: bytes, click_class: int) -> str:
    """`mint` with what `pack` made."""
    head = _BYTES[VERSION << 5 | key.number] + uuid + ids
    digest = _digest(key, head, click_class)
    raw = head + _BYTES[click_class ^ digest[8]] + digest[:8] + b"\0"
    return b2a_base64(raw, newline=False).translate(_URL_SAFE)[:TEXT_LENGTH].decode("ascii")


def read(keys: ClickKeys, text: str) -> ClickId:
    """Check a click id and say what it says. Raises NotAClickId, UnknownKey, RetiredKey or Forged."""
    raw = _decode(text)
    first, uuid, link_id, offer_id, partner_id = _HEAD.unpack_from(raw)
    if first >> 5 != VERSION:
        raise NotAClickId("unknown version")
    key = keys.find(first & 0x1F)
    if not key.secret:
        raise RetiredKey(key.number)
    click_class = _class_of(key, raw)
    return ClickId(UUID(bytes=uuid), link_id, offer_id, partner_id, click_class)


def _decode(text: str) -> bytes:
    if len(text) != TEXT_LENGTH or not text.isascii():
        raise NotAClickId(f"a click id has {TEXT_LENGTH} characters")
    said = text.encode("ascii")
    try:
        raw = a2b_base64(said.translate(_STANDARD) + b"A", strict_mode=True)
    except binascii.Error as error:
        raise NotAClickId("not base64url") from error
    if raw[SIZE_BYTES:] != b"\0" or b2a_base64(raw, newline=False).translate(_URL_SAFE)[:TEXT_LENGTH] != said:
        raise NotAClickId("not the canonical spelling")  # spare bits would let one id be written four ways
    return raw[:SIZE_BYTES]


def _class_of(key: ClickKey, raw: bytes) -> ClickClass:
    head, masked, tag = raw[: _HEAD.size], raw[_HEAD.size], raw[_HEAD.size + 1 :]
    for click_class in _CLASSES:
        digest = _digest(key, head, click_class)
        if hmac.compare_digest(digest[:8], tag) and masked == click_class ^ digest[8]:
            return click_class
    raise Forged(key.number)


def _digest(key: ClickKey, head: bytes, click_class: int) -> bytes:
    digest = _keyed(key.secret).copy()
    digest.update(head + _BYTES[click_class])
    return digest.digest()


@lru_cache(maxsize=len(KEY_NUMBERS))
def _keyed(secret: bytes) -> blake2b:
    """The hash with the key taken in, which is half of its work."""
    return blake2b(key=secret, digest_size=9)
