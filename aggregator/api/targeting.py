"""Whom an offer is for and where it leads whom, as an operator types it in: checked, in the form it is kept in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from aggregator.api.destinations import LABEL, check_url
from schemas import limits
from schemas.errors import Refused
from schemas.links import Hours, Landing, Targeting, origins

_MINUTES = 24 * 60
_NAME = re.compile(rf"[^\x00-\x1f\x7f-\x9f]{{1,{limits.TARGETING_VALUE_MAX}}}")
_SHAPES = {
    "country": (re.compile("[a-z]{2}"), "two letters, such as de"),
    "device": (re.compile("mobile|tablet|desktop|robot|other"), "mobile, tablet, desktop, robot or other"),
    "os": (_NAME, "the name of a system, such as android"),
    "browser": (_NAME, "the name of a browser, such as firefox"),
    "language": (re.compile("[a-z]{2,3}"), "a language without its region, such as de"),
}
_HOST = re.compile(rf"(?=[^:]{{1,253}}(:|\Z))((\*\.{LABEL}\.)?({LABEL}\.)*{LABEL})(:(?!80\Z|443\Z)[1-9]\d{{0,4}})?")


def read_targeting(targeting: Targeting, field: str = "targeting") -> dict[str, Any]:
    """As it is kept: values in lower case, in order, nothing that is not said. Raises Refused naming the field."""
    if len(targeting.hours) > limits.HOURS_MAX:
        raise Refused("bad_value", f"hours has at most {limits.HOURS_MAX} parts", f"{field}.hours")
    for number, hours in enumerate(targeting.hours):
        _check_hours(hours, f"{field}.hours[{number}]")
    kept = {
        "include": _read_rules(targeting.include, f"{field}.include"),
        "exclude": _read_rules(targeting.exclude, f"{field}.exclude"),
        "hours": [msgspec.to_builtins(hours, order="deterministic") for hours in targeting.hours],
    }
    return {name: value for name, value in kept.items() if value}


def read_landings(landings: Sequence[Landing], own: tuple[str, ...]) -> list[dict[str, Any]]:
    """As they are kept. Raises Refused naming the field."""
    if len(landings) > limits.LANDINGS_MAX:
        raise Refused("bad_value", f"an offer has at most {limits.LANDINGS_MAX} landings", "landings")
    return [_read_landing(landing, f"landings[{number}]", own) for number, landing in enumerate(landings)]


def read_hosts(hosts: Iterable[str], own: tuple[str, ...]) -> list[str]:
    """Hosts that deep links may lead to, in lower case and in order; `*.shop.example` is all that end in
    `.shop.example`; a port that is not the scheme's own is said. Raises Refused for what is none, and for our own."""
    kept = sorted({host.lower() for host in hosts})
    if len(kept) > limits.DEEP_LINK_HOSTS_MAX:
        raise Refused("bad_value", f"at most {limits.DEEP_LINK_HOSTS_MAX} hosts", "deep_link_hosts")
    ours = {host for _, host, _ in origins(own)}
    for host in kept:
        if not _HOST.fullmatch(host):
            message = "a host is such as shop.example, *.shop.example or shop.example:8443"
            raise Refused("bad_value", message, "deep_link_hosts")
        name = host.partition(":")[0]
        if any(one == name or (name[0] == "*" and one.endswith(name[1:])) for one in ours):
            raise Refused("bad_value", f"{host} leads back to this tracker", "deep_link_hosts")
    return kept


def _read_landing(landing: Landing, field: str, own: tuple[str, ...]) -> dict[str, Any]:
    check_url(f"{field}.url", landing.url, own)
    if not 1 <= landing.weight <= limits.LANDING_WEIGHT_MAX:
        raise Refused("bad_value", f"weight must be from 1 to {limits.LANDING_WEIGHT_MAX}", f"{field}.weight")
    kept: dict[str, Any] = {"url": landing.url, "weight": landing.weight}
    if landing.targeting is not None:
        kept["targeting"] = read_targeting(landing.targeting, f"{field}.targeting")
    return kept


def _read_rules(rules: dict[Any, frozenset[str]], field: str) -> dict[str, list[str]]:
    return {asked: _read_values(asked, values, f"{field}.{asked}") for asked, values in sorted(rules.items())}


def _read_values(asked: str, values: frozenset[str], field: str) -> list[str]:
    kept = sorted({value.lower() for value in values})
    shape, wanted = _SHAPES[asked]
    if not 1 <= len(kept) <= limits.TARGETING_VALUES_MAX:
        raise Refused("bad_value", f"{asked} has 1 to {limits.TARGETING_VALUES_MAX} values", field)
    if not all(shape.fullmatch(value) for value in kept):
        raise Refused("bad_value", f"{asked} must be {wanted}", field)
    return kept


def _check_hours(hours: Hours, field: str) -> None:
    if not hours.days or not hours.days <= frozenset(range(1, 8)):
        raise Refused("bad_value", "days are 1 (Monday) to 7 (Sunday)", f"{field}.days")
    if not 0 <= hours.since < hours.until <= _MINUTES:
        raise Refused("bad_value", "since and until are minutes of one day: a night is two parts", f"{field}.until")
