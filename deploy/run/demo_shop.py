"""The demo programme's advertiser: a shop with one thing to buy, which reports its sale as an advertiser does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
from html import escape

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from schemas import limits

log = structlog.get_logger()

PRICE = "49.90"
CURRENCY = "EUR"
POSTBACK_S = 5.0
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Demo shop</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; color: #222 }}
code, pre {{ background: #f3f3f0; padding: .1rem .3rem; overflow-wrap: anywhere; white-space: pre-wrap }}
button {{ font: inherit; padding: .6rem 1.4rem; border: 0; border-radius: 6px; background: #0a6; color: #fff }}
</style></head><body><h1>Demo shop</h1>
{body}
</body></html>"""
_ARRIVED = """<p>You came with the click id <code>{click_id}</code>.</p>
<p>A fine umbrella, {price} {currency}.</p>
<form method="post" action="/buy"><input type="hidden" name="click_id" value="{click_id}"><button>Buy</button></form>"""
_LOST = "<p>You came without a click id. Open the demo link that <code>clickdam up</code> shows.</p>"
_BOUGHT = """<p>Thank you for your order <code>{order_id}</code>, {price} {currency}.</p>
<p>The shop told Clickdam about it and received:</p><pre>{receipt}</pre>
<p>The partner's report has it now: see the last line that <code>clickdam up</code> shows.</p>"""


async def serve(listening: socket.socket, edge_url: str, token: str) -> None:
    """Run the shop until SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    runner = web.AppRunner(
        shop(edge_url, token), access_log=None, shutdown_timeout=1.0, keepalive_timeout=limits.KEEPALIVE_S
    )
    await runner.setup()
    await web.SockSite(runner, listening).start()
    await stopping.wait()
    await runner.cleanup()


def shop(edge_url: str, token: str) -> web.Application:
    """Two pages: arrive at `/?click_id=…`, buy at `/buy`."""

    async def arrive(request: web.Request) -> web.Response:
        click_id = request.query.get("click_id", "")
        body = _ARRIVED.format(click_id=escape(click_id), price=PRICE, currency=CURRENCY) if click_id else _LOST
        return _page(body)

    async def buy(request: web.Request) -> web.Response:
        click_id = str((await request.post()).get("click_id", ""))
        order_id = f"shop-{secrets.token_hex(4)}"
        receipt = await send_postback(edge_url, token, click_id, order_id)
        body = _BOUGHT.format(order_id=order_id, price=PRICE, currency=CURRENCY, receipt=escape(receipt))
        return _page(body)

    app = web.Application(client_max_size=limits.BODY_BYTES_MAX)
    app.add_routes([web.get("/", arrive), web.post("/buy", buy)])
    return app


async def send_postback(edge_url: str, token: str, click_id: str, order_id: str) -> str:
    """Report the sale to the edge; the receipt as text, or why there is none."""
    sale = {"click_id": click_id, "order_id": order_id, "amount": PRICE, "currency": CURRENCY, "token": token}
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=POSTBACK_S)) as session,
            session.post(f"{edge_url}/postback", data=sale) as answer,
        ):
            return _readable(await answer.text())
    except (ClientError, TimeoutError) as error:
        log.warning("postback_failed", reason=type(error).__name__)
        return f"no answer from the edge ({type(error).__name__})"


def _readable(receipt: str) -> str:
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(receipt), indent=2)
    return receipt


def _page(body: str) -> web.Response:
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    }
    return web.Response(text=_PAGE.format(body=body), content_type="text/html", headers=headers)
