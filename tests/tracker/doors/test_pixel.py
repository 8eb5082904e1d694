"""Pages that report sales by themselves: an image with a public key, and the script that asks for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Answer, Filled, RunningEdge, ask, get, request
from schemas import click_id, redis_keys
from schemas.click_id import ClickKey
from schemas.events import Conversion, Event, Intake
from schemas.links import Reference
from tracker.doors.pixel import GIF

CLICK = click_id.mint(ClickKey(1, b"\xab" * 32), click_id.uuid7_bytes(1_795_399_200_000, bytes(10)), 1, 1, 1, 0)
SHOP = "https://shop.example"
PIXEL: dict[str, Any] = {"pixel_key": "px_1", "pixel_origins": (SHOP, "http://localhost:3000")}
FROM_SHOP = {"Referer": f"{SHOP}/thanks?order=1"}


def pixel(headers: dict[str, str], **said: str) -> bytes:
    text = urlencode({"key": "px_1", "click_id": CLICK, "order_id": "o-1", "amount": "10.00"} | said)
    return request(f"/pixel.gif?{text}", headers=headers)


async def told(running: RunningEdge, raw: bytes) -> tuple[Answer, list[Event]]:
    answer = await ask(running.port, raw)
    assert (len(GIF), answer.body) == (43, GIF)
    assert answer.headers["content-type"] == "image/gif"
    assert "no-store" in answer.headers["cache-control"]
    await running.edge.recorder.drained()
    return answer, running.wrote()


PAGES = [
    FROM_SHOP, {"Referer": "https://SHOP.example/"}, {"Origin": SHOP}, {"Origin": "http://localhost:3000"},
    {"Origin": SHOP, "Referer": "https://evil.example/"},
]  # fmt: skip


@pytest.mark.parametrize("headers", PAGES)
async def test_a_page_of_the_advertiser_reports_a_sale_that_waits(
    running: RunningEdge, publisher: Filled, headers: dict[str, str]
) -> None:
    await publisher.write(edges.advertiser(dialect="everflow", signing_key="k", signature_required=True, **PIXEL))
    answer, (event,) = await told(running, pixel(headers))
    assert answer.status == 200
    assert isinstance(event, Conversion)
    assert (event.reason, event.door, event.dialect, event.amount_minor) == ("pixel", "pixel", "clickdam", 1000)
    assert event.order_id == "o-1"


NOBODYS = {
    "no page": (PIXEL, {}, {}),
    "another page": (PIXEL, {"Referer": "https://evil.example/"}, {}),
    "a page that begins alike": (PIXEL, {"Referer": "https://shop.example.evil.example/"}, {}),
    "a user that is called so": (PIXEL, {"Referer": "https://shop.example@evil.example/"}, {}),
    "another scheme": (PIXEL, {"Origin": "http://shop.example"}, {}),
    "another port": (PIXEL, {"Origin": "http://localhost:3001"}, {}),
    "a page that may not say": (PIXEL, {"Origin": "null"}, {}),
    "no pages": ({"pixel_key": "px_1"}, FROM_SHOP, {}),
    "another key": (PIXEL, FROM_SHOP, {"key": "px_2"}),
    "no key": (PIXEL, FROM_SHOP, {"key": ""}),
    "what is no key": (PIXEL, FROM_SHOP, {"key": "a b:c"}),
    "a blocked advertiser": (PIXEL | {"status": "blocked"}, FROM_SHOP, {}),
}


@pytest.mark.parametrize("name", NOBODYS)
async def test_what_is_not_the_advertisers_is_an_image_all_the_same_and_nothing_is_written(
    running: RunningEdge, publisher: Filled, name: str
) -> None:
    fields, headers, said = NOBODYS[name]
    await publisher.write(edges.advertiser(**fields))
    answer, wrote = await told(running, pixel(headers, **said))
    assert answer.status in (401, 403)
    assert wrote == []


async def test_a_key_that_was_replaced_is_nobodys(running: RunningEdge, publisher: Filled) -> None:
    await publisher.write(edges.advertiser(**PIXEL | {"pixel_key": "px_2"}))
    await publisher.write({redis_keys.pixel("px_1"): Reference(v=(1, 1), id=1)})
    answer, wrote = await told(running, pixel(FROM_SHOP))
    assert (answer.status, wrote) == (401, [])
    answer, (event,) = await told(running, pixel(FROM_SHOP, key="px_2"))
    assert isinstance(event, Conversion)


@pytest.mark.parametrize("said", [{"status": "approved"}, {"status": "rejected"}, {"remaining_amount": "0"}])
async def test_a_page_says_nothing_about_what_became_of_an_order(
    running: RunningEdge, publisher: Filled, said: dict[str, str]
) -> None:
    await publisher.write(edges.advertiser(**PIXEL))
    answer, (event,) = await told(running, pixel(FROM_SHOP, **said))
    assert answer.status == 403
    assert isinstance(event, Intake)
    assert (event.reason, event.door) == ("not_from_a_page", "pixel")


async def test_pages_do_not_use_up_what_the_advertisers_server_may_send(
    running: RunningEdge, publisher: Filled
) -> None:
    await publisher.write(edges.advertiser(postbacks_per_minute=1, **PIXEL))
    statuses = {(await told(running, pixel(FROM_SHOP)))[0].status for _ in range(4)}
    assert statuses == {200, 429}
    server = f"/postback?{urlencode({'token': edges.TOKEN, 'click_id': CLICK})}"
    assert (await get(running.port, server)).status == 200


async def test_the_script_may_be_kept_and_says_nothing_of_anybody(running: RunningEdge) -> None:
    answer = await get(running.port, "/tag.js?key=px_1")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert b"px_1" not in answer.body
    assert running.wrote() == []


# --- the script, run by the JavaScript engine of k6 -------------------------------------------------------------------

_BROWSER = """
const tag = open(__ENV.TAG), pages = JSON.parse(__ENV.PAGES);
export default function () {
  let cookies = "theme=dark";
  console.log(JSON.stringify(pages.map(function (page) {
    const images = [];
    function Image() { images.push(this); }
    const script = {
      src: page.script || "https://go.example/tag.js?key=px_1",
      getAttribute: function (name) { return name === "data-parameter" ? page.parameter : null; },
    };
    const set = [];
    const document = {
      currentScript: script,
      get cookie() { return cookies; },
      set cookie(said) { set.push(said); cookies += "; " + said.split(";")[0]; },
    };
    const window = { Image: Image, location: { href: page.href, protocol: page.href.split("//")[0] } };
    Function("window", "document", tag)(window, document);
    (page.sales || []).forEach(function (sale) { window.clickdam.convert(sale); });
    return { set: set, images: images };
  })));
}
"""


def browse(folder: Path, *pages: dict[str, Any]) -> list[dict[str, Any]]:
    """What a browser that opens these pages one after the other is told to keep and to ask for."""
    tag = Path(__file__).parents[3] / "tracker" / "doors" / "tag.js"
    (folder / "browser.js").write_text(_BROWSER)
    asked = {"TAG": str(tag), "PAGES": json.dumps(pages)}
    command = [
        str(Path(sys.executable).parent / "k6"), "run", "--quiet", "--no-summary", "--no-usage-report", "--address", "",
        "--log-format", "raw", *(word for name, value in asked.items() for word in ("-e", f"{name}={value}")),
        str(folder / "browser.js"),
    ]  # fmt: skip
    heard = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    return list(json.loads(heard.stderr.strip().splitlines()[-1]))


def test_the_script_keeps_the_click_and_reports_the_sale(tmp_path: Path) -> None:
    landing, thanks = browse(
        tmp_path,
        {"href": f"{SHOP}/?a=1&click_id={CLICK}#top"},
        {"href": f"{SHOP}/thanks", "sales": [{"order_id": "ü&1", "amount": 49.9, "currency": "EUR", "event": None}]},
    )
    (kept,) = landing["set"]
    assert kept == f"clickdam_click_id={CLICK}; Max-Age=2592000; Path=/; SameSite=Lax; Secure"
    assert (landing["images"], thanks["set"]) == ([], [])
    (image,) = thanks["images"]
    assert image["referrerPolicy"] == "origin"
    url = urlsplit(image["src"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == "https://go.example/pixel.gif"
    assert parse_qs(url.query) == {
        "key": ["px_1"], "click_id": [CLICK], "order_id": ["ü&1"], "amount": ["49.9"], "currency": ["EUR"],
    }  # fmt: skip


def test_the_script_keeps_nothing_that_is_no_click_id(tmp_path: Path) -> None:
    pages = browse(
        tmp_path,
        {"href": f"{SHOP}/?click_id=a;b", "sales": [{"order_id": "1"}]},
        {"href": f"{SHOP}/?click_id=%3Cscript%3E"},
        {"href": f"{SHOP}/?click_id={'x' * 256}"},
        {"href": f"{SHOP}/?click_ids=1"},
        {"href": "http://shop.example/?cid=1&click_id=2", "parameter": "cid"},
    )
    assert [page["set"] for page in pages[:4]] == [[]] * 4
    assert pages[4]["set"] == ["clickdam_click_id=1; Max-Age=2592000; Path=/; SameSite=Lax"]
    assert "click_id" not in pages[0]["images"][0]["src"]


async def test_what_the_script_asks_for_is_taken(running: RunningEdge, publisher: Filled, tmp_path: Path) -> None:
    await publisher.write(edges.advertiser(**PIXEL))
    (page,) = browse(tmp_path, {"href": f"{SHOP}/?click_id={CLICK}", "sales": [{"order_id": "o-7", "amount": "5"}]})
    asked = page["images"][0]["src"].removeprefix("https://go.example")
    answer, (event,) = await told(running, request(asked, headers={"Referer": f"{SHOP}/"}))
    assert isinstance(event, Conversion)
    assert (answer.status, event.order_id, event.amount_minor) == (200, "o-7", 500)
