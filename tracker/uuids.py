"""UUIDv7s (RFC 9562, 5.7) for clicks, as bytes and as text. What is random of them is made a thousand at a time: a
system call for each would take longer than all else that makes an id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache

_AT_ONCE, _RANDOM_BYTES = 1_000, 10
_VERSION_7 = bytes(0x70 | byte & 0x0F for byte in range(256))
_VARIANT = bytes(0x80 | byte & 0x3F for byte in range(256))


def uuid7(at_ms: int) -> tuple[bytes, str]:
    """A new one of this time, and how it is written."""
    (time, time_text), (random, random_text) = _of_time(at_ms), _next_random()
    return time + random, time_text + random_text


@lru_cache(maxsize=2)
def _of_time(at_ms: int) -> tuple[bytes, str]:
    time = at_ms.to_bytes(6, "big")
    digits = time.hex()
    return time, f"{digits[:8]}-{digits[8:]}"


def _randoms() -> Iterator[tuple[bytes, str]]:
    """All that comes behind the time, with the version and the variant in it."""
    while True:
        pool = bytearray(os.urandom(_RANDOM_BYTES * _AT_ONCE))
        pool[0::_RANDOM_BYTES] = pool[0::_RANDOM_BYTES].translate(_VERSION_7)
        pool[2::_RANDOM_BYTES] = pool[2::_RANDOM_BYTES].translate(_VARIANT)
        made, digits = bytes(pool), pool.hex()
        for at in range(0, len(made), _RANDOM_BYTES):
            to = 2 * at
            text = f"-{digits[to : to + 4]}-{digits[to + 4 : to + 8]}-{digits[to + 8 : to + 20]}"
            yield made[at : at + _RANDOM_BYTES], text


_next_random = _randoms().__next__  # a worker is a process of its own from its first line: no fork
