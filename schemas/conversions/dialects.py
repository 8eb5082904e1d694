"""The languages that postbacks are written in: a data file for each tracker whose advertisers may go on speaking it.

A dialect is chosen per advertiser, never guessed: `transaction_id` is the click to one, and the order to another.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

OWN = "clickdam"
IGNORED = "ignored"  # the status of a postback that is not meant for us
FOLDER = Path(__file__).parent / "dialects"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one tracker's postbacks are written.

    `parameters`: field of Posted (or adv1..adv10) -> the names that may carry it, in lower case; the first that has a
    value counts. `tokens`: its names of the token. `statuses`: what it calls a status, in lower case -> what that is to
    us (empty: as if there were none), or `ignored`. `status_lists`: parameters that name further values of a status in
    the postback itself. `events`: its name of an event -> ours. `refused`: parameters that would change the money in a
    way that we do not know. `answer`: the body that its senders expect of what was taken. `fields`: parameters the
    other way round, name -> field and rank, our own names behind its, where they mean nothing else to it.
    """

    name: str
    title: str
    paths: tuple[str, ...]
    tokens: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]]
    statuses: Mapping[str, str]
    status_lists: Mapping[str, str]
    events: Mapping[str, str]
    refused: frozenset[str]
    answer: str
    fields: Mapping[str, tuple[str, int]]


def _read(path: Path, own: Mapping[str, Any]) -> Dialect:
    file = tomllib.loads(path.read_text())
    parameters = {field: tuple(names) for field, names in file["parameters"].items()}
    claimed = {*chain(*parameters.values()), *file["tokens"], *file.get("status_lists", ())}
    ours = {field: tuple(set(names) - claimed) for field, names in own["parameters"].items()}
    ranked = {field: (*parameters.get(field, ()), *ours[field]) for field in ours}
    return Dialect(
        name=path.stem,
        title=file["title"],
        paths=tuple(file["paths"]),
        tokens=tuple(file["tokens"]),
        parameters=parameters,
        statuses=own["statuses"] | file["statuses"],
        status_lists=file.get("status_lists", {}),
        events=file.get("events", {}),
        refused=frozenset(file.get("refused", ())),
        answer=file.get("answer", ""),
        fields={name: (field, rank) for field, names in ranked.items() for rank, name in enumerate(names)},
    )


def _read_all() -> dict[str, Dialect]:
    own = tomllib.loads((FOLDER / f"{OWN}.toml").read_text())
    return {path.stem: _read(path, own) for path in sorted(FOLDER.glob("*.toml"))}


DIALECTS: Mapping[str, Dialect] = _read_all()


@cache
def click_parameters() -> frozenset[str]:
    """All names, of any dialect, under which a click id may come."""
    return frozenset(name for dialect in DIALECTS.values() for name in dialect.parameters["click_id"])


@cache
def token_parameters() -> tuple[str, ...]:
    """All names, of any dialect, under which a token may come; ours first."""
    return tuple(dict.fromkeys(name for key in (OWN, *DIALECTS) for name in DIALECTS[key].tokens))


@cache
def paths() -> tuple[str, ...]:
    """All paths, of any dialect, that postbacks come to; `{token}` in one is the advertiser's."""
    return tuple(dict.fromkeys(path for key in (OWN, *DIALECTS) for path in DIALECTS[key].paths))
