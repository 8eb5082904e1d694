"""What is kept of a visitor: a network, a country, a device, and a hash that lives for one day."""

import subprocess
import sys
from datetime import datetime
from random import Random
from zoneinfo import ZoneInfo

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler

from loadtests.faults.edges import BROWSER
from schemas.limits import USER_AGENT_MAX
from tracker.visitor import country, language, network, read_agent, visitor_hash

SECRET = b"s" * 16
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("255.255.255.255", "255.255.255.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        ("", ""),
        ("unknown", ""),
        ("203.0.113.77:80", ""),
        ("1.2.3", ""),
        ("../etc", ""),
    ],
)
def test_an_ip_is_cut_to_its_network(ip: str, expected: str) -> None:
    assert network(ip) == expected


def at_ms(*when: int, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime(*when, tzinfo=zone).timestamp() * 1000)  # type: ignore[misc,arg-type]


def test_a_visitor_is_the_same_within_a_day_of_the_programme_and_another_after() -> None:
    def visitor(*when: int, zone: str = "Europe/Berlin") -> str:
        return visitor_hash(SECRET, at_ms(*when), zone, "203.0.113.7", "Browser")

    assert visitor(2026, 11, 23, 0, 0) == visitor(2026, 11, 23, 23, 59, 59)
    assert visitor(2026, 11, 23, 23, 59, 59) != visitor(2026, 11, 24, 0, 0)
    assert visitor(2026, 11, 23, 0, 30, zone="UTC") != visitor(2026, 11, 23, 1, 30, zone="UTC")  # midnight in UTC
    assert visitor(2026, 11, 23, 0, 30) == visitor(2026, 11, 23, 1, 30)


def test_a_day_of_kathmandu_ends_at_a_quarter_to() -> None:
    """+05:45: the day changes at 18:15 UTC."""
    kathmandu = ZoneInfo("Asia/Kathmandu")
    last, first = at_ms(2026, 11, 23, 23, 59, 59, zone=kathmandu), at_ms(2026, 11, 24, zone=kathmandu)
    before, after = (visitor_hash(SECRET, ms, "Asia/Kathmandu", "203.0.113.7", "B") for ms in (last, first))
    assert before != after


def test_visitors_differ_by_ip_by_agent_and_by_key() -> None:
    def visitor(ip: str = "203.0.113.7", agent: str = "Browser", secret: bytes = SECRET) -> str:
        return visitor_hash(secret, at_ms(2026, 11, 23), "UTC", ip, agent)

    assert len({visitor(), visitor(ip="203.0.113.8"), visitor(agent="Other"), visitor(secret=b"t" * 16)}) == 4
    assert len(visitor()) == 16
    assert visitor(agent="\ud800") != visitor()


@pytest.mark.parametrize(
    ("agent", "device", "os"),
    [
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/131.0.0.0 Safari/537.36", "desktop",
         "Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.0 Safari/605.1.15", "desktop",
         "Mac OS X"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0", "desktop", "Linux"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Version/17.0 Mobile/15E148 "
         "Safari/604.1", "mobile", "iOS"),
        ("Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Version/17.0 Mobile/15E148 Safari/604.1",
         "tablet", "iOS"),
        ("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/131.0.0.0 Mobile Safari/537.36", "mobile",
         "Android"),
        ("Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 Chrome/131.0.0.0 Safari/537.36", "tablet",
         "Android"),
        ("SomethingElse/1.0", "other", ""),
        ("", "other", ""),
        ("\ufffd\x00", "other", ""),
    ],
)  # fmt: skip
def test_a_device_is_read_from_its_agent(agent: str, device: str, os: str) -> None:
    found = read_agent(agent)
    assert (found.device, found.os, found.robot) == (device, os, False)


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "curl/8.5.0",
        "python-requests/2.31.0",
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    ],
)
def test_robots_are_known_by_their_agent(agent: str) -> None:
    found = read_agent(agent)
    assert found.robot
    assert found.device == "robot"


def test_a_robot_is_whom_the_published_list_says_however_it_is_matched() -> None:
    listed = [agent for known in CRAWLER_USER_AGENTS_DATA for agent in known.get("instances", ())]
    random = Random(1)
    printable = [chr(code) for code in range(0x20, 0x7F)]
    noise = ["".join(random.choices(printable, k=512)) for _ in range(50)]
    assert len(listed) > 1_000
    for agent in (*listed, *noise, BROWSER, "\0", "\ufffd"):
        assert read_agent(agent[:USER_AGENT_MAX]).robot == is_crawler(agent[:USER_AGENT_MAX]), agent


def test_nothing_is_left_to_load_for_the_first_click() -> None:
    said = "import ua_parser; from tracker import visitor; visitor.load_tables(); print('parser' in vars(ua_parser))"
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, check=True, timeout=60)
    assert ran.stdout == b"True\n"


@pytest.mark.parametrize(
    ("accepted", "first"),
    [
        ("de-AT,en;q=0.7", "de"), ("EN", "en"), ("de_AT", "de"), ("zh-Hant-TW", "zh"), ("fil;q=0.9,en", "fil"),
        (" fr , en", "fr"), ("", ""), ("*", ""), (",de", ""), ("d3-AT", ""), ("\xe9t", ""), ("-", ""),
    ],
)  # fmt: skip
def test_the_first_language_is_the_visitors(accepted: str, first: str) -> None:
    assert language(accepted) == first


def test_a_country_is_known_offline_and_empty_where_it_is_not() -> None:
    assert country("8.8.8.8") == country("::ffff:8.8.8.8") == "US"
    assert {country(ip) for ip in ("127.0.0.1", "10.0.0.1", "::1", "", "nonsense")} == {""}
