"""docs/postbacks.md says what the code does: the reasons, the dialects, the limits."""

import re
from collections.abc import Iterable
from itertools import chain, takewhile
from pathlib import Path

import pytest

from schemas import events, limits
from schemas.conversions.dialects import DIALECTS, OWN, Dialect
from schemas.conversions.reading import ADV, JSON_FIELDS
from schemas.errors import REJECTIONS, STATUS
from schemas.outcomes import Held, NoChange, Result

DOCS = (Path(events.__file__).parents[1] / "docs" / "postbacks.md").read_text()
# What any door may answer, ours among them.
EVERYWHERE = (
    "method_not_allowed", "too_slow", "too_large", "too_long", "unsupported_media_type", "too_many_requests",
    "unavailable",
)  # fmt: skip


def section(title: str) -> list[str]:
    """The lines under a heading, up to the next of the same rank or a higher one."""
    rank, lines = title.partition(" ")[0], iter(DOCS.splitlines())
    assert title in lines, title
    return list(takewhile(lambda line: not re.match(rf"#{{1,{len(rank)}}} ", line), lines))


def rows(title: str) -> list[list[str]]:
    """The cells of the tables under a heading, without heads."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in section(title) if line[:1] == "|"]
    return [row for row in found if row[0].startswith("`")]


def codes(title: str) -> list[str]:
    return [code for row in rows(title) for code in re.findall(r"`([^`]+)`", row[0])]


def test_the_reasons_of_doors_are_those_of_the_code() -> None:
    told = {row[0].strip("`"): int(row[1]) for row in rows("### Refused at the door")}
    assert told == REJECTIONS | {code: STATUS[code] for code in EVERYWHERE}


def test_the_reasons_of_conversions_are_those_of_the_code() -> None:
    told = codes("### Pending") + codes("### Rejected later")
    assert sorted(told) == sorted(held for held in Held if held)
    assert sorted(codes("### Nothing changed")) == sorted(NoChange)


def test_the_results_are_those_of_the_code() -> None:
    assert set(codes("## The answer")) <= set(Result)
    assert set(codes("### Results of the intake log")) == set(Result)


def test_the_fields_are_those_of_the_code() -> None:
    told = set(codes("## What can be said"))
    assert told | set(ADV) == {name for name in JSON_FIELDS if not name.endswith("_minor")}
    assert told & set(ADV) == {"adv1", "adv10"}


def table(dialect: Dialect) -> list[list[str]]:
    """A dialect as its table has it: their names, ours."""
    fields = {field: names for field, names in dialect.parameters.items() if field not in ADV}
    adv = [(field, dialect.parameters[field]) for field in ADV if field in dialect.parameters]
    said = [[ticked(names), f"`{field}`"] for field, names in fields.items()]
    if adv:
        said.append([ticked(chain(*(names for _, names in adv))), f"`{adv[0][0]}` … `{adv[-1][0]}`"])
    if dialect.tokens:
        said.append([ticked(dialect.tokens), "the token"])
    lists = [[f"`{name}`", f"words that mean {ours}"] for name, ours in dialect.status_lists.items()]
    refused = [[ticked(sorted(dialect.refused)), "refused"]] if dialect.refused else []
    own = DIALECTS[OWN].statuses
    words = {word: ours for word, ours in dialect.statuses.items() if word not in own}
    statuses = [[f"`{word}`", f"status {ours}" if ours else "no status"] for word, ours in words.items()]
    return said + lists + refused + statuses + [[f"`{word}`", f"event {ours}"] for word, ours in dialect.events.items()]


def ticked(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@pytest.mark.parametrize("key", [key for key in DIALECTS if key != OWN])
def test_a_dialects_table_is_its_data_file(key: str) -> None:
    dialect = DIALECTS[key]
    assert rows(f"### {dialect.title}") == table(dialect)
    text = "\n".join(section(f"### {dialect.title}"))
    assert f"`{key}`" in text, "what to write into the advertiser's configuration"
    for path in dialect.paths:
        assert f"`{path}`" in text
    assert not dialect.answer or f"`{dialect.answer}`" in text


def test_every_dialect_has_a_section_and_no_section_has_none() -> None:
    titles = re.findall(r"^### (.+)$", DOCS.partition("## Switching")[2].partition("\n## ")[0], re.MULTILINE)
    assert titles == sorted(dialect.title for key, dialect in DIALECTS.items() if key != OWN)


@pytest.mark.parametrize(
    "limit",
    ["CONVERSIONS_PER_POST_MAX", "ORDER_ID_MAX", "EVENT_NAME_MAX", "RETURN_MAX", "RAW_MAX", "CLICK_WINDOW_DAYS_MAX"],
)
def test_the_limits_are_those_of_the_code(limit: str) -> None:
    assert re.search(rf"\b{getattr(limits, limit):,}\b", DOCS), limit
