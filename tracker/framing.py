"""Where the requests end that aiohttp is given, so that the fast lane knows when aiohttp stands between two of them.

Only what cannot be read in two ways is followed: the smallest doubt, and the connection is aiohttp's for the rest of
its life. A lane that guessed where a body ends could be made to see a request inside it (RFC 9112, 11.2).
"""

import re

from schemas.limits import BODY_BYTES_MAX, LINE_BYTES_MAX

_END = b"\r\n\r\n"
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n(?:" + _NAME + rb":[\t -~\x80-\xff]*\r\n)*\r\n")
_ODD = re.compile(rb"\r\n(?:transfer-encoding:|upgrade:|connection:[^\r]*upgrade)|^connect ")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r]*?)[ \t]*\r\n")
_LENGTH_DIGITS_MAX = len(str(BODY_BYTES_MAX)) + 1


class Framing:
    """How much of a request has passed. `lost`: it cannot be told any more."""

    __slots__ = ("_body_left", "_head", "lost")

    def __init__(self) -> None:
        self._head = b""
        self._body_left = 0
        self.lost = False

    @property
    def is_between(self) -> bool:
        """Whether all that passed were whole requests."""
        return not (self._head or self._body_left or self.lost)

    def follow(self, data: bytes) -> None:
        """What passes next."""
        if self.lost:
            return
        data, at = self._head + data, 0
        while at < len(data):
            passed = min(self._body_left, len(data) - at)
            at, self._body_left = at + passed, self._body_left - passed
            end = data.find(_END, at) + len(_END)
            if self._body_left or end < len(_END):
                break
            body_bytes = _body_bytes(data[at:end])
            if body_bytes is None:
                self.lost = True
                break
            at, self._body_left = end, body_bytes
        self.lost = self.lost or len(data) - at > LINE_BYTES_MAX
        self._head = b"" if self.lost else data[at:]


def _body_bytes(head: bytes) -> int | None:
    """The size of the body behind a head; None where that is not plain."""
    lower = head.lower()
    lengths = _LENGTH.findall(lower)
    if not _HEAD.fullmatch(head) or _ODD.search(lower) or lower.count(b"\r\ncontent-length") != len(lengths):
        return None
    if not lengths:
        return 0
    (length, *others) = lengths
    return int(length) if not others and length.isdigit() and len(length) <= _LENGTH_DIGITS_MAX else None
