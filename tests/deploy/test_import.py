"""`clickdam links import FILE` and `clickdam export FOLDER`, against a real API."""

import asyncio
import csv
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from aggregator.api import exports, imports, keys
from aggregator.api.app import application, open_api
from aggregator.api.sheets import Format
from aggregator.conversions import ledger
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connected
from deploy.run import exporting, importing
from deploy.run.children import CannotStart, free_port
from deploy.run.http import Place, patient, place
from schemas import limits
from schemas.errors import Refused
from schemas.http import serving
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Made, conversion

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
PARTNERS = "external_id,name\n"


def hear_ctrl_c() -> None:
    """A shell that runs the tests in the background has its children ignore it, and theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


IMPORTED = 40_000  # so many that it is under way when it is stopped, also where both are slow


@dataclass(frozen=True)
class Commands:
    """Commands that know where an API is, and its database."""

    api_url: str
    key: str
    db: Connection

    async def start(self, *arguments: str | Path) -> asyncio.subprocess.Process:
        known = {"CLICKDAM_API_URL": self.api_url, "CLICKDAM_API_KEY": self.key, "COLUMNS": "200"}
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.run.cli", *map(str, arguments), env=CLEAN | known, stdout=pipe, stderr=pipe,
            preexec_fn=hear_ctrl_c,
        )  # fmt: skip

    async def __call__(self, *arguments: str | Path) -> tuple[int | None, str]:
        """The exit and all that was said."""
        process = await self.start(*arguments)
        said, wrong = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, said.decode() + wrong.decode()

    async def imports(self, kind: str, file: Path, *, dry_run: bool = False) -> tuple[int, str]:
        """The same without a process of its own."""
        console = Console(file=io.StringIO())
        where = Place(self.api_url, self.key)
        try:
            whole = await asyncio.to_thread(importing.run, kind, file, where, console, dry_run=dry_run)
        except CannotStart as reason:
            return 1, str(reason)
        return 0 if whole else 1, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
async def clickdam(database_url: str, redis_url: str) -> AsyncIterator[Commands]:
    settings = ApiSettings(database_url=database_url, redis_url=redis_url, public_url="https://go.example")
    sock = socket.create_server(("127.0.0.1", 0))
    async with (
        open_api(settings) as api,
        serving(application(api), sock),
        connected(database_url, command_timeout_s=5, application_name="test") as db,
    ):
        key = (await keys.create(db, keys.Wanted("admin"))).key
        yield Commands(f"http://127.0.0.1:{sock.getsockname()[1]}", key, db)


async def test_bad_rows_lie_beside_the_file_and_come_in_when_they_are_put_right(
    clickdam: Commands, tmp_path: Path
) -> None:
    rows = [f'P{n},"Partner, the {n}th"' for n in range(2_500)]
    rows[1_200], rows[2_400], rows[2_401] = "bad id,Who", "P7,Twice", "P2401,cells,too many"
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "\n".join(rows))
    exit_code, said = await clickdam("partners", "import", file)
    assert exit_code == 1
    assert f"{file}:1202: external_id: " in said
    assert "2,500 rows: 2,497 created, 0 updated, 0 unchanged, 3 failed" in said
    errors = tmp_path / "partners.csv.errors.csv"
    with errors.open(newline="") as opened:
        assert {row[0] for row in csv.reader(opened)} == {"error_line", "1202", "2402", "2403"}
    text = errors.read_text()
    for wrong, right in (("bad id,Who", "P1200,Who"), ("P7,Twice", "P2400,Once"), ("cells,too many", "Right")):
        assert wrong in text
        text = text.replace(wrong, right)
    errors.write_text(text)
    exit_code, said = await clickdam.imports("partners", errors)
    assert (exit_code, "3 rows: 3 created, 0 updated, 0 unchanged, 0 failed" in said) == (0, True), said
    assert await clickdam.db.fetchval("SELECT count(*) FROM partner") == 2_500
    assert await clickdam.db.fetchval("SELECT count(*) FROM audit WHERE reason LIKE 'import %'") == 2_500


async def test_json_lines_that_failed_can_be_put_right_too(clickdam: Commands, tmp_path: Path) -> None:
    file = tmp_path / "partners.jsonl"
    file.write_text('{"external_id": "P1", "name": "One"}\n\n{"external_id": "P2", "name": 2}\n{"external_id"\n')
    exit_code, said = await clickdam.imports("partners", file)
    assert (exit_code, "3 rows: 1 created, 0 updated, 0 unchanged, 2 failed" in said) == (1, True), said
    errors = tmp_path / "partners.jsonl.errors.jsonl"
    first, second = sorted(errors.read_text().splitlines(), key=len, reverse=True)
    assert json.loads(first)["error_line"] == 3
    assert second.endswith(', "external_id"')
    errors.write_text(first.replace('"name": 2', '"name": "Two"'))
    assert (await clickdam.imports("partners", errors))[0] == 0


async def test_a_dry_run_changes_nothing_and_finds_what_is_wrong(clickdam: Commands, tmp_path: Path) -> None:
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "P1,One\nP 2,Two\n")
    exit_code, said = await clickdam.imports("partners", file, dry_run=True)
    assert exit_code == 1
    assert "2 rows: 1 created, 0 updated, 0 unchanged, 1 failed" in said
    assert "a dry run: nothing was changed" in said
    assert await clickdam.db.fetchval("SELECT count(*) FROM partner") == 0


async def test_clicks_of_another_tracker_come_like_everything_else(clickdam: Commands, tmp_path: Path) -> None:
    await clickdam.db.execute(
        """INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'a');
           INSERT INTO partner (name) VALUES ('p');
           INSERT INTO offer (advertiser_id, name, destination_url, currency)
           VALUES (1, 'o', 'https://o.example', 'EUR');
           INSERT INTO link (code, offer_id, partner_id) VALUES ('go', 1, 1)"""
    )
    when, file = "2026-11-01T10:00:00Z", tmp_path / "clicks.csv"
    rows = [f"c{n},{when},go,s{n}" for n in range(limits.IMPORT_BATCH_ROWS)]
    file.write_text("\n".join(["click_id,clicked_at,link_code,sub1", *rows, f"c0,{when},go,other", f"x,{when},no,"]))
    code, said = await clickdam("clicks", "import", file, "--dry-run")
    assert (code, "1,000 created" in said, "nothing was changed" in said) == (1, True, True)
    code, said = await clickdam("clicks", "import", file)
    assert (code, "1,000 created" in said, "2 failed" in said) == (1, True, True)
    assert await clickdam.db.fetchval("SELECT subs ->> 'sub1' FROM imported_click WHERE foreign_id = 'c0'") == "s0"
    errors = (tmp_path / "clicks.csv.errors.csv").read_text()
    assert "an earlier row has the click_id c0 already" in errors
    assert "there is no link" in errors
    file.write_text("\n".join(["click_id,clicked_at,link_code,sub1", *rows]))
    code, said = await clickdam.imports("clicks", file)
    assert (code, "1,000 unchanged" in said) == (0, True)


async def test_an_advertisers_verdicts_come_like_everything_else(clickdam: Commands, tmp_path: Path) -> None:
    await clickdam.db.execute(
        """INSERT INTO advertiser (name, external_id, token_sha256) VALUES ('a', 'A1', '');
           INSERT INTO partner (name) VALUES ('p');
           INSERT INTO offer (advertiser_id, name, destination_url, currency)
           VALUES (1, 'o', 'https://o.example', 'EUR');
           INSERT INTO offer_terms (offer_id, model, percent, currency, valid_from)
           VALUES (1, 'cps', 10, 'EUR', '-infinity');
           INSERT INTO link (code, offer_id, partner_id) VALUES ('go', 1, 1)"""
    )
    made, now_ms = Made(1, "", 1, 1, 1, "go"), time.time_ns() // 1_000_000
    count = limits.IMPORT_BATCH_ROWS + 1
    async with clickdam.db.transaction():
        await settle(clickdam.db, [conversion(made, now_ms, f"A-{n}") for n in range(count)], 0)
    file = tmp_path / "orders.csv"
    rows = [f"A-{n};{'40,00' if n == 7 else ''};{'' if n == 7 else 'rejected'};A1" for n in range(count)]
    file.write_text("\n".join(["order_id;amount;status;advertiser_external_id", *rows, "A-0;;rejected;A1", "B;;x;A1"]))
    exit_code, said = await clickdam("conversions", "import", file, "--dry-run")
    assert (exit_code, f"{count:,} updated" in said, "nothing was changed" in said) == (1, True, True)
    exit_code, said = await clickdam("conversions", "import", file)
    assert (exit_code, f"{count:,} updated" in said, "2 failed" in said) == (1, True, True)
    errors = (tmp_path / "orders.csv.errors.csv").read_text()
    assert "an earlier row has the order_id A-0 already" in errors
    assert "there is no such order" in errors
    assert await ledger.balance(clickdam.db, "partner:1") == {"EUR": 400}
    assert await ledger.check(clickdam.db) == []
    file.write_text("\n".join(["order_id;amount;status;advertiser_external_id", *rows]))
    exit_code, said = await clickdam.imports("conversions", file)
    assert (exit_code, f"{count:,} unchanged" in said) == (0, True), said


async def test_an_import_that_was_stopped_says_how_to_go_on_and_does(clickdam: Commands, tmp_path: Path) -> None:
    """Ctrl-C in the middle, and the whole file again."""
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "".join(f"P{n},N\n" for n in range(IMPORTED)))
    process = await clickdam.start("partners", "import", file)
    while await clickdam.db.fetchval("SELECT count(*) FROM partner") < 1_000:
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode not in (0, None)
    assert "the same command goes on" in said.decode()
    done = await clickdam.db.fetchval("SELECT count(*) FROM partner")
    assert 1_000 <= done < IMPORTED
    exit_code, text = await clickdam.imports("partners", file)
    assert exit_code == 0
    assert f"{IMPORTED - done:,} created, 0 updated, {done:,} unchanged, 0 failed" in text


async def test_a_busy_api_is_waited_for(clickdam: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer is 503 after the work is done: the repetition counts what was made, not what is unchanged."""
    answers = imports.answer
    refusals = [Refused("unavailable", "busy")]

    def answer(body: dict[str, Any]) -> web.Response:
        if refusals:
            raise refusals.pop()
        return answers(body)

    monkeypatch.setattr(imports, "answer", answer)
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "P1,One\n")
    exit_code, said = await clickdam.imports("partners", file)
    assert (exit_code, "1 rows: 1 created" in said) == (0, True), said
    assert not refusals


async def test_what_is_wrong_with_the_file_or_the_way_is_one_clear_line(clickdam: Commands, tmp_path: Path) -> None:
    cases = {
        "a.csv": ("external_id,colour\nP1,red\n", "there is no column 'colour', only id, name, external_id, status"),
        "b.csv": ("", "is empty: its first line names the columns"),
        "c.xls": ("x", "the name of the file tells what is in it"),
    }
    for name, (text, wanted) in cases.items():
        (tmp_path / name).write_text(text)
        exit_code, said = await clickdam.imports("partners", tmp_path / name)
        assert exit_code == 1
        assert wanted in said
        assert "Traceback" not in said
        assert "begins again" not in said  # it would be refused again


def test_a_key_of_this_machine_goes_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clickdam.json").write_text('{"api_url": "http://127.0.0.1:1", "admin_key": "cd_own"}')
    monkeypatch.delenv("CLICKDAM_API_KEY", raising=False)
    assert place(None, tmp_path) == ("http://127.0.0.1:1", "cd_own")
    with pytest.raises(CannotStart, match="CLICKDAM_API_KEY is not set"):
        place("https://api.example", tmp_path)
    monkeypatch.setenv("CLICKDAM_API_KEY", "cd_other")
    assert place("https://api.example/", tmp_path) == ("https://api.example", "cd_other")


@pytest.mark.parametrize(
    "url", ["api.example", "ftp://a.example", "http://a:x", "http://[::1", "http://k@a.example", "http://a b"]
)
def test_a_url_that_no_api_can_have_is_refused_before_anything_is_tried(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKDAM_API_KEY", "cd_x")
    with pytest.raises(CannotStart, match="is no URL of an API"):
        place(url, tmp_path)


def test_a_key_out_of_a_file_works_and_what_can_be_none_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKDAM_API_KEY", "cd_x\n")
    assert place("http://127.0.0.1:8081", tmp_path).key == "cd_x"
    monkeypatch.setenv("CLICKDAM_API_KEY", "cd_x\nX-Header: y")
    with pytest.raises(CannotStart, match="is no key"):
        place("http://127.0.0.1:8081", tmp_path)


@pytest.fixture
async def stranger() -> AsyncIterator[tuple[str, list[str]]]:
    """A server that is no API of ours: its pages are HTML, all but `/` send elsewhere; and what keys it was shown."""
    shown: list[str] = []

    async def page(request: web.Request) -> web.Response:
        shown.append(request.headers.get("Authorization", ""))
        if request.path.startswith("/moved"):
            return web.Response(status=302, headers={"Location": "/elsewhere"})
        return web.Response(text="<p>Welcome</p>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    sock = socket.create_server(("127.0.0.1", 0))
    async with serving(app, sock):
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", shown


async def test_who_is_not_the_api_is_told_apart_and_shown_no_key_by_another(
    stranger: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, shown = stranger
    file, console = tmp_path / "partners.csv", Console(file=io.StringIO())
    file.write_text(PARTNERS + "P1,One\n")
    for where, wanted in ((url, "not as the API does"), (f"{url}/moved", "answered 302")):
        with pytest.raises(CannotStart, match=wanted):
            await asyncio.to_thread(importing.run, "partners", file, Place(where, "cd_x"), console, dry_run=False)
        with pytest.raises(CannotStart, match=wanted):
            await asyncio.to_thread(exporting.run, tmp_path / "out", Place(where, "cd_x"), "csv", console, safe=False)
    assert shown == ["Bearer cd_x"] * 4, "nobody was followed elsewhere"
    assert list((tmp_path / "out").iterdir()) == []


async def test_errors_that_cannot_be_written_beside_the_file_are_one_clear_line(
    clickdam: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "P1,One\n,\n")
    (tmp_path / "partners.csv.errors.csv").mkdir()
    exit_code, said = await clickdam.imports("partners", file)
    assert exit_code == 1
    assert "write beside it" in said
    assert "Traceback" not in said


def test_an_api_that_stays_away_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(CannotStart, match="does not answer"):
        patient(f"http://127.0.0.1:{free_port()}/v1/links/import", "cd_x", b"", {}, 1.0)
    assert time.monotonic() - began < 10


async def test_an_export_is_a_file_for_each_kind(clickdam: Commands, tmp_path: Path) -> None:
    count = limits.PAGE_ROWS_MAX + 5
    file = tmp_path / "partners.csv"
    file.write_text(PARTNERS + "".join(f"P{n},=N{n}\n" for n in range(count)))
    assert (await clickdam.imports("partners", file))[0] == 0
    folder = tmp_path / "new" / "out"
    exit_code, said = await clickdam("export", folder)
    assert exit_code == 0, said
    where, console = Place(clickdam.api_url, clickdam.key), Console(file=io.StringIO())
    forms: list[tuple[Format, bool]] = [("csv", False), ("csv", True), ("jsonl", False)]
    for form, safe in forms:
        if (form, safe) != ("csv", False):
            await asyncio.to_thread(exporting.run, folder, where, form, console, safe=safe)
        assert {f"{what}.{form}" for what in exports.EXPORTS} <= {path.name for path in folder.iterdir()}
        text = (folder / f"partners.{form}").read_text()
        assert len(text.splitlines()) == count + (form == "csv")
        assert ("'=N7," in text) == safe
        if (form, safe) == ("csv", False):
            exit_code, said = await clickdam.imports("partners", folder / "partners.csv")
            assert (exit_code, f"{count:,} unchanged" in said) == (0, True), said


async def test_an_export_with_a_key_that_may_not_leaves_no_file(clickdam: Commands, tmp_path: Path) -> None:
    where = Place(clickdam.api_url, "cd_wrong")
    with pytest.raises(CannotStart, match="Authorization: Bearer"):
        await asyncio.to_thread(exporting.run, tmp_path, where, "csv", Console(file=io.StringIO()), safe=False)
    assert list(tmp_path.iterdir()) == []
