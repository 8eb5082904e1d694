"""The demo shop shows what it was given, never runs it."""

from aiohttp.test_utils import TestClient, TestServer

from deploy.run.children import free_port
from deploy.run.demo_shop import shop

NASTY = '"><script>alert(1)</script>'


async def test_the_shop_shows_the_click_id_escaped() -> None:
    async with TestClient(TestServer(shop("http://127.0.0.1:1", "token"))) as client:
        page = await (await client.get("/", params={"click_id": NASTY})).text()
    assert "<script>" not in page
    assert "&quot;&gt;&lt;script&gt;" in page
    assert "<button>Buy</button>" in page


async def test_the_shop_without_a_click_sends_the_visitor_to_the_demo_link() -> None:
    async with TestClient(TestServer(shop("http://127.0.0.1:1", "token"))) as client:
        page = await (await client.get("/")).text()
    assert "clickdam up" in page
    assert "Buy" not in page


async def test_the_shop_says_so_when_the_edge_does_not_answer() -> None:
    async with TestClient(TestServer(shop(f"http://127.0.0.1:{free_port()}", "token"))) as client:
        page = await (await client.post("/buy", data={"click_id": NASTY})).text()
    assert "no answer from the edge" in page
    assert "<script>" not in page
