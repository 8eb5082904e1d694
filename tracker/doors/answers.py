"""How senders of conversions are answered: with a receipt, or with what their system wants to read instead."""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson
from aiohttp import web

from schemas.limits import RETURN_MAX
from tracker.intakes import Receipt

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_PRINTABLE = re.compile(rf"[ -~]{{1,{RETURN_MAX}}}", re.ASCII)


def answer(receipt: Receipt, said: Mapping[str, str], usual: str = "") -> web.Response:
    """A receipt with its status. `compat=200` is for senders that know only 200, and never hides that something is to
    be sent again; `return` is a body to read instead, as is the `usual` one of a dialect, of what was not refused."""
    status = 200 if said.get("compat") == "200" and not receipt.is_to_be_sent_again else receipt.status
    wanted = said.get("return", "")
    text = wanted if _PRINTABLE.fullmatch(wanted) else usual
    if text and receipt.status < 300 and "test" not in receipt.body:
        return web.Response(text=text, status=status, headers=_HEADERS)
    return json(receipt.body, status, receipt.headers)


def json(body: object, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=_HEADERS | dict(headers), content_type="application/json"
    )
