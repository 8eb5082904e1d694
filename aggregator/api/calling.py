"""What every call to the API has: who calls, what it is carried out with, and how its body is read."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from aggregator.api.rates import Rates
from aggregator.db.connect import Pool
from aggregator.reports.asked import by_name, is_whole
from aggregator.reports.question import Question
from aggregator.reports.remembered import Given, Remembered
from aggregator.reports.scores import Segment
from aggregator.reports.state import Versions
from schemas import limits
from schemas.click_id import ClickKeys
from schemas.errors import Refused
from schemas.redis import Redis

ID_MAX = 2**31 - 1  # ids are int4 in Postgres
Id = Annotated[int, msgspec.Meta(ge=1, le=ID_MAX)]
EXTERNAL_ID = "[A-Za-z0-9._~-]+"  # what stands in a path or a query unescaped
PARAMETER = "[A-Za-z_][A-Za-z0-9_.-]*"  # of a query, as no encoding changes it
# nothing that a terminal or a log would act on, and something to see
Name = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=limits.NAME_MAX, pattern=r"\A(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z"),
]
Body = TypeVar("Body", bound=msgspec.Struct)

UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`\Z")
_SHAPES = {
    EXTERNAL_ID: "may have letters, digits and . _ ~ - only",
    PARAMETER: "may have letters, digits and _ . - only, and begins with a letter or _",
}
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_SHOWN_MAX = 200
VARY = "Authorization, Accept"  # what an answer that may be kept depends on
_ETAG_MAX = 32  # hex digits


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is. `scopes`: None for all that the role may. `key` is the key itself, of which new secrets are
    made; it goes nowhere else."""

    role: str
    key_id: int
    partner_id: int | None = None
    advertiser_id: int | None = None
    scopes: frozenset[str] | None = None
    requests_per_minute: int = limits.REQUESTS_PER_MINUTE
    key: str = field(default="", repr=False)

    @property
    def actor(self) -> str:
        """As the audit names it."""
        return f"{self.role}:{self.key_id}"

    def may(self, scope: str) -> bool:
        return self.scopes is None or scope in self.scopes


CALLER = web.RequestKey("caller", Caller)  # where a request carries it, once its key is known


@dataclass(slots=True)
class Api:
    """What the calls are carried out with. `readers`: connections for reports and lists, `versions`: of what they read,
    `reading`: how many are under way by key, `streams`: how many files are being sent. `turns`: which requests are
    under way, by key and Idempotency-Key. `importing`: held while a batch of an import is carried out. `click_keys`: to
    run intakes again."""

    pool: Pool
    readers: Pool
    redis: Redis
    rates: Rates
    public_url: str
    versions: Versions
    reports: Remembered[Question]
    scores: Remembered[Segment]
    click_keys: ClickKeys | None = None
    turns: WeakValueDictionary[tuple[int, str], asyncio.Lock] = field(default_factory=WeakValueDictionary)
    importing: asyncio.Lock = field(default_factory=asyncio.Lock)
    reading: Counter[int] = field(default_factory=Counter)
    streams: int = 0
    warm: bool = False
    draining: bool = False

    @property
    def ready(self) -> bool:
        return self.warm and not self.draining


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """The JSON body as `kind`. Raises Refused naming the field, or web.HTTPRequestEntityTooLarge."""
    raw = await read_bytes(request)
    try:
        return msgspec.json.decode(raw, type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_json", f"the body is not JSON: {_shown(str(error))}") from None


def answer(body: dict[str, Any], status: int = 200, version: int | None = None) -> web.Response:
    """JSON; `version` of what is shown becomes its ETag."""
    headers = {} if version is None else {"ETag": f'"{version}"'}
    return web.json_response(body, status=status, headers=headers)


def given_answer(request: web.Request, given: Given) -> web.Response:
    """JSON that is remembered, or 304 for who has it already. It may be kept no longer than seconds, because any change
    is to be seen; then asking again costs a 304."""
    etag = hashlib.sha256(given.body).hexdigest()[:_ETAG_MAX]
    max_age_s = int(min(given.life_s, limits.REPORT_OPEN_S))
    headers = {"Cache-Control": f"private, max-age={max_age_s}", "Vary": VARY}
    if request.method == "GET" and any(one.value in (etag, "*") for one in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=given.body, content_type="application/json", charset="utf-8", headers=headers)
    response.etag = etag
    return response


@contextmanager
def at_once(api: Api, caller: Caller) -> Iterator[None]:
    """One more call of this key that may take long. Raises Refused where too many are under way."""
    if api.reading[caller.key_id] >= limits.REPORTS_AT_ONCE_PER_KEY:
        sentence = f"this key may make {limits.REPORTS_AT_ONCE_PER_KEY} such calls at once"
        raise Refused("too_many_requests", sentence, retry_after_s=1)
    api.reading[caller.key_id] += 1
    try:
        yield
    finally:
        api.reading[caller.key_id] -= 1
        if not api.reading[caller.key_id]:
            del api.reading[caller.key_id]


def path_id(request: web.Request, noun: str, name: str = "id") -> int:
    """The `{id}` of the path, or another one. Raises Refused("not_found") for what can be no id."""
    text = request.match_info[name]
    if not is_whole(text, ID_MAX):
        raise Refused("not_found", f"there is no such {noun}")
    return int(text)


def parameters(request: web.Request, known: Iterable[str]) -> dict[str, str]:
    """What the query says, by name. Raises Refused naming the parameter that is not known, or is there twice."""
    return by_name(list(request.rel_url.query.items()), frozenset(known))


def flag(request: web.Request, name: str) -> bool:
    """`?name=1`, where the query has no other parameter. Raises Refused naming it."""
    text = parameters(request, (name,)).get(name, "0")
    if text not in ("0", "1"):
        raise Refused("bad_value", f"{name} is 0 or 1", name)
    return text == "1"


def given(body: msgspec.Struct) -> dict[str, Any]:
    """What a body says, by field, as plain JSON values and times; a field that a PATCH does not name stays as it is."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return {
        name: msgspec.to_builtins(value, builtin_types=(datetime,))
        for name, value in fields.items()
        if value is not msgspec.UNSET
    }


async def read_bytes(request: web.Request) -> bytes:
    """The body as it was sent. Raises Refused, or web.HTTPRequestEntityTooLarge."""
    try:
        async with asyncio.timeout(limits.SLOW_BODY_S):
            return await request.read()
    except TimeoutError:
        raise Refused("bad_request", "the body did not arrive in time") from None
    except (HttpProcessingError, web.RequestPayloadError, ValueError) as error:
        raise Refused("bad_request", f"the body cannot be read: {type(error).__name__}") from None


def refusal_of(message: str) -> Refused:
    """msgspec's sentence as our refusal."""
    place = _PLACE.search(message)
    path, message = (place[1], message[: place.start()]) if place else ("", message)
    if missing := _MISSING.fullmatch(message):
        return Refused("missing_field", f"{_within(path, missing[1])} is missing", _within(path, missing[1]))
    if unknown := _UNKNOWN.fullmatch(message):
        field = _within(path, _shown(unknown[1]))
        return Refused("unknown_field", f"there is no field {field}", field)
    if "matching regex" in message:
        shape = next((said for pattern, said in _SHAPES.items() if pattern in message), None)
        message = shape or "must not be blank or have control characters"
    return Refused("bad_value", _shown(f"{path}: {message}" if path else message), path or None)


def _within(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(text: str) -> str:
    return text[:_SHOWN_MAX].encode("ascii", "backslashreplace").decode()
