"""The log's events: the schema file is the code, every event survives its way, other versions are refused."""

from importlib.resources import files
from uuid import UUID

import jsonschema
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import events
from schemas.events import Beat, Click, Conversion, Intake

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
U32 = st.integers(0, 2**32 - 1)
SIGNED = st.integers(-(10**15), 10**15)
EVENTS = st.one_of(
    st.builds(
        Click, v=st.just(1), id=st.uuids(), link_id=U32, offer_id=U32, partner_id=U32, click_class=st.integers(0, 5),
        reason=TEXT, country=TEXT, referer=TEXT, source_id=TEXT, subs=st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    st.builds(
        Conversion, v=st.just(1), intake_id=st.uuids(), conversion_id=st.uuids(), click_uuid=st.uuids(),
        click_class=st.integers(0, 5), link_id=U32, offer_id=U32, partner_id=U32, advertiser_id=U32, event=TEXT,
        order_id=TEXT, event_at_ms=st.integers(0, 2**48), amount_minor=st.none() | SIGNED, currency=TEXT, reason=TEXT,
        former_id=st.none() | st.uuids(), raw=TEXT, status=TEXT, event_id=TEXT, refund_minor=st.none() | SIGNED,
        revenue_minor=st.none() | SIGNED, foreign_click=TEXT, adv=st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    st.builds(
        Intake, v=st.just(1), intake_id=st.uuids(), advertiser_id=U32, result=st.sampled_from(["rejected", "test"]),
        reason=TEXT, raw=TEXT, order_id=TEXT, click_uuid=st.uuids(), click_class=st.integers(0, 5), offer_id=U32,
    ),
    st.builds(
        Beat, v=st.just(1), edge=TEXT, incarnation=TEXT, state=st.sampled_from(["open", "beat", "closed"]),
        at_ms=st.integers(0, 2**48), complete_to_ms=st.integers(0, 2**48),
        acked=st.lists(st.tuples(TEXT, U32, U32), max_size=3),
        counters=st.dictionaries(TEXT, st.dictionaries(TEXT, U32, max_size=2), max_size=2),
    ),
)  # fmt: skip


def published_schema() -> dict[str, object]:
    found = orjson.loads((files("schemas") / "events.schema.json").read_bytes())
    assert isinstance(found, dict)
    return found


def test_the_schema_file_is_the_code() -> None:
    assert published_schema() == events.json_schema()


@given(EVENTS)
def test_an_event_survives_the_log_on_one_line_and_fits_the_schema(event: events.Event) -> None:
    line = events.encode(event)
    assert b"\n" not in line
    assert events.decode(line) == event
    jsonschema.Draft202012Validator(published_schema()).validate(orjson.loads(line))


def test_a_field_that_is_added_later_is_ignored() -> None:
    click = Click(v=1, id=UUID(int=1), link_id=1, offer_id=1, partner_id=1, click_class=0)
    line = orjson.dumps(orjson.loads(events.encode(click)) | {"colour": "blue"})
    assert events.decode(line) == click


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"v": 0}, {"v": "1"}, {"v": None}, {"kind": "visit"}, {"kind": None}, {"id": "1"}, {"subs": 3}]
)
def test_an_unknown_version_or_shape_is_refused(change: dict[str, object]) -> None:
    click = Click(v=1, id=UUID(int=1), link_id=1, offer_id=1, partner_id=1, click_class=0)
    with pytest.raises(msgspec.DecodeError):
        events.decode(orjson.dumps(orjson.loads(events.encode(click)) | change))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"kind":"click"}'])
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        events.decode(line)
