"""`clickdam report`: what it prints of an answer, and what it says when there is none."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aggregator.api import keys
from aggregator.api.app import application, open_api
from aggregator.db.connect import connected
from deploy.run import history
from deploy.run.children import free_port
from deploy.run.history import CLICKS
from deploy.run.reporting import show
from schemas.http import serving
from schemas.settings import ApiSettings
from tests.deploy.test_cli import clickdam
from tests.deploy.test_history import LINKS, PROGRAMME

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
ANSWER: dict[str, Any] = {
    "data": [
        {"day": "2026-11-26", "clicks": 12_345, "payout": 123_456, "epc": 10.5, "cr": 0.034567, "currency": "EUR"},
        {"day": "2026-11-26", "clicks": 0, "payout": 1_999, "epc": None, "cr": None, "currency": "JPY"},
    ],
    "totals": [{"clicks": 12_345, "payout": 123_456, "epc": 10.5, "cr": 0.034567, "currency": "EUR"}],
    "complete_through": "2026-11-26T12:00:00.000Z", "provisional_from": "2026-11-26T11:45:00Z", "timezone": "UTC",
    "from": "2026-11-26T00:00:00Z", "to": "2026-11-27T00:00:00Z", "truncated": True,
}  # fmt: skip


def shown(answer: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(answer, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]


def test_money_is_in_major_units_of_its_currency_and_rates_are_percent() -> None:
    assert cells(shown(ANSWER)) == [
        ["2026-11-26", "12,345", "1,234.56", "0.1050", "3.46 %", "EUR"],
        ["2026-11-26", "0", "1,999", "-", "-", "JPY"],
        ["total", "12,345", "1,234.56", "0.1050", "3.46 %", "EUR"],
    ]


def test_it_says_how_far_it_is_complete_and_that_there_is_more() -> None:
    text = shown(ANSWER)
    for line in (
        "complete through 2026-11-26T12:00:00.000Z", "provisional from 2026-11-26T11:45:00Z", "there are more rows"
    ):  # fmt: skip
        assert line in text
    assert "not known how far" in shown(ANSWER | {"complete_through": None})


def test_a_report_of_nothing_says_so_and_what_a_name_holds_is_not_taken_for_markup() -> None:
    assert "nothing happened in that time" in shown(ANSWER | {"data": [], "totals": []})
    row = {"sub1": "[red]x[/red]", "clicks": 1, "currency": "EUR"}
    assert cells(shown(ANSWER | {"data": [row], "totals": []})) == [["[red]x[/red]", "1", "EUR"]]


@dataclass(frozen=True)
class Command:
    """`clickdam report` against an API, with the key of an admin or of the first partner."""

    url: str
    admin: str
    partner: str

    async def __call__(self, *arguments: str, key: str | None = None) -> tuple[int | None, str, str]:
        known = CLEAN | {"CLICKDAM_API_URL": self.url, "CLICKDAM_API_KEY": key or self.admin}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.run.cli", "report", *arguments, env=known,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, wrong = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, said.decode(), wrong.decode()


@pytest.fixture(scope="module")
async def report(shared_database_url: str, shared_redis_url: str) -> AsyncIterator[Command]:
    async with connected(shared_database_url, command_timeout_s=5, application_name="test") as db:
        await db.execute(PROGRAMME)
        await history.fill(shared_database_url, 1, LINKS)
        wanted = keys.Wanted("admin"), keys.Wanted("partner", 1)
        admin, partner = [(await keys.create(db, one)).key for one in wanted]
    settings = ApiSettings(
        database_url=shared_database_url, redis_url=shared_redis_url, public_url="https://go.example"
    )
    sock = socket.create_server(("127.0.0.1", 0))
    async with open_api(settings) as api, serving(application(api), sock):
        yield Command(f"http://127.0.0.1:{sock.getsockname()[1]}", admin, partner)


TODAY = datetime.now(UTC).date()
ALL = ("--from", str(TODAY - timedelta(days=20)), "--to", str(TODAY + timedelta(days=2)))  # midnight may come first


async def test_the_answer_as_json_adds_up_to_what_there_is(report: Command) -> None:
    code, said, wrong = await report("--json", *ALL, "--group-by", "link")
    assert (code, wrong) == (0, "")
    rows = json.loads(said)["data"]
    assert {row["link_id"] for row in rows} == {1, 2, 3}
    assert sum(row["clicks"] for row in rows) == CLICKS
    assert sum(row["conversions"] for row in rows) == 114


async def test_csv_has_every_row_and_no_more(report: Command) -> None:
    asked = (*ALL, "--group-by", "partner,country", "--metrics", "clicks,invalid_clicks")
    code, said, wrong = await report("--csv", *asked)
    assert (code, wrong) == (0, "")
    head, *rows = csv.reader(io.StringIO(said))
    assert head == ["partner_id", "country", "clicks", "invalid_clicks", "currency"]
    assert (len(rows), sum(int(row[2]) for row in rows)) == (12, CLICKS)


async def test_the_table_has_the_days_of_the_zone_and_the_metrics_that_were_asked_for(report: Command) -> None:
    code, said, wrong = await report(*ALL, "--timezone", "Asia/Kathmandu", "--metrics", "clicks,payout")
    assert (code, wrong) == (0, "")
    assert "Asia/Kathmandu" in said
    rows = [row for row in cells(said) if row[0].startswith("20")]
    assert sum(int(row[1].replace(",", "")) for row in rows) == CLICKS
    assert [row[1] for row in cells(said) if row[0] == "total"] == [f"{CLICKS:,}"]
    assert all(re.fullmatch(r"[\d,]+\.\d\d", row[2]) for row in rows)


async def test_a_partners_key_shows_what_is_the_partners_alone(report: Command) -> None:
    code, said, _ = await report("--json", *ALL, "--group-by", "link", key=report.partner)
    assert (code, {row["link_id"] for row in json.loads(said)["data"]}) == (0, {1, 2})


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--from", "yesterday"], "from must be a date"),
        (["--group-by", "moon"], "group_by"),
        (["--timezone", "Mars/Base"], "is not an IANA time zone"),
        (["--api-url", f"http://127.0.0.1:{free_port()}"], "does not answer"),
        (["--api-url", "nowhere"], "is no URL of an API"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(report: Command, arguments: list[str], wrong: str) -> None:
    code, said, error = await report(*arguments)
    assert (code, said, len(error.splitlines())) == (1, "", 1)
    assert wrong in error
    assert report.admin not in error


async def test_a_wrong_key_no_folder_and_two_forms_are_refused(report: Command, tmp_path: Path) -> None:
    assert (await report(key="cd_nobody"))[0] == 1
    assert (await report("--json", "--csv"))[0] == 2
    missing = clickdam("report", "--data", str(tmp_path))
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert "no `clickdam up` has run on" in missing.stderr
