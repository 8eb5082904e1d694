"""Traffic as data: who clicks what and when, and what is bought minutes later. No I/O, all of it from one seed.

Times are planned seconds since the first click; a replay stretches them to the rate it is asked for.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Literal
from urllib.parse import quote, urlencode

from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler

Kind = Literal["browser", "crawler", "head", "broken"]
Model = Literal["cpa", "cps"]
Door = Literal["postback_get", "postback_form", "json", "json_many"]

PLANNED_CLICKS_PER_S = 20.0
KINDS: tuple[Kind, ...] = ("crawler", "head", "broken", "browser")
KIND_WEIGHTS = (5.0, 2.0, 1.0, 92.0)
RETURNING = 0.25  # of clicks come from a visitor seen a moment ago, half of them on the same link
ZIPF = 1.05
CONVERSION_DELAY_S = (30.0, 1_200.0)

_WORDS = {
    "latin": "summer-sale Zürich café promo_2026 naïve Łódź".split(),
    "cyrillic": "распродажа Київ чёрная_пятница скидка".split(),
    "greek": "προσφορά Αθήνα καλοκαίρι".split(),
    "arabic": "تخفيضات القاهرة عرض خاص".split(),
    "cjk": "黒い金曜日 特価 上海 할인 東京".split(),
    "emoji": "🔥🔥 🛍️ 🇪🇺 👩‍💻".split(),
    "awkward": ("a b+c", "100%", "a=b&c=d", "<b>\"'", "x;y,z", "/../", "{click_id}"),
}
_SITES = (
    "https://www.google.com/",
    "https://m.facebook.com/",
    "https://t.co/Xb3",
    "https://blog.example.org/best-tents?page=2",
    "https://пример.example/статья",
)
_LANGUAGES = ("en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.7", "fr-FR,fr;q=0.8", "uk-UA,uk;q=0.9,ru;q=0.5", "ja", "el-GR")
_AMOUNTS = ("{major}.{minor:02}", "{major},{minor:02}", "{major}.{minor:02}0", "0{major}.{minor:02}")


@dataclass(frozen=True, slots=True)
class Click:
    """One request on a tracking link. `link` is the index of its code, None where there is no such link."""

    number: int
    at_s: float
    kind: Kind
    link: int | None
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    sub1: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """One purchase, as the shop means it: `amount_minor` in the offer's currency, None where it says no amount.

    `amount` is how it spells that in major units. `pending` is why it cannot be approved, whatever the click was.
    """

    number: int
    click: int
    order_id: str | None
    amount_minor: int | None
    amount: str | None
    currency: str | None
    dated: bool
    pending: Literal["", "ambiguous_amount", "foreign_currency"]


@dataclass(frozen=True, slots=True)
class Post:
    """One request at a conversion door, about one order or several. Copies are the same request once more."""

    at_s: float
    door: Door
    orders: tuple[int, ...]
    copy: bool


@dataclass(frozen=True, slots=True)
class Visitor:
    user_agent: str
    language: str
    link: int


def model_of(link: int) -> Model:
    """How the offer behind a link pays: every other one a fixed amount, every other one a percentage."""
    return "cps" if link % 2 else "cpa"


@cache
def browsers() -> tuple[str, ...]:
    """User-Agents of real browsers, none of which is a known robot."""
    lines = (files("fake_useragent") / "data" / "browsers.jsonl").read_text(encoding="utf-8").splitlines()
    agents = dict.fromkeys(json.loads(line)["useragent"].strip() for line in lines if line)
    return tuple(agent for agent in agents if _fits_a_header(agent) and not is_crawler(agent))


@cache
def crawlers() -> tuple[str, ...]:
    """User-Agents of known robots."""
    agents = dict.fromkeys(agent.strip() for entry in CRAWLER_USER_AGENTS_DATA for agent in entry["instances"])
    return tuple(agent for agent in agents if _fits_a_header(agent) and is_crawler(agent))


def _fits_a_header(agent: str) -> bool:
    return bool(agent) and agent.isascii() and agent.isprintable() and len(agent) <= 500


def clicks(seed: int, codes: Sequence[str], count: int) -> Iterator[Click]:
    """`count` requests in the order of their time, popular links first in `codes`."""
    rng = random.Random(f"clicks {seed}")
    popularity = list(accumulate((rank + 1) ** -ZIPF for rank in range(len(codes))))
    recent: deque[Visitor] = deque(maxlen=500)
    at_s = 0.0
    for number in range(count):
        at_s += rng.expovariate(PLANNED_CLICKS_PER_S)
        kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
        visitor = _visitor(rng, kind, recent, popularity)
        yield _click(rng, number, at_s, kind, visitor, codes)


def _visitor(rng: random.Random, kind: Kind, recent: deque[Visitor], popularity: list[float]) -> Visitor:
    link = rng.choices(range(len(popularity)), cum_weights=popularity)[0]
    if kind == "crawler":
        return Visitor(rng.choice(crawlers()), "", link)
    if recent and rng.random() < RETURNING:
        known = rng.choice(recent)
        return known if rng.random() < 0.5 else Visitor(known.user_agent, known.language, link)
    visitor = Visitor(rng.choice(browsers()), rng.choice(_LANGUAGES), link)
    recent.append(visitor)
    return visitor


def _click(rng: random.Random, number: int, at_s: float, kind: Kind, visitor: Visitor, codes: Sequence[str]) -> Click:
    params = _params(rng)
    target = f"/c/{codes[visitor.link]}" + (f"?{urlencode(params, quote_via=quote, safe='')}" if params else "")
    link: int | None = visitor.link
    if kind == "broken":
        target, link = _broken(rng, codes, visitor.link)
    method = "HEAD" if kind == "head" else "GET"
    headers = _crawler_headers(visitor) if kind == "crawler" else _browser_headers(rng, visitor)
    return Click(number, at_s, kind, link, method, target, headers, params.get("sub1"))


def _params(rng: random.Random) -> dict[str, str]:
    params: dict[str, str] = {}
    if rng.random() < 0.7:
        params["sub1"] = rng.choice(_WORDS[rng.choice(list(_WORDS))])
    if rng.random() < 0.4:
        params["sub2"] = f"ad{rng.randrange(50)}"
    if rng.random() < 0.1:
        params[f"sub{rng.randrange(3, 11)}"] = rng.choice(_WORDS["latin"])
    if rng.random() < 0.5:
        params["source_id"] = f"site-{rng.randrange(200)}"
    if rng.random() < 0.4:
        params["click_ref"] = f"{rng.getrandbits(96):024x}"
    if rng.random() < 0.2:
        params["gclid"] = f"Cj0KCQ{rng.getrandbits(160):x}"
    return params


def _broken(rng: random.Random, codes: Sequence[str], link: int) -> tuple[str, int | None]:
    unknown = f"/c/no-{rng.getrandbits(40):x}"
    return rng.choice(
        [
            (unknown, None),
            (f"/c/{'x' * rng.randrange(65, 2_000)}", None),
            (f"/c/%ZZ{rng.randrange(10)}", None),
            ("/c/%00%ff", None),
            ("/c/", None),
            (f"/c/{codes[link]}?sub1=%E4%ZZ&sub2=%", link),
        ]
    )


def _browser_headers(rng: random.Random, visitor: Visitor) -> tuple[tuple[str, str], ...]:
    headers = [
        ("User-Agent", visitor.user_agent),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("Accept-Language", visitor.language),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Upgrade-Insecure-Requests", "1"),
        ("Sec-Fetch-Dest", "document"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-User", "?1"),
    ]
    if rng.random() < 0.8:
        headers.append(("Referer", quote(rng.choice(_SITES), safe="/:?=&%")))
    return tuple(headers)


def _crawler_headers(visitor: Visitor) -> tuple[tuple[str, str], ...]:
    return (("User-Agent", visitor.user_agent), ("Accept", "*/*"), ("Accept-Encoding", "gzip"))


def purchases(
    seed: int, planned: Sequence[Click], conversions: int, duplicates: int, run: str
) -> tuple[list[Order], list[Post]]:
    """`conversions` orders on some of the planned clicks, and their posts with `duplicates` copies, by time.

    `run` keeps the order ids of one replay apart from those of another in the same programme."""
    rng = random.Random(f"purchases {seed}")
    buyers = _buyers(rng, planned, conversions)
    bought = Counter(click.number for click in buyers)
    orders = [
        _order(rng, number, click, _order_id(rng, number, click, bought, run)) for number, click in enumerate(buyers)
    ]
    posts = _first_posts(rng, orders, planned)
    posts += _copies(rng, posts, duplicates)
    return orders, sorted(posts, key=lambda post: post.at_s)


def _buyers(rng: random.Random, planned: Sequence[Click], conversions: int) -> list[Click]:
    """Mostly people, two in a hundred a robot; one in twenty buys twice."""
    people = [click for click in planned if click.kind == "browser"]
    robots = [click for click in planned if click.kind == "crawler"]
    from_robots = min(conversions // 50, len(robots))
    again = conversions // 20
    chosen = rng.sample(people, conversions - from_robots - again) + rng.sample(robots, from_robots)
    return chosen + rng.choices(chosen, k=again)


def _order_id(rng: random.Random, number: int, click: Click, bought: Counter[int], run: str) -> str | None:
    """Some shops have awkward ids, some send none: then the click stands for the order, so it may buy only once."""
    luck = rng.random()
    if luck < 0.03 and bought[click.number] == 1:
        return None
    return f"{run}-{number}" if luck < 0.97 else f"{run}/№ {number} +&%"


def _order(rng: random.Random, number: int, click: Click, order_id: str | None) -> Order:
    minor = round(rng.lognormvariate(8.4, 0.9)) + 100
    amount = rng.choice(_AMOUNTS).format(major=minor // 100, minor=minor % 100)
    currency = "EUR" if rng.random() < 0.7 else None
    dated = rng.random() < 0.2
    luck = rng.random()
    if luck < 0.005:
        return Order(number, click.number, order_id, None, "1,234", currency, dated, "ambiguous_amount")
    if luck < 0.010:
        return Order(number, click.number, order_id, minor, amount, "USD", dated, "foreign_currency")
    if luck < 0.050:
        return Order(
            number, click.number, order_id, minor + 1, f"{minor // 100}.{minor % 100:02}5", currency, dated, ""
        )
    if luck < 0.090 and click.link is not None and model_of(click.link) == "cpa":
        return Order(number, click.number, order_id, None, None, currency, dated, "")
    return Order(number, click.number, order_id, minor, amount, currency, dated, "")


def _first_posts(rng: random.Random, orders: list[Order], planned: Sequence[Click]) -> list[Post]:
    """Each order once; one post in thirty tells about three orders."""
    posts, waiting = [], list(orders)
    while waiting:
        many = len(waiting) >= 3 and rng.random() < 0.03
        told = [waiting.pop() for _ in range(3 if many else 1)]
        at_s = max(planned[order.click].at_s for order in told) + rng.uniform(*CONVERSION_DELAY_S)
        posts.append(Post(at_s, _door(rng, told), tuple(order.number for order in told), copy=False))
    return posts


def _door(rng: random.Random, told: list[Order]) -> Door:
    if len(told) > 1:
        return "json_many"
    if told[0].pending == "ambiguous_amount":
        return "postback_get"
    return rng.choice(("postback_get", "postback_form", "json"))


def _copies(rng: random.Random, posts: list[Post], duplicates: int) -> list[Post]:
    """Half of the copies go out in the same moment as the first, half later; some orders are told many times."""
    copies: list[Post] = []
    while len(copies) < duplicates:
        post = rng.choice(posts)
        times = min(rng.choice((1, 1, 1, 2, 5, 12)), duplicates - len(copies))
        late_s = 0.0 if rng.random() < 0.5 else rng.uniform(1.0, 300.0)
        copies += [Post(post.at_s + late_s, post.door, post.orders, copy=True)] * times
    return copies
