"""The doors for postbacks: a conversion in the parameters of a query or a form, in the dialect of whoever sends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import msgspec
from aiohttp import web

from schemas.click_id import ClickId, ClickKeys
from schemas.conversions.dialects import DIALECTS, OWN, paths
from schemas.conversions.posted import Posted
from schemas.conversions.reading import click_candidates, posted_form, read_click, read_form, token_of, without_secrets
from schemas.errors import Refused
from schemas.links import Advertiser
from tracker import intakes, senders
from tracker.doors import answers, requests
from tracker.edge import Edge
from tracker.intakes import Sender, Sent
from tracker.links import NotReady
from tracker.senders import SERVERS

DOOR = "postback"
# Where there is something else of ours, too, and the parameter that says of a GET that it is a postback.
SHARED = {"/": "nid", "/click.php": "cnv_id", "/click": "cnv_id"}
PATHS = ("/pb", *(path for path in paths() if path not in SHARED))
# What a path says of its sender's dialect: nothing, where several have it.
_TIMES = Counter(chain.from_iterable(dialect.paths for dialect in DIALECTS.values()))
_BY_PATH = {path: dialect.name for dialect in DIALECTS.values() for path in dialect.paths if _TIMES[path] == 1}


class Form(NamedTuple):
    """Parameters as they came, and by name; why they cannot be read, if so, and then there are none."""

    text: str
    said: Mapping[str, str]
    wrong: Refused | None


async def postback(request: web.Request, edge: Edge) -> web.Response:
    """`GET|POST /postback?token&click_id&order_id&amount&currency`, or what the advertiser's tracker calls them, there
    or at its path; parameters in the query or a form."""
    said: Mapping[str, str] = {}
    usual = ""
    try:
        form = read(await requests.form(request))
        said = form.said
        token = request.match_info.get("token") or requests.bearer(request) or token_of(said)
        advertiser = await _whose(request, edge, token, form)
        usual = DIALECTS[advertiser.dialect].answer
        receipt = await intakes.take(edge, Sender(advertiser, DOOR), sent(edge, advertiser, token, form))
    except Refused as refusal:
        receipt = intakes.rejection(edge, refusal)
    return answers.answer(receipt, said, usual)


def is_postback(request: web.Request) -> bool:
    """Whether what was asked at a shared path is a conversion."""
    wanted, query = SHARED.get(request.path), request.raw_path.partition("?")[2]
    said = (part.partition("=")[0].lower() for part in query.split("&"))
    return wanted is not None and request.method == "GET" and wanted in said


def read(text: str) -> Form:
    try:
        return Form(text, read_form(text), None)
    except Refused as refusal:
        return Form(text, {}, refusal)


async def _whose(request: web.Request, edge: Edge, token: str, form: Form) -> Advertiser:
    """Who sends it. Raises Refused for whoever is not known to be an advertiser, or sends more than agreed."""
    if form.wrong and not token:
        raise form.wrong
    ip = requests.sender_ip(request, edge.trusted_proxies)
    try:
        if token:
            advertiser = await senders.by_token(edge.links, token, ip)
        else:
            advertiser = await senders.by_click(edge.links, _clicks(edge.keys, form.said), ip)
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None
    signature = form.said.get("signature") or requests.signature(request)
    senders.check_signature(advertiser, senders.without_signature(form.text), signature)
    edge.rates.take(advertiser, SERVERS, 1, edge.clock.now_ms())
    return speaking(advertiser, request.path)


def _clicks(keys: ClickKeys, said: Mapping[str, str]) -> list[ClickId]:
    """What is a click of ours among all that may be one. Raises Refused where its key may not be known here yet."""
    found: list[ClickId | None] = []
    for text in click_candidates(said):
        try:
            found.append(read_click(keys, text))
        except Refused as refusal:
            if refusal.status >= 500:
                raise
    return [click for click in found if click]


def speaking(advertiser: Advertiser, path: str) -> Advertiser:
    """The advertiser with the dialect it speaks here: its own, else the path's. One not known is not guessed."""
    dialect = _BY_PATH.get(path, OWN) if advertiser.dialect == OWN else advertiser.dialect
    if dialect not in DIALECTS:
        raise Refused("unavailable", "this dialect is not known here yet")
    return advertiser if dialect == advertiser.dialect else msgspec.structs.replace(advertiser, dialect=dialect)


def sent(edge: Edge, advertiser: Advertiser, token: str, form: Form) -> Sent:
    """The conversion in a postback, in the words of its advertiser."""

    def posted() -> Posted:
        if form.wrong:
            raise form.wrong
        return posted_form(form.said, DIALECTS[advertiser.dialect], advertiser.status_map)

    return intakes.read(edge, without_secrets(form.text, (token,)), posted)
