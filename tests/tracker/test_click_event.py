"""What is written of a click in parts is the event that the log's readers know."""

from uuid import UUID

import jsonschema
import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import events
from schemas.outcomes import ClickClass, Reason
from tracker.click_event import line, written, written_ids, written_params
from tracker.params import KEPT

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
U32 = st.integers(0, 2**32 - 1)
NAMES = ("country", "device", "os", "browser", "ip", "referer")
SAID = st.dictionaries(st.sampled_from([*sorted(KEPT), "source_id", "click_ref", "offer_id", "utm"]), TEXT)
SCHEMA = jsonschema.Draft202012Validator(events.json_schema())


@given(
    st.uuids(), st.tuples(U32, U32, U32), st.sampled_from(ClickClass), st.sampled_from(Reason),
    st.sampled_from(["", "0123456789abcdef"]), st.dictionaries(st.sampled_from(NAMES), TEXT), SAID,
)  # fmt: skip
@example(UUID(int=1), (0, 0, 0), ClickClass.NORMAL, Reason.NONE, "", {"os": '"\\\n\0\u2028'}, {"sub1": '",\\'})
def test_an_event_written_in_parts_is_that_of_the_schema(
    uuid: UUID, ids: tuple[int, int, int], of: ClickClass, why: Reason, who: str,
    fields: dict[str, str], said: dict[str, str],
) -> None:  # fmt: skip
    text = line(str(uuid), of, why, who, written_ids(*ids) + written(fields) + written_params(said))
    named = {name: said[name] for name in ("source_id", "click_ref") if name in said}
    link_id, offer_id, partner_id = ids
    assert b"\n" not in text
    SCHEMA.validate(orjson.loads(text))
    assert events.decode(text) == events.Click(
        v=1, id=uuid, link_id=link_id, offer_id=offer_id, partner_id=partner_id, click_class=of, reason=why,
        visitor=who, subs={name: value for name, value in said.items() if name in KEPT}, **fields, **named,
    )  # fmt: skip


def test_what_is_empty_is_not_written() -> None:
    text = line(
        "u", ClickClass.NORMAL, Reason.NONE, "", written_ids(1, 2, 3) + written({"os": ""}) + written_params({})
    )
    assert text == b'{"kind":"click","v":1,"id":"u","click_class":0,"link_id":1,"offer_id":2,"partner_id":3}'
