"""Secrets as text that may stand in a URL or a header unescaped."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Callable

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
LENGTH = 32  # of 62: 190 bits


def random_base62(length: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(length))


def derived_base62(secret: str, nonce: bytes) -> str:
    """32 characters that only who has `secret` can make again from `nonce`."""
    return base62(int.from_bytes(hmac.digest(secret.encode(), nonce, hashlib.sha256)), LENGTH)


def base62(number: int, length: int) -> str:
    """The last digits of a number in base 62, padded with zeros."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(BASE62[digit])
    return "".join(reversed(digits))


def api_key(text: str) -> str:
    return f"cd_{text}{checksum(text)}"


def advertiser_token(text: str) -> str:
    return f"at_{text}"


def signing_key(text: str) -> str:
    return f"sk_{text}"


def pixel_key(text: str) -> str:
    """No secret: it stands in the source of pages."""
    return f"pk_{text}"


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("ascii")).digest()


def checksum(text: str) -> str:
    """CRC-32 in base 62: a mistyped key is told apart from an unknown one without asking the database."""
    return base62(zlib.crc32(text.encode("ascii")), 6)


# by the field they are shown in
FORMS: dict[str, Callable[[str], str]] = {
    "key": api_key, "token": advertiser_token, "signing_key": signing_key
}  # fmt: skip
