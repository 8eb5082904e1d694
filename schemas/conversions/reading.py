"""From the text of a request to what it says: parameters or JSON to `Posted`, and what of it may be kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain, islice
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from schemas import limits
from schemas.click_id import ClickId, ClickKeys, Forged, NotAClickId, RetiredKey, UnknownKey
from schemas.click_id import read as read_click_id
from schemas.conversions.dialects import DIALECTS, IGNORED, OWN, Dialect, click_parameters, token_parameters
from schemas.conversions.posted import Posted
from schemas.errors import Refused

ADV = tuple(f"adv{n}" for n in range(1, 11))
_ADV = frozenset(ADV)
JSON_FIELDS = frozenset(Posted.__struct_fields__) - {"original_status", "adv"} | frozenset(ADV)
MONEY = ("amount", "revenue", "payout", "refund_amount", "remaining_amount")
_TYPES: Mapping[str, type] = {name: int if name.endswith("_minor") else str for name in JSON_FIELDS}
_MINOR = frozenset(name for name in JSON_FIELDS if name.endswith("_minor"))
MASK = "***"
_ENCODED_AT_MOST = 4


def read_form(text: str) -> dict[str, str]:
    """Query or form parameters by name. Raises Refused for too many, or for one that is said twice, differently."""
    try:
        pairs = _pairs(text)
    except ValueError as error:
        raise Refused("bad_parameters", f"the parameters cannot be read: {type(error).__name__}") from None
    found: dict[str, str] = {}
    for name, value in ((name.lower(), value) for name, value in pairs):
        if found.setdefault(name, value) != value:
            raise Refused("bad_parameters", f"{name[:64]!r} is given twice, with different values", name[:64])
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    if "%" in text or "+" in text or text.count("&") >= limits.QUERY_PARAMS_MAX:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=limits.QUERY_PARAMS_MAX)
    return [(name, value) for name, _, value in (part.partition("=") for part in text.split("&") if part)]


def token_of(params: Mapping[str, str]) -> str:
    """The advertiser's token, under any tracker's name for it; empty if there is none."""
    return next((params[name] for name in token_parameters() if params.get(name)), "")


def click_candidates(params: Mapping[str, str]) -> frozenset[str]:
    """What may be a click id in a postback whose dialect is not known yet."""
    return frozenset(value for name, value in params.items() if value and name in click_parameters())


class HalfRead(Refused):
    """A refusal of a conversion whose order is known all the same, to be found by."""

    def __init__(self, refusal: Refused, order_id: str) -> None:
        super().__init__(refusal.code, refusal.message, refusal.field)
        self.order_id = order_id


def posted_form(params: Mapping[str, str], dialect: Dialect, status_map: Mapping[str, str]) -> Posted:
    """What a postback's parameters say in `dialect`; those that we do not know are ignored, as senders expect.
    `status_map` is the advertiser's own, in lower case. Raises HalfRead for a status that is not known, or ignored."""
    said: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for name, value in params.items():
        if value and name in dialect.fields:
            field, rank = dialect.fields[name]
            if field not in said or rank < ranks[field]:
                said[field], ranks[field] = value, rank
    adv = {name: said.pop(name) for name in _ADV.intersection(said)}
    if "event" in said:
        said["event"] = dialect.events.get(said["event"], said["event"])
    try:
        _check_supported(params, dialect)
        if "status" in said:
            original = said["status"]
            said |= {"original_status": original, "status": _status(original, params, dialect, status_map)}
    except Refused as refusal:
        raise HalfRead(refusal, said.get("order_id", "")) from None
    return Posted(**said, adv=adv)


def posted_json(item: Any) -> Posted:
    """One JSON conversion. Raises Refused, HalfRead where it is an object, naming the field."""
    if not isinstance(item, dict):
        raise Refused("bad_parameters", "a conversion is an object")
    try:
        return _posted_json(item)
    except Refused as refusal:
        order_id = item.get("order_id")
        raise HalfRead(refusal, order_id if isinstance(order_id, str) else "") from None


def _posted_json(item: dict[str, Any]) -> Posted:
    for name, value in item.items():
        wanted = _TYPES.get(name)
        if wanted is None:
            raise Refused("bad_parameters", f"unknown field {name[:64]!r}", name[:64])
        if type(value) is not wanted:
            money = name.removesuffix("_minor") in MONEY
            raise Refused("bad_amount" if money else "bad_parameters", f"{name} has a wrong type", name)
    for name in _MINOR & item.keys():
        if (major := name.removesuffix("_minor")) in item:
            raise Refused("bad_amount", f"{major} and {name} exclude each other", major)
    said, adv = item, {}
    if not item.keys().isdisjoint(ADV):
        adv = {name: item[name] for name in ADV if item.get(name)}
        said = {name: value for name, value in item.items() if name not in ADV}
    if status := said.get("status"):
        said = said | {"original_status": status, "status": _status(status, {}, DIALECTS[OWN], {})}
    return Posted(**said, adv=adv)


def read_click(keys: ClickKeys, text: str) -> ClickId | None:
    """The click of ours that a conversion names; None where there is no id, or one of another form than ours. Raises
    Refused for what has our form and is not ours."""
    try:
        return read_click_id(keys, text)
    except NotAClickId:
        return None
    except UnknownKey:
        raise Refused("unknown_key", "the key of this click id is not known here yet", "click_id") from None
    except RetiredKey:
        raise Refused("retired_key", "the key of this click id is retired", "click_id") from None
    except Forged:
        raise Refused("forged_click_id", "this click id is not ours", "click_id") from None


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """A query or form as it was sent, as far as it may be kept: without the values of secret parameters, wherever else
    they, or one of `known`, or a secret's name stand in it, without ip addresses, and at most `RAW_MAX` characters:
    cut, it ends in `…`."""
    parts, is_whole = _first_parts(text)
    hidden = {part: _hidden(part) for part in parts if _is_secret(part.partition("=")[0])}
    secrets = _secrets([*known, *(part.partition("=")[2] for part in hidden)])
    if _is_plain("&".join([part for part in parts if part not in hidden]), secrets):
        return _cut("&".join([hidden.get(part, part) for part in parts]), is_whole=is_whole)
    return _cut("&".join([hidden.get(part) or _masked(part, secrets) for part in parts]), is_whole=is_whole)


def without_secrets_json(item: Any, known: Iterable[str] = ()) -> str:
    """The same of one conversion in JSON; empty for what is no object. What is nested means nothing to us and goes."""
    if not isinstance(item, dict):
        return ""
    if item.keys() <= JSON_FIELDS and _FLAT.issuperset(map(type, item.values())):
        text = orjson.dumps(item).decode()
        if _is_plain(text, _secrets(known)):
            return _cut(text)
    some = [(_begin(name), _begin(value)) for name, value in islice(item.items(), limits.QUERY_PARAMS_MAX)]
    secrets = _secrets([*known, *(value for name, value in some if isinstance(value, str) and _is_secret(name))])
    text = orjson.dumps(dict(_masked_json(name, value, secrets) for name, value in some)).decode()
    return _cut(text, is_whole=len(some) == len(item))


def _check_supported(params: Mapping[str, str], dialect: Dialect) -> None:
    for name in dialect.refused.intersection(params):
        if params[name].strip("%0."):
            raise Refused("unsupported_parameter", f"what {name} does to the money is not known here", name)


def has_address(text: str) -> bool:
    """Whether an ip address stands in it, which is a buyer's."""
    return _ADDRESS.search(text) is not None and any(map(_is_address, _NOT_OF_ADDRESS.split(text.lower())))


def _status(text: str, params: Mapping[str, str], dialect: Dialect, status_map: Mapping[str, str]) -> str:
    """Ours for a status as it was sent: as the advertiser's configuration says, else the postback, else the dialect."""
    word = text.strip().lower()
    found = status_map.get(word) or _listed(word, params, dialect) or dialect.statuses.get(word)
    if found is None:
        raise Refused("unknown_status", f"{text[:32]!r} is no status that is known for this advertiser", "status")
    if found == IGNORED:
        raise Refused("ignored_status", f"{text[:32]!r} is to be ignored", "status")
    return found


def _listed(word: str, params: Mapping[str, str], dialect: Dialect) -> str | None:
    for name, ours in dialect.status_lists.items():
        if word and word in (part.strip() for part in params.get(name, "").lower().split(",")):
            return ours
    return None


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


_NAMES = frozenset(chain.from_iterable(dialect.fields for dialect in DIALECTS.values()))
_SECRET_NAMES = (*token_parameters(), "signature", "authorization", "bearer")
_ADDRESSES = ("ip", "user_ip", "ip_address", "client_ip", "session_ip", "device_ip")  # the visitor's: nobody keeps them
_SECRET = frozenset(map(_bare, (*_SECRET_NAMES, *_ADDRESSES)))
_MENTIONS = re.compile(rf"({'|'.join(_SECRET_NAMES)})[\"'\s\]]*[=:\s]")
_FLAT = frozenset({str, int, float, bool, type(None)})
_ESCAPED = re.compile(r"[%+\\]")
_ENCODED = re.compile(r"%[0-9a-f]{2}", re.IGNORECASE)
_ADDRESS = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d|:[0-9a-f]{0,4}:", re.IGNORECASE)  # may be one, or a time
_NOT_OF_ADDRESS = re.compile(r"[^0-9a-f.:]+")
_SECRET_LENGTH_MIN = 8  # a shorter word is none, and half of what was sent may have it in it


@lru_cache(maxsize=1_024)
def _is_secret(name: str) -> bool:
    return _bare(_decoded(name)) in _SECRET


def _secrets(values: Iterable[str]) -> frozenset[str]:
    return frozenset(value for value in map(_decoded, values) if len(value) >= _SECRET_LENGTH_MIN)


def _decoded(text: str) -> str:
    """As it reads once nothing is percent-encoded any more: who sends a URL inside a URL encodes it again."""
    for _ in range(_ENCODED_AT_MOST):
        if "%" not in text:
            break
        text = unquote(text)
    return text.replace("+", " ")


def _is_plain(text: str, secrets: frozenset[str]) -> bool:
    """Whether nothing in it needs a second look: it is seen at once, and of nearly all that is sent."""
    lower = text.lower()
    has_room = lower.count(".") >= 3 or lower.count(":") >= 2  # for an address
    if _ESCAPED.search(lower) or (has_room and _ADDRESS.search(lower)):
        return False
    for word in _SECRET_NAMES:  # a loop of its own takes half as long as `any`
        if word in lower:
            return False
    return not any(secret.lower() in lower for secret in secrets)


def _hidden(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}{equals}{MASK if equals else ''}"


def _masked(part: str, secrets: frozenset[str]) -> str:
    name, _, value = part.partition("=")
    said = _decoded(name)
    if not _tells(f"{said}\n{_decoded(value)}", secrets):
        return part
    return f"{name}={MASK}" if said.lower() in _NAMES else MASK


def _masked_json(name: str, value: Any, secrets: frozenset[str]) -> tuple[str, Any]:
    if _is_secret(name) or isinstance(value, dict | list) or _tells(_decoded(str(value)), secrets):
        value = MASK
    return (MASK if _tells(_decoded(name), secrets) else name), value


def _tells(text: str, secrets: frozenset[str]) -> bool:
    if any(secret in text for secret in secrets) or ("%" in text and _ENCODED.search(text)):
        return True
    lower = text.lower()
    if any(name in lower for name in _SECRET_NAMES) and _MENTIONS.search(lower):
        return True
    return has_address(lower)


def _is_address(word: str) -> bool:
    """An ip address, with or without a port."""
    for text in (word, word.strip(".:"), word.rpartition(":")[0]):
        try:
            ip_address(text)
        except ValueError:
            continue
        return True
    return False


def _first_parts(text: str) -> tuple[list[str], bool]:
    """The parameters that may be kept, each whole, and whether they are all. What is cut off anyhow is not looked
    through: with two million ampersands that would take seconds, in which nobody else is answered."""
    begin = _begin(text)
    parts = begin.split("&", limits.QUERY_PARAMS_MAX)
    is_whole = len(begin) == len(text) and len(parts) <= limits.QUERY_PARAMS_MAX
    return (parts if is_whole or len(parts) == 1 else parts[:-1]), is_whole


def _begin(value: Any) -> Any:
    """Of a text twice what is kept, so that no half of a secret is."""
    return value[: 2 * limits.RAW_MAX] if isinstance(value, str) else value


def _cut(raw: str, *, is_whole: bool = True) -> str:
    return raw if is_whole and len(raw) <= limits.RAW_MAX else f"{raw[: limits.RAW_MAX - 1]}…"
