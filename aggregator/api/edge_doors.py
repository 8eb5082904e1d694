"""The doors of the edge as the OpenAPI document tells of them: where links lead, and where conversions are sent. The
edge is another server, whose code is not known here: what a conversion may say is told by the same data that it is read
by; names of a click's parameters are held to the edge's own by a test, as all routes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.api.shapes import ANYTHING, FLAG, INTEGER, TEXT, Schema, listed, record
from schemas import limits
from schemas.conversions.dialects import DIALECTS, OWN, Dialect, paths
from schemas.conversions.reading import JSON_FIELDS
from schemas.errors import REJECTIONS
from schemas.outcomes import Result

Content = Mapping[str, Schema]  # by media type
JSON, HTML, PLAIN, FORM = "application/json", "text/html", "text/plain", "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Door:
    """A call of the edge. `done` is what it answers, by status; a refusal has one of the codes `refused`, as `refusal`.
    `for_senders`: an advertiser's token says who calls."""

    says: str
    done: Mapping[int, Content]
    refused: tuple[str, ...] = ()
    refusal: Content = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Content = field(default_factory=dict)
    for_senders: bool = False


def _texts(*names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, TEXT)


ERROR = record("EdgeError", (), error=record("", ("code", "message"), sometimes="field"))
_RECEIPT = record(
    "Receipt", (), sometimes="reason conversion_id message field status_url", null="reason conversion_id field",
    result={"type": "string", "enum": [Result.ACCEPTED, Result.DUPLICATE, Result.REJECTED]},
)  # fmt: skip
_TEST = record("TestReceipt", ("dialect",), test=FLAG, fields=ANYTHING, receipt=_RECEIPT)
_ANY_RECEIPT: Schema = {"anyOf": [_RECEIPT, _TEST]}

CLICK = _texts(
    *(f"sub{n}" for n in range(1, 11)), "click_ref", "source_id", "url", "path", "creative_id", "uid", "coupon_code",
    "gclid", "gbraid", "wbraid", "fbclid", "msclkid", "ttclid", "li_fat_id", "twclid", "no_track", "qr", "bot",
)  # fmt: skip
PAIR = CLICK | _texts("offer_id", "affiliate_id")
_LED: Mapping[int, Content] = {302: {}}
_SEEN = {JSON: ERROR, HTML: TEXT}
_OF_A_LINK = ("bad_request", "not_found", "too_long", "unavailable")
_OF_A_REQUEST = ("too_long", "too_many_requests", "unavailable")
_OF_A_BODY = ("too_slow", "too_large", "unsupported_media_type")
_OF_A_SENDER = (*REJECTIONS, *_OF_A_REQUEST, *_OF_A_BODY)
_TAKEN: Mapping[int, Content] = {200: {JSON: _ANY_RECEIPT, PLAIN: TEXT}, 202: {JSON: _ANY_RECEIPT, PLAIN: TEXT}}
_REJECTED = {JSON: _ANY_RECEIPT}
_OTHERS = "Other trackers' names for these parameters are read as well."
_SAME_POSTBACK = "Parameters stand in the query, in a form, or in both. `compat=200` and `return` change the answer."


def _led(says: str, query: Mapping[str, Schema], done: Mapping[int, Content] = _LED) -> dict[str, Door]:
    """The same for GET, and for a HEAD, which is not recorded."""
    door = Door(f"{says} {_OTHERS}", done, _OF_A_LINK, _SEEN, query)
    return {"GET": door, "HEAD": door}


def said_in(dialect: Dialect) -> dict[str, Schema]:
    """The parameters of a postback."""
    names = {*dialect.fields, *dialect.tokens, *dialect.status_lists}
    return _texts(*sorted(names), "signature", "compat", "return")


def _spoken(path: str) -> Dialect:
    """The dialect of a path, ours where several have it, or none."""
    have = [dialect for dialect in DIALECTS.values() if path in dialect.paths]
    return have[0] if len(have) == 1 else DIALECTS[OWN]


def _postback(path: str) -> dict[str, Door]:
    dialect = _spoken(path)
    says = f"A conversion, as {dialect.title} names its parameters, else as its advertiser's tracker does."
    said = said_in(dialect)
    asked = Door(f"{says} {_SAME_POSTBACK}", _TAKEN, _OF_A_SENDER, _REJECTED, said, for_senders=True)
    form = {FORM: {"type": "object", "properties": said}}
    posted = Door(asked.says, _TAKEN, _OF_A_SENDER, _REJECTED, said, form, for_senders=True)
    return {"GET": asked, "POST": posted}


def _shared(path: str, called: str, led: Mapping[str, Door]) -> dict[str, Door]:
    """A path that takes clicks, and conversions: any POST, and a GET with the parameter `called`."""
    postback, click = _postback(path), led["GET"]
    both = Door(
        f"{click.says} With `{called}`, a conversion.", {**click.done, **_TAKEN}, tuple({**dict.fromkeys(click.refused),
        **dict.fromkeys(_OF_A_SENDER)}), {JSON: {"anyOf": [ERROR, _ANY_RECEIPT]}, HTML: TEXT},
        {**click.query, **postback["GET"].query, called: TEXT}, for_senders=True,
    )  # fmt: skip
    return {"GET": both, "HEAD": led["HEAD"], "POST": postback["POST"]}


def _looked(says: str, form: str, answer: Schema) -> dict[str, Door]:
    done = {form: answer, HTML: TEXT} if form == JSON else {form: answer}
    door = Door(says, {200: done}, _OF_A_LINK, _SEEN, CLICK)
    return {"GET": door, "HEAD": door}


_ONE: Schema = {
    "type": "object",
    "properties": {name: INTEGER if name.endswith("_minor") else TEXT for name in sorted(JSON_FIELDS)},
    "additionalProperties": False,
}
_MANY: Schema = {
    "type": "object",
    "properties": {
        "conversions": {"type": "array", "items": _ONE, "minItems": 1, "maxItems": limits.CONVERSIONS_PER_POST_MAX}
    },
    "required": ["conversions"],
    "additionalProperties": False,
}
_JSON_ANSWER: Content = {JSON: {"anyOf": [_RECEIPT, _TEST, record("Receipts", (), receipts=listed(_ANY_RECEIPT))]}}
_IMAGE: Content = {"image/gif": TEXT}
_LOOK = record("Look", ("code", "offer", "status", "leads_to"), is_fallback=FLAG)
_SHARED = {
    "/": ("nid", _led("No link leads through here.", {}, {})),
    "/click": ("cnv_id", _led("A click on a link that names offer and partner.", PAIR)),
    "/click.php": (
        "cnv_id", _led("A click on a link that names its code (`key`), or offer and partner.", PAIR | _texts("key"))
    ),
}  # fmt: skip

_BY_PATH: dict[str, dict[str, Door]] = {
    "/c/{code}": _led("A click on a link: 302 to its destination, once it is durable.", CLICK),
    "/c/{code}+": _looked("Where a link would lead whoever asks.", JSON, _LOOK),
    "/c/{code}/qr.svg": _looked("The QR code of a link.", "image/svg+xml", TEXT),
    "/c": _led("A click on a link that names offer and partner.", PAIR),
    "/aff_c": _led("A click on a link that names offer and partner.", PAIR),
    **{path: _shared(path, *shared) for path, shared in _SHARED.items()},
    "/tracking202/redirect/dl.php": _led(
        "A click on a link whose code is `t202id`; an offer where `t202pubid` names a partner.",
        PAIR | _texts("t202id", "t202pubid"),
    ),
    "/{affiliate}/{offer}": _led("A click on a link that names partner and offer.", CLICK),
    **{path: _postback(path) for path in ("/pb", *paths()) if path not in _SHARED},
    "/v1/conversions": {
        "POST": Door(
            "Conversions: one, or many with a receipt for each.",
            {200: _JSON_ANSWER, 202: _JSON_ANSWER}, _OF_A_SENDER, _JSON_ANSWER,
            body={JSON: {"anyOf": [_ONE, _MANY]}}, for_senders=True,
        )
    },
    "/pixel.gif": {
        "GET": Door(
            "A sale that one of the advertiser's pages reports, under its public `key`. Always an image.",
            {200: _IMAGE, 202: _IMAGE}, (*REJECTIONS, *_OF_A_REQUEST), _IMAGE,
            _texts(*sorted({*DIALECTS[OWN].fields, "key"})),
        )
    },
    "/tag.js": {"GET": Door("The script of an advertiser's pages, which asks for the pixel.",
                            {200: {"text/javascript": TEXT}})},
}  # fmt: skip
DOORS = {f"{method} {path}": door for path, doors in _BY_PATH.items() for method, door in doors.items()}
# The edge has these as the API does.
ALIKE = frozenset({"GET /live", "GET /ready"})
