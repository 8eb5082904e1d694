"""The fast lane answers as aiohttp does: the same requests at two edges, one with the lane and one without. The loop is
the product's, uvloop."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
import uvloop

from loadtests.faults import edges, odd_requests
from loadtests.faults.doors import Heard, both_doors, differences
from loadtests.faults.odd_requests import FORM, ODD, ODD_HEADS, STRAY, Said
from schemas import limits
from tracker.fast_lane import FastLane
from tracker.log.recorder import Answered, Recorder

SEED = 20_261_123
REQUESTS = 20_000
LOOKS_MAX = 100  # at what came on one connection; 3 MB are unpacked in 46 pieces
CUT_BYTES_MAX = 130  # of a request that is cut at every byte


@pytest.fixture(autouse=True)
def _patient_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make one of them give up."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 5.0)


def compare(folder: Path, redis_url: str, said: Sequence[Said]) -> Heard:
    """Say all of it to both, and fail where they differ; what was heard of either."""
    slow, fast = uvloop.run(both_doors(folder, redis_url, said))
    found = differences(said, slow, fast)
    assert not found, f"seed {SEED}, {len(found)} differences of {len(said)} connections:\n" + "\n".join(found[:5])
    return slow


@pytest.fixture
def lane_answers(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The answers that the lane gives from now on."""
    found: list[bytes] = []
    answer = FastLane.answer

    def noted(self: FastLane, given: bytes) -> None:
        found.append(given)
        answer(self, given)

    monkeypatch.setattr(FastLane, "answer", noted)
    return found


def generated() -> list[Said]:
    rng, found = Random(SEED), []
    while sum(said.requests for said in found) < REQUESTS:
        found.append(odd_requests.any_said(rng, f"{len(found)}", rng.randrange(0, 20)))
    return found


def test_20_000_generated_requests_are_answered_and_recorded_alike(
    tmp_path: Path, valkey_url: str, lane_answers: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    said = generated()
    heard = compare(tmp_path, valkey_url, said)
    statuses = Counter(re.findall(rb"HTTP/1\.1 (\d{3}) ", b"".join(heard.streams)))
    with capsys.disabled():
        print(f"\nseed {SEED}: {sum(one.requests for one in said):,} requests on {len(said):,} connections, "
              f"{statuses.total():,} answers: {dict(statuses.most_common())}")  # fmt: skip
        print(f"    {heard.written.total():,} events recorded, {len(lane_answers):,} answers given by the lane")
    assert len(lane_answers) > REQUESTS / 10


def test_every_odd_request_there_is_is_answered_and_recorded_alike(tmp_path: Path, valkey_url: str) -> None:
    plain = edges.request("/c/demo?sub1=before")
    said = [odd_requests.one(raw) for raw in ODD.values()]
    said += [Said(((0, raw), (1, odd_requests.END)), 2) for raw in ODD_HEADS.values()]
    said += [Said(((0, plain), (1, raw + odd_requests.END)), 3) for raw in ODD_HEADS.values()]
    compare(tmp_path, valkey_url, said)


def test_what_follows_a_click_is_read_alike(tmp_path: Path, valkey_url: str) -> None:
    plain = [edges.request("/c/demo?sub1=a", method) for method in ("GET", "HEAD")]
    compare(tmp_path, valkey_url, [odd_requests.followed(raw, stray) for raw in plain for stray in STRAY.values()])


def test_a_packed_body_that_nobody_reads_is_passed_over_alike(
    tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp unpacks it in pieces, and asks itself for the next; what comes behind it is looked at once or twice."""
    looks: Counter[int] = Counter()
    receive = FastLane.data_received

    def looked(self: FastLane, data: bytes) -> None:
        looks[id(self)] += 1
        receive(self, data)

    monkeypatch.setattr(FastLane, "data_received", looked)
    body = gzip.compress(bytes(3_000_000), mtime=0)
    said = []
    for line in ("GET /c/demo HTTP/1.1", "POST /c/demo HTTP/1.1", "POST /live HTTP/1.1", "POST /postback HTTP/1.1"):
        raw = odd_requests.head(
            line, "Host: a", f"Content-Type: {FORM}", "Content-Encoding: gzip", f"Content-Length: {len(body)}"
        )
        said += [odd_requests.one(raw + body), Said(((0, raw), (1, body), (1, odd_requests.END)), 2)]
    compare(tmp_path, valkey_url, said)
    assert max(looks.values()) < LOOKS_MAX


def test_a_request_is_answered_alike_at_whatever_moment_of_the_one_before_it_comes(
    tmp_path: Path, valkey_url: str
) -> None:
    of = [
        *(edges.request("/c/demo?sub1=a", method) for method in ("GET", "HEAD")),
        *(edges.request(path) for path in ("/live", "/c/unknown", "/c/demo+", "/aff_c?offer_id=77&aff_id=acme")),
        edges.request("/postback", "POST", {"Content-Type": FORM}, b"token=x"),
    ]
    compare(tmp_path, valkey_url, odd_requests.soon_after(of))


def test_50_requests_are_answered_alike_wherever_they_are_cut(tmp_path: Path, valkey_url: str) -> None:
    rng = Random(SEED)
    ordinary = [odd_requests.ordinary(rng, f"cut-{n}") for n in range(1_000)]
    of = [raw for raw in ordinary if len(raw) < CUT_BYTES_MAX][:30]
    of += rng.sample([raw for raw in ODD.values() if len(raw) < CUT_BYTES_MAX], 20)
    assert len(of) == 50
    compare(tmp_path, valkey_url, [said for raw in of for said in odd_requests.cut_everywhere(raw)])


def _without_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = FastLane.answer
    monkeypatch.setattr(
        FastLane, "answer", lambda self, given: answer(self, given.replace(b"Cache-Control: no-store\r\n", b""))
    )


def _with_another_event(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder.answer_when_durable

    def changed(self: Recorder, clicks: Sequence[Answered], at_ms: int) -> None:
        record(self, [(e.replace(b'"link_id":20', b'"link_id":21'), c, answer) for e, c, answer in clicks], at_ms)

    monkeypatch.setattr(Recorder, "answer_when_durable", changed)


def _with_an_event_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder.answer_when_durable

    def changed(self: Recorder, clicks: Sequence[Answered], at_ms: int) -> None:
        for event, *_ in clicks:
            self.put(event, at_ms)
        record(self, clicks, at_ms)

    monkeypatch.setattr(Recorder, "answer_when_durable", changed)


def _without_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Recorder, clicks: Sequence[Answered], at_ms: int) -> None:
        for _, connection, answer in clicks:
            connection.answer(answer)

    monkeypatch.setattr(Recorder, "answer_when_durable", changed)


def _out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastLane, "_hold", lambda self, data: super(FastLane, self).data_received(data))


@pytest.mark.parametrize(
    "worsen", [_without_a_header, _with_another_event, _with_an_event_twice, _without_an_event, _out_of_order]
)
def test_a_lane_that_does_it_in_another_way_is_seen(
    worsen: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsen(monkeypatch)
    said = [odd_requests.one(edges.request("/c/demo?sub1=a"))]
    assert differences(said, *uvloop.run(both_doors(tmp_path, valkey_url, said)))
