"""How senders of conversions are answered: with a receipt, or with what their system wants to read instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import orjson
from aiohttp import web

from schemas.limits import RETURN_MAX
from tracker.intakes import Receipt

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_PRINTABLE = re.compile(rf"[ -~]{{1,{RETURN_MAX}}}", re.ASCII)


class Answer(NamedTuple):
    """What a request is answered with, by whichever door."""

    status: int
    headers: Mapping[str, str]
    content_type: str
    body: bytes


def to(receipt: Receipt, said: Mapping[str, str], usual: str = "") -> Answer:
    """A receipt with its status. `compat=200` is for senders that know only 200, and never hides that something is to
    be sent again; `return` is a body to read instead, as is the `usual` one of a dialect, of what was not refused."""
    status = 200 if said.get("compat") == "200" and not receipt.is_to_be_sent_again else receipt.status
    wanted = said.get("return", "")
    text = wanted if _PRINTABLE.fullmatch(wanted) else usual
    if text and receipt.status < 300 and "test" not in receipt.body:
        return Answer(status, _HEADERS, "text/plain; charset=utf-8", text.encode())
    headers = {**_HEADERS, **receipt.headers} if receipt.headers else _HEADERS
    return Answer(status, headers, "application/json", orjson.dumps(receipt.body))


def answer(receipt: Receipt, said: Mapping[str, str], usual: str = "") -> web.Response:
    return response(to(receipt, said, usual))


def response(of: Answer) -> web.Response:
    return web.Response(body=of.body, status=of.status, headers={**of.headers, "Content-Type": of.content_type})


def json(body: object, status: int, headers: Mapping[str, str]) -> web.Response:
    return response(Answer(status, {**_HEADERS, **headers}, "application/json", orjson.dumps(body)))
