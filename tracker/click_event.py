"""The event of a click as a line of the log, put together from what is written once of its target, its agent and its
place: an object of `events.Click` for each, filled and encoded, takes six times as long.

Each part is JSON fields with a comma before each; what is empty is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from schemas import events
from schemas.outcomes import ClickClass, Reason
from tracker import params

_NAMED = frozenset({"source_id", "click_ref"})
_text = msgspec.json.Encoder().encode
_BEGIN = f'{{"kind":"click","v":{events.VERSION},"id":"'


def written(fields: Mapping[str, str]) -> str:
    """Fields with a text each."""
    return "".join(f',"{name}":{_text(value).decode()}' for name, value in fields.items() if value)


def written_ids(link_id: int, offer_id: int, partner_id: int) -> str:
    return f',"link_id":{link_id},"offer_id":{offer_id},"partner_id":{partner_id}'


def written_params(said: Mapping[str, str]) -> str:
    """Of what the link said, what a click keeps."""
    subs = {name: value for name, value in said.items() if name in params.KEPT}
    kept = f',"subs":{_text(subs).decode()}' if subs else ""
    return kept + written({name: said[name] for name in _NAMED if name in said}) if _NAMED & said.keys() else kept


def line(uuid: UUID | str, click_class: ClickClass, reason: Reason, visitor: str, parts: str) -> bytes:
    """`uuid` as it is written, `visitor` in hex digits, `parts` what the functions above made of the rest."""
    why = f',"reason":"{reason}"' if reason else ""
    seen = f',"visitor":"{visitor}"' if visitor else ""
    return f'{_BEGIN}{uuid}","click_class":{click_class:d}{why}{seen}{parts}}}'.encode()
