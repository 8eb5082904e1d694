"""The one console script: every process of Clickdam starts here."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop

from deploy.run.children import CannotStart
from deploy.run.listening import inherited, listen
from deploy.run.logs import log_json_lines, silence_kafka
from schemas.errors import Refused
from schemas.settings import (
    AggregatorSettings,
    ApiSettings,
    BadSettings,
    DatabaseSettings,
    EdgeSettings,
    LogSettings,
    TopicSettings,
    load,
)

# what a file may bring and by what each is found again, in the order in which they need each other
IMPORTED = {
    "advertisers": "external_id",
    "partners": "external_id",
    "offers": "external_id",
    "links": "external_id",
    "coupons": "code",
    "clicks": "click_id",
    "conversions": "order_id",
}
app = typer.Typer(
    help="Affiliate click tracking. Settings come from CLICKDAM_* variables; flags win over them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
brought = {kind: typer.Typer(help=f"The {kind} of the programme.", no_args_is_help=True) for kind in IMPORTED}
for kind, commands in brought.items():
    app.add_typer(commands, name=kind)

PIPED_WIDTH = 200  # of a table that no terminal shows: cells are not cut off
PORTS: dict[str, Any] = {"min": 0, "max": 65_535}
Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", show_default=False)]
Folder = Annotated[Path, typer.Option("--data", help="The data folder of `clickdam up`.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="postgresql://user@host:port/database")]
LogUrl = Annotated[str | None, typer.Option(help="journal:///folder or kafka://host:9092,host:9092")]
RedisUrl = Annotated[str | None, typer.Option(help="redis://host:port/0")]
ApiUrl = Annotated[
    str | None,
    typer.Option(
        envvar="CLICKDAM_API_URL", help="The API, if it is not that of --data; its admin key in CLICKDAM_API_KEY."
    ),
]
AdminPort = Annotated[int | None, typer.Option(help="Health and metrics; 0 is a free port.")]
Fds = Annotated[list[int] | None, typer.Option("--fd", hidden=True, help="Listening sockets from a parent.")]


def main() -> None:
    """Run a command; what the operator has to put right is said in plain lines, without a traceback."""
    try:
        app()
    except BadSettings as refused:
        _say(str(refused))
        sys.exit(2)
    except Refused as refusal:
        _say(refusal.message)
        sys.exit(2)
    except CannotStart as reason:
        _say(str(reason))
        sys.exit(1)


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"clickdam: {line}", file=sys.stderr)


def _serve(process: str, serving: Coroutine[Any, Any, None]) -> None:
    log_json_lines(process)
    uvloop.run(serving)


@app.command()
def up(
    data: Folder = Path("clickdam-data"),
    host: Annotated[str, typer.Option(envvar="CLICKDAM_HOST", help="Address to listen on.")] = "127.0.0.1",
    edge_port: Annotated[
        int, typer.Option(envvar="CLICKDAM_EDGE_PORT", **PORTS, help="Tracking links and postbacks; 0 is a free port.")
    ] = 8080,
    api_port: Annotated[
        int, typer.Option(envvar="CLICKDAM_API_PORT", **PORTS, help="The HTTP API; 0 is a free port.")
    ] = 8081,
    shop_port: Annotated[int, typer.Option(**PORTS, help="The demo shop; 0 is a free port.")] = 8082,
    workers: Annotated[int, typer.Option(envvar="CLICKDAM_WORKERS", min=1, max=64, help="Edge workers.")] = 1,
    aggregators: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that apply the log; with Kafka they share the work.")
    ] = 1,
    kafka: Annotated[
        bool,
        typer.Option("--kafka", help="In a new data folder: the log is an Apache Kafka, not a journal, for good."),
    ] = False,
    demo: Annotated[bool, typer.Option(help="Seed a demo programme in a new data folder.")] = True,
) -> None:
    """Run everything on this machine, its own PostgreSQL and Valkey included. Ctrl-C stops it."""
    from deploy.run.machine import Wanted  # noqa: PLC0415
    from deploy.run.up import run  # noqa: PLC0415

    run(Wanted(data, host, edge_port, api_port, shop_port, workers, aggregators, kafka, demo))


@app.command()
def edge(
    host: Host = None,
    edge_port: Annotated[int | None, typer.Option(help="Tracking links and postbacks; 0 is a free port.")] = None,
    admin_port: AdminPort = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the port.")] = None,
    log_url: LogUrl = None,
    redis_url: RedisUrl = None,
    fd: Fds = None,
) -> None:
    """Answer tracking links and conversions."""
    from deploy.run.supervise import supervise  # noqa: PLC0415

    flags = {"host": host, "edge_port": edge_port, "admin_port": admin_port, "workers": workers}
    settings = load(EdgeSettings, **flags, log_url=log_url, redis_url=redis_url)
    sockets = list(map(inherited, fd or ())) or listen(settings.host, settings.edge_port, settings.workers)
    _serve("edge", supervise(settings, sockets))


@app.command(hidden=True)
def edge_worker(
    slot: Annotated[int, typer.Option()], fd: Annotated[int, typer.Option()], admin: Annotated[Path, typer.Option()]
) -> None:
    """One process of the edge, started by its supervisor."""
    from schemas.journal import SlotTaken  # noqa: PLC0415
    from tracker.app import serve  # noqa: PLC0415
    from tracker.log.recorder import LogFailed  # noqa: PLC0415

    settings = load(EdgeSettings)
    try:
        _serve(f"edge-worker-{slot}", serve(settings, slot, inherited(fd), admin))
    except (SlotTaken, LogFailed) as error:
        raise CannotStart(f"worker {slot}: {error}") from error


@app.command()
def aggregator(
    database_url: DatabaseUrl = None,
    log_url: LogUrl = None,
    redis_url: RedisUrl = None,
    host: Host = None,
    admin_port: AdminPort = None,
) -> None:
    """Write the log to PostgreSQL, publish link configs, keep the partitions."""
    from aggregator.app import serve  # noqa: PLC0415

    urls = {"database_url": database_url, "log_url": log_url, "redis_url": redis_url}
    _serve("aggregator", serve(load(AggregatorSettings, **urls, host=host, admin_port=admin_port)))


@app.command()
def api(
    database_url: DatabaseUrl = None,
    redis_url: RedisUrl = None,
    public_url: Annotated[str | None, typer.Option(help="The edge as visitors see it: https://go.example.com")] = None,
    host: Host = None,
    api_port: Annotated[int | None, typer.Option(help="0 is a free port.")] = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the HTTP API."""
    from aggregator.api.app import serve  # noqa: PLC0415

    urls = {"database_url": database_url, "redis_url": redis_url, "public_url": public_url}
    settings = load(ApiSettings, **urls, host=host, api_port=api_port)
    listening = listen(settings.host, settings.api_port)[0] if fd is None else inherited(fd)
    _serve("api", serve(settings, listening))


@app.command()
def migrate(database_url: DatabaseUrl = None, log_url: LogUrl = None) -> None:
    """Bring the database, and the topics of a log in Kafka, to the shape this version expects."""
    from aggregator.db import migrate as migrating  # noqa: PLC0415
    from deploy.run.database import ask  # noqa: PLC0415 - the edge has no road to the database

    settings = load(DatabaseSettings, database_url=database_url)
    log_url = log_url or os.environ.get("CLICKDAM_LOG_URL")
    topics = load(TopicSettings, log_url=log_url) if log_url else None
    done = ask(migrating.migrate(settings.database_url))
    if topics and topics.is_kafka:
        from deploy.run.topics import ensure_topics  # noqa: PLC0415 - most have no Kafka

        silence_kafka()
        done += uvloop.run(ensure_topics(topics))
    print("\n".join(done) or "nothing to do")


@app.command()
def drain(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The spool: CLICKDAM_SPOOL_FOLDER.")
    ],
    log_url: Annotated[str | None, typer.Option(help="kafka://host:9092,host:9092")] = None,
) -> None:
    """Send to Kafka what edges that are gone have left in their spool, and close them.

    A slot whose edge lives is left alone. Exits with 1 when anything is left.
    """
    from rich.console import Console  # noqa: PLC0415

    from deploy.run.drain import drain as draining  # noqa: PLC0415 - it brings Kafka's client

    settings = load(LogSettings, log_url=log_url)
    if not settings.is_kafka:
        raise BadSettings(f"CLICKDAM_LOG_URL={settings.log_url!r}: a spool is sent to kafka://host:9092,host:9092")
    log_json_lines("drain", logging.ERROR)
    raise typer.Exit(0 if uvloop.run(draining(settings, folder, Console())) else 1)


@keys.command("create")
def keys_create(
    role: Annotated[str, typer.Option(help="admin, partner or advertiser")],
    partner_id: Annotated[int | None, typer.Option(help="Whose key, for the role partner.")] = None,
    advertiser_id: Annotated[int | None, typer.Option(help="Whose key, for the role advertiser.")] = None,
    name: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="links.read, links.write, ...; all, if none.")] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"], help="In UTC; never, if not given.")
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an API key and print it; it is shown only this once."""
    from aggregator.api.keys import Wanted  # noqa: PLC0415
    from deploy.run.database import ask  # noqa: PLC0415
    from deploy.run.keys import create  # noqa: PLC0415

    settings = load(DatabaseSettings, database_url=database_url)
    expires_at = expires and expires.replace(tzinfo=UTC)
    wanted = Wanted(role, partner_id, advertiser_id, name, scope or None, expires_at=expires_at)
    print(ask(create(settings.database_url, wanted)))


@keys.command("list")
def keys_list(
    also_over: Annotated[bool, typer.Option("--all", help="Those that were revoked or have expired, too.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List API keys, one JSON object a line; the keys themselves are nowhere."""
    from deploy.run.database import ask  # noqa: PLC0415
    from deploy.run.keys import listed  # noqa: PLC0415

    settings = load(DatabaseSettings, database_url=database_url)
    for key in ask(listed(settings.database_url, also_over=also_over)):
        print(orjson.dumps(key).decode())


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[int, typer.Argument(metavar="ID", help="The `id` that `keys list` shows.")],
    database_url: DatabaseUrl = None,
) -> None:
    """End an API key, at once and for good."""
    from deploy.run.database import ask  # noqa: PLC0415
    from deploy.run.keys import revoke  # noqa: PLC0415

    settings = load(DatabaseSettings, database_url=database_url)
    ask(revoke(settings.database_url, key_id))


def _importing(kind: str, name: str) -> Callable[..., None]:
    def command(
        file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV (.csv) or JSON lines (.jsonl).")],
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
        api_url: ApiUrl = None,
        data: Folder = Path("clickdam-data"),
    ) -> None:
        from rich.console import Console  # noqa: PLC0415

        from deploy.run.http import place  # noqa: PLC0415
        from deploy.run.importing import run  # noqa: PLC0415

        whole = run(kind, file, place(api_url, data), Console(), dry_run=dry_run)
        raise typer.Exit(0 if whole else 1)

    command.__doc__ = f"""Make or change {kind} as a file says, each found again by its {name}.

    Rows that cannot be are left out; they are in FILE.errors.csv with the reason, to be put right and imported from
    there, and the exit is 1. Stopped in the middle, the same command goes on. docs/switching.md has the columns.
    """
    return command


for kind, commands in brought.items():
    commands.command("import")(_importing(kind, IMPORTED[kind]))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", file_okay=False, help="Made if it is not there.")],
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of CSV.")] = False,
    safe: Annotated[
        bool, typer.Option("--safe", help="For spreadsheets: a quote before what they would take for a formula.")
    ] = False,
    api_url: ApiUrl = None,
    data: Folder = Path("clickdam-data"),
) -> None:
    """Write everything that was typed in - partners, offers, links and all - into a folder, a file for each kind."""
    from rich.console import Console  # noqa: PLC0415

    from deploy.run.exporting import run  # noqa: PLC0415
    from deploy.run.http import place  # noqa: PLC0415

    run(folder, place(api_url, data), "jsonl" if jsonl else "csv", Console(), safe=safe)


@app.command()
def report(
    starts: Annotated[str | None, typer.Option("--from", help="A day (2026-11-27) or a time with its zone.")] = None,
    ends: Annotated[str | None, typer.Option("--to", help="The same; not itself included.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Europe/Berlin; the programme's, if not given.")] = None,
    group_by: Annotated[str | None, typer.Option(help="day, link, ...; with commas between them.")] = None,
    metrics: Annotated[str | None, typer.Option(help="clicks,conversions,payout, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer as it is.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All rows as CSV.")] = False,
    api_url: ApiUrl = None,
    data: Folder = Path("clickdam-data"),
) -> None:
    """Show what clicks and conversions come to, as a table. A key in CLICKDAM_API_KEY says whose; docs/reports.md has
    all words that may be asked for."""
    from rich.console import Console  # noqa: PLC0415

    from deploy.run.http import place  # noqa: PLC0415
    from deploy.run.reporting import run  # noqa: PLC0415

    if as_json and as_csv:
        raise typer.BadParameter("it is either --json or --csv")
    question = {"from": starts, "to": ends, "timezone": timezone, "group_by": group_by, "metrics": metrics}
    form = "json" if as_json else "csv" if as_csv else "table"
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    run(place(api_url, data), question, form, console)


@app.command()
def reconcile(
    starts: Annotated[
        str | None, typer.Option("--from", help="A day (2026-11-27) or a time with its zone; two days ago.")
    ] = None,
    ends: Annotated[str | None, typer.Option("--to", help="The same; not itself included.")] = None,
    api_url: ApiUrl = None,
    data: Folder = Path("clickdam-data"),
) -> None:
    """Hold what edges have counted against what is in PostgreSQL, for each hour. Exits with 1 when a complete hour is
    off."""
    from rich.console import Console  # noqa: PLC0415

    from deploy.run.http import place  # noqa: PLC0415
    from deploy.run.reconciling import run  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    raise typer.Exit(0 if run(place(api_url, data), starts, ends, console) else 1)


@app.command()
def recompute(
    starts: Annotated[str, typer.Option("--from", help="A day (2026-11-27) or a time with its zone.")],
    ends: Annotated[str, typer.Option("--to", help="The same; not itself included.")],
    apply: Annotated[bool, typer.Option("--apply", help="Put right what differs.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make the rollups of conversions and of settled clicks again, and show what differs from those that are stored.

    Days are those of the programme. Exits with 1 when something differs and is left as it is.
    """
    from rich.console import Console  # noqa: PLC0415

    from deploy.run.database import ask  # noqa: PLC0415 - the edge has no road to the database
    from deploy.run.recomputing import run  # noqa: PLC0415

    settings = load(DatabaseSettings, database_url=database_url)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    differ = ask(run(settings.database_url, starts, ends, console, apply=apply))
    raise typer.Exit(1 if differ and not apply else 0)


@app.command()
def demo(
    data: Folder = Path("clickdam-data"),
    kill: Annotated[bool, typer.Option("--kill", help="Kill the aggregator in the middle.")] = False,
    clicks: Annotated[int, typer.Option(min=2, max=100_000, help="How many clicks to send.")] = 1_000,
) -> None:
    """Send clicks to a running `clickdam up` and compare what was answered with what was recorded."""
    from deploy.run.demo import run  # noqa: PLC0415

    raise typer.Exit(0 if uvloop.run(run(data, clicks, kill=kill)) else 1)


@app.command()
def replay(
    data: Folder = Path("clickdam-data"),
    clicks: Annotated[int, typer.Option(min=1, help="How many clicks to send.")] = 50_000,
    conversions: Annotated[int, typer.Option(min=0, help="How many orders follow from them.")] = 2_000,
    duplicates: Annotated[int, typer.Option(min=0, help="How many orders are posted twice.")] = 300,
    links: Annotated[int, typer.Option(min=1, help="Over how many links.")] = 10_000,
    rate: Annotated[float, typer.Option(min=0, help="Clicks a second; 0 is as fast as they are answered.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed sends the same traffic.")] = 1,
    kill_aggregator: Annotated[int, typer.Option(min=0, help="Kill -9 it so many times meanwhile.")] = 0,
    kill_worker: Annotated[int, typer.Option(min=0, help="Kill -9 an edge worker so many times meanwhile.")] = 0,
) -> None:
    """Send realistic traffic to a running `clickdam up` and hold the report against what was counted here."""
    from loadtests import replay as replaying  # noqa: PLC0415

    wanted = replaying.Wanted(clicks, conversions, duplicates, links, rate, seed, kill_aggregator, kill_worker)
    raise typer.Exit(replaying.main(data, wanted))


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Every contender has its turn in each.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="How long a timed run is; a second of warm-up comes first.")] = 3,
    connections: Annotated[
        list[int] | None, typer.Option(min=1, max=2_000, help="May be repeated. [default: 64, 256]", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="journal, kafka, kafka0, nginx; may be repeated. [default: all]")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Each round once more, with 5 % other requests on each connection.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything there.")] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw the rates there.")] = None,
) -> None:
    """Measure durable redirects beside a bare aiohttp and nginx + Lua + Redis, in turns, on one core of this machine.

    Exits with 1 when an answer was wrong, or an answered click is not exactly one row in PostgreSQL.
    """
    from loadtests.bench import run as benching  # noqa: PLC0415

    if unknown := set(only or ()) - set(benching.NAMES):
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(benching.NAMES)}")
    wanted = benching.Wanted(rounds, seconds, tuple(connections or (64, 256)), tuple(only or ()), mixed)
    raise typer.Exit(benching.main(wanted, json_file, svg_file))


@app.command(hidden=True)
def demo_shop(fd: Annotated[int, typer.Option()], edge_url: Annotated[str, typer.Option()]) -> None:
    """The demo programme's advertiser; its token comes from CLICKDAM_DEMO_TOKEN."""
    from deploy.run.demo_shop import serve  # noqa: PLC0415

    _serve("shop", serve(inherited(fd), edge_url, os.environ["CLICKDAM_DEMO_TOKEN"]))


if __name__ == "__main__":
    main()
