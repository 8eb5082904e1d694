"""How soon changes are seen on every edge while traffic runs: `python -m loadtests.changes --changes 1000`.

Two edges, an API, an aggregator, each a process of its own, and a proxy before their Redis that can lose messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
from rich.progress import track

from aggregator.api import keys
from aggregator.db.connect import connected
from deploy.run import servers
from deploy.run.children import free_port
from loadtests import workload
from loadtests.clicking import send_clicks
from loadtests.faults.edges import BROWSER
from loadtests.faults.house import CODES, House, house
from loadtests.faults.proxy import FaultProxy
from loadtests.heard import Heard
from loadtests.percentiles import distribution
from loadtests.programme import api, call
from loadtests.wire import Answer, Wire, ask, connect
from loadtests.workload import Click

READY_S = 60.0
GIVE_UP_S = 15.0
LOOK_EVERY_S = 0.002
PLENTY = 10**12
SAMPLED = 5  # codes of an offer that are looked at
KINDS = ("link", "link", "destination", "offer", "cap", "block", "approval")
_BLOCKED = "spam"  # the source_id and sub1 that blocks are on
_OFFER = """
INSERT INTO offer (advertiser_id, name, destination_url, currency, access)
SELECT id, $1, 'https://shop.example/' || $1, 'EUR', CASE $1 WHEN 'approved' THEN 'approval' ELSE 'open' END
FROM advertiser RETURNING id
"""
_APPROVE = """
INSERT INTO approval (offer_id, partner_id, status) SELECT $1, id, 'approved' FROM partner RETURNING partner_id
"""
_LINKS = """
INSERT INTO link (code, offer_id, partner_id) SELECT $1 || n, $2, partner.id FROM partner, generate_series(1, $3) AS n
RETURNING id
"""
_QUEUE = "INSERT INTO outbox (kind, row_id) SELECT $1, unnest($2::int[])"


@dataclass(frozen=True, slots=True)
class Change:
    """A call of the API, and what each of `codes` then leads to: a status, and the beginning of a location. `path` may
    have the `{id}` of what was made last."""

    what: str
    path: str
    body: dict[str, Any] | None
    codes: tuple[str, ...]
    status: int
    location: str = ""
    method: str = "PATCH"

    def is_seen(self, answer: Answer) -> bool:
        return answer.status == self.status and answer.location.startswith(self.location)


@dataclass(frozen=True, slots=True)
class Programme:
    """What is changed: links by code (`paused`, `moved`), an offer with many links, one with a cap, one that is
    blocked, one that is on approval; the partner of all links."""

    partner_id: int
    paused: dict[str, int]
    moved: dict[str, int]
    many_offer_id: int
    many_codes: tuple[str, ...]
    cap_id: int
    blocked_offer_id: int
    approved_offer_id: int
    capped_code: str = "capped1"
    blocked_code: str = f"blocked1?source_id={_BLOCKED}&sub1={_BLOCKED}"
    approved_code: str = "approved1"


@dataclass(slots=True)
class Site:
    """All that runs. `proxy` lies between everybody and Redis; `made_id` is the id of what the last POST made."""

    house: House
    proxy: FaultProxy
    session: aiohttp.ClientSession
    edge_urls: tuple[str, str]
    programme: Programme
    heard: list[Heard] = field(default_factory=list)
    made_id: int = 0

    @asynccontextmanager
    async def wires(self) -> AsyncIterator[list[Wire]]:
        """A connection to each edge."""
        wires = [await connect(url) for url in self.edge_urls]
        try:
            yield wires
        finally:
            for wire in wires:
                wire.writer.close()


def changes(programme: Programme, seed: int) -> Iterator[Change]:
    """Random ones, for ever; each is one that can be seen."""
    rng = random.Random(seed)
    stopped: dict[str, bool] = {}
    for number in range(sys.maxsize):
        kind = rng.choice(KINDS)
        if kind == "destination":
            code, link_id = rng.choice(list(programme.moved.items()))
            url = f"https://shop.example/moved/{number}/"
            yield Change("new destination", f"/v1/links/{link_id}", {"destination_url": url}, (code,), 302, url)
            continue
        code = rng.choice(list(programme.paused)) if kind == "link" else kind
        stopped[code] = not stopped.get(code, False)
        yield _toggled(programme, kind, code, rng, stops=stopped[code])


def _toggled(programme: Programme, kind: str, code: str, rng: random.Random, *, stops: bool) -> Change:
    """A change that keeps visitors from where they would be led, or lets them go there again."""
    status, answered = ("paused", 404) if stops else ("active", 302)
    match kind:
        case "link":
            path = f"/v1/links/{programme.paused[code]}"
            return Change(f"link {status}", path, {"status": status}, (code,), answered)
        case "offer":
            path, codes = f"/v1/offers/{programme.many_offer_id}", tuple(rng.sample(programme.many_codes, SAMPLED))
            return Change(f"offer {status}", path, {"status": status}, codes, answered)
        case "cap":
            path, body = f"/v1/caps/{programme.cap_id}", {"clicks": 0 if stops else PLENTY}
            return Change("new cap", path, body, (programme.capped_code,), answered)
        case "approval":
            path = f"/v1/offers/{programme.approved_offer_id}/partners/{programme.partner_id}"
            decided = "rejected" if stops else "approved"
            return Change(decided, path, {"status": decided}, (programme.approved_code,), answered, method="PUT")
        case _:
            codes = (programme.blocked_code,)
            if stops:
                return Change("block", "/v1/blocks", _block(programme, rng), codes, answered, method="POST")
            return Change("no block", "/v1/blocks/{id}", None, codes, answered, method="DELETE")


def _block(programme: Programme, rng: random.Random) -> dict[str, Any]:
    """One of a partner, of a source or sub id of everybody's, or of a partner's: they lie in different configs."""
    partner, value = {"partner_id": programme.partner_id}, {rng.choice(("source_id", "sub1")): _BLOCKED}
    return {"offer_id": programme.blocked_offer_id} | rng.choice((partner, value, partner | value))


async def look(wire: Wire, code: str) -> Answer:
    headers = (("User-Agent", BROWSER), ("Accept", "application/json"))
    return await ask(wire, Click(0, 0.0, "browser", 0, "GET", f"/c/{code}", headers, None), "go.example")


async def until_seen(change: Change, wires: Sequence[Wire]) -> None:
    """Return when every edge does as the change says. Raises TimeoutError."""

    async def on_one(wire: Wire) -> None:
        for code in change.codes:
            while not change.is_seen(await look(wire, code)):
                await asyncio.sleep(LOOK_EVERY_S)

    async with asyncio.timeout(GIVE_UP_S):
        await asyncio.gather(*(on_one(wire) for wire in wires))


async def make(site: Site, change: Change, wires: Sequence[Wire]) -> float:
    """Make a change on warm edges; seconds from the call to the last edge that does as it says."""
    for wire in wires:
        for code in change.codes:
            await look(wire, code)
    began = time.monotonic()
    answer = await call(site.session, change.method, change.path.format(id=site.made_id), json=change.body)
    await until_seen(change, wires)
    site.made_id = answer["id"] if change.method == "POST" else site.made_id
    return time.monotonic() - began


async def make_alone(site: Site, change: Change) -> float:
    """The same over connections of its own."""
    async with site.wires() as wires:
        return await make(site, change, wires)


@asynccontextmanager
async def traffic(site: Site, rate: float, seed: int = 1) -> AsyncIterator[list[Heard]]:
    """Replay visitors of the links that nobody changes on each edge, `rate` clicks a second each, until this ends."""
    planned = list(workload.clicks(seed, CODES, round(rate * 600)))
    site.heard = [Heard() for _ in site.edge_urls]
    sending = [
        asyncio.create_task(send_clicks(planned, url, heard, rate))
        for url, heard in zip(site.edge_urls, site.heard, strict=True)
    ]
    try:
        yield site.heard
    finally:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)


@asynccontextmanager
async def running_site(folder: Path, database_url: str, redis_url: str, links: int) -> AsyncIterator[Site]:
    """Everything up, `links` links on the offer that is paused as a whole."""
    parts = urlsplit(redis_url)
    proxy = FaultProxy(parts.hostname or "", parts.port or 0)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(proxy)
        near = redis_url.replace(f":{parts.port}/", f":{proxy.port}/")
        built = await stack.enter_async_context(house(folder, database_url, near, f"journal://{folder}/journal"))
        programme = await _make_programme(database_url, links)
        key = await _admin_key(database_url)
        ports = {"edge": free_port(), "api": free_port()}
        await _start(stack, built, ports)
        session = await stack.enter_async_context(api(f"http://127.0.0.1:{ports['api']}", key))
        await _until_ready(f"http://127.0.0.1:{ports['api']}/ready")
        edge_urls = (built.edge_url, f"http://127.0.0.1:{ports['edge']}")
        site = Site(built, proxy, session, edge_urls, programme)
        await _until_published(site)
        yield site


async def _start(stack: contextlib.AsyncExitStack, built: House, ports: dict[str, int]) -> None:
    other_log = f"journal://{built.folder}/journal-2"
    for name, variables in (
        ("edge", {"CLICKDAM_EDGE_PORT": str(ports["edge"]), "CLICKDAM_LOG_URL": other_log}),
        ("api", {"CLICKDAM_API_PORT": str(ports["api"]), "CLICKDAM_PUBLIC_URL": "https://go.example"}),
    ):
        process = await built.spawn(name, CLICKDAM_ADMIN_PORT=str(free_port()), **variables)
        stack.push_async_callback(_stop, process)
    await _until_ready(f"http://127.0.0.1:{ports['edge']}/ready")


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(READY_S), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


async def _until_published(site: Site) -> None:
    made = site.programme
    single = (made.capped_code, made.blocked_code, made.approved_code)
    codes = (*made.paused, *made.moved, *made.many_codes[-1:], *single, *CODES)
    async with asyncio.timeout(READY_S), site.wires() as wires:
        for code in codes:
            for wire in wires:
                while (await look(wire, code)).status != 302:
                    await asyncio.sleep(0.1)


async def _make_programme(database_url: str, links: int) -> Programme:
    db = await asyncpg.connect(database_url)
    try:
        offers = {name: await db.fetchval(_OFFER, name) for name in ("single", "many", "capped", "blocked", "approved")}
        made = {
            name: [row["id"] for row in await db.fetch(_LINKS, name, offers[offer], n)]
            for name, offer, n in (
                ("paused", "single", 5), ("moved", "single", 5), ("many", "many", links),
                ("capped", "capped", 1), ("blocked", "blocked", 1), ("approved", "approved", 1),
            )
        }  # fmt: skip
        cap_id = await db.fetchval(
            "INSERT INTO cap (offer_id, kind, period, amount) VALUES ($1, 'clicks', 'day', $2) RETURNING id",
            offers["capped"], PLENTY,
        )  # fmt: skip
        partner_id = await db.fetchval(_APPROVE, offers["approved"])
        await db.execute(_QUEUE, "offer", list(offers.values()))
        await db.execute(_QUEUE, "partner", [partner_id])
        for ids in made.values():
            await db.execute(_QUEUE, "link", ids)
    finally:
        await db.close()
    return Programme(
        partner_id,
        {f"paused{n}": link_id for n, link_id in enumerate(made["paused"], 1)},
        {f"moved{n}": link_id for n, link_id in enumerate(made["moved"], 1)},
        offers["many"], tuple(f"many{n}" for n in range(1, links + 1)), cap_id,
        offers["blocked"], offers["approved"],
    )  # fmt: skip


async def _admin_key(database_url: str) -> str:
    async with connected(database_url, command_timeout_s=10, application_name="load-test") as db:
        key = await keys.create(db, keys.Wanted("admin"))
        await db.execute("UPDATE api_key SET requests_per_minute = 1000000 WHERE id = $1", key.id)
    return key.key


async def measure(
    site: Site, count: int, rate: float, seed: int, each: Callable[[Iterable[int]], Iterable[int]] = lambda n: n
) -> list[float]:
    """Make `count` changes under traffic; seconds of each."""
    found = changes(site.programme, seed)
    async with site.wires() as wires, traffic(site, rate):
        return [await make(site, next(found), wires) for _ in each(range(count))]


async def _main(asked: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="clickdam-changes-"))
    folder.chmod(0o711)
    valkey, postgres = servers.start_valkey(folder / "valkey"), servers.start_postgres(folder / "postgres")
    try:
        async with running_site(folder / "house", postgres.url, valkey.url, asked.links) as site:
            began = time.monotonic()
            took = await measure(
                site, asked.changes, asked.rate, asked.seed, lambda n: track(n, "changes", total=asked.changes)
            )
            clicks = sum(heard.sent for heard in site.heard)
            rate = clicks / (time.monotonic() - began)
            print(
                f"{len(took):,} changes seen on two edges under {clicks:,} clicks ({rate:,.0f}/s): {distribution(took)}"
            )
            print([complaint for heard in site.heard for complaint in heard.complaints][:20] or "no complaints")
            return int(max(took) >= 1.0)
    finally:
        servers.stop_valkey(valkey)
        servers.stop_postgres(postgres)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Returns 1 if a change took a second or more to be seen everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1_000)
    parser.add_argument("--links", type=int, default=100_000, help="on the offer that is paused as a whole")
    parser.add_argument("--rate", type=float, default=200.0, help="clicks a second on each edge")
    parser.add_argument("--seed", type=int, default=1)
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
