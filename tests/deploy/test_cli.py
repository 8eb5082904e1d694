"""What an operator reads when something is to be put right."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from deploy.run.children import CannotStart, free_port
from deploy.run.cli import app
from deploy.run.demo import kill_aggregator
from deploy.run.listening import listen, port_of

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}


def clickdam(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.run.cli", *arguments]
    return subprocess.run(command, env=CLEAN | variables, capture_output=True, text=True, check=False, timeout=30)


def test_every_missing_setting_is_named_at_once() -> None:
    done = clickdam("edge")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"clickdam: CLICKDAM_{name} is not set" for name in ("LOG_URL", "REDIS_URL", "CLICK_KEYS", "VISITOR_KEY")
    ]


def test_a_refusal_names_variable_and_value_but_shows_no_secret() -> None:
    secrets = {"CLICKDAM_DATABASE_URL": "mysql://me:hidden@db", "CLICKDAM_REDIS_URL": "redis://:hidden@"}
    done = clickdam("aggregator", CLICKDAM_LOG_URL="/folder", CLICKDAM_ADMIN_PORT="70000", **secrets)
    assert done.returncode == 2
    assert "CLICKDAM_LOG_URL='/folder': must be journal:///folder" in done.stderr
    assert "CLICKDAM_ADMIN_PORT='70000'" in done.stderr
    assert "CLICKDAM_DATABASE_URL=(a secret, not shown)" in done.stderr
    assert "hidden" not in done.stderr


def test_a_journal_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keys = {"CLICKDAM_CLICK_KEYS": "1:" + "ab" * 32, "CLICKDAM_VISITOR_KEY": "cd" * 16}
    of = {"CLICKDAM_REDIS_URL": "redis://127.0.0.1:1", "CLICKDAM_LOG_URL": f"journal://{tmp_path}/file/journal"}
    done = clickdam("edge", "--edge-port", "0", "--admin-port", "0", **keys, **of)
    assert done.returncode == 1
    assert (
        done.stderr == f"clickdam: CLICKDAM_LOG_URL='{of['CLICKDAM_LOG_URL']}': cannot write there: Not a directory\n"
    )


def test_a_flag_wins_over_its_variable() -> None:
    done = clickdam("migrate", "--database-url", "sqlite://flag", CLICKDAM_DATABASE_URL="postgresql://u@127.0.0.1/d")
    assert done.returncode == 2
    assert "CLICKDAM_DATABASE_URL" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "",
        "up",
        "edge",
        "aggregator",
        "api",
        "migrate",
        "keys create",
        "keys list",
        "keys revoke",
        "recompute",
        "report",
        "demo",
        "replay",
        "edge-worker",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_migrate_brings_an_empty_database_to_shape_and_then_has_nothing_to_do(database_url: str) -> None:
    assert clickdam("migrate", CLICKDAM_DATABASE_URL=database_url).stdout == "nothing to do\n"


def test_an_absent_database_is_one_clear_line() -> None:
    done = clickdam("migrate", CLICKDAM_DATABASE_URL=f"postgresql://me:hidden@127.0.0.1:{free_port()}/d")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "does not answer" in done.stderr
    assert "hidden" not in done.stderr


def test_keys_create_prints_the_key_alone(database_url: str) -> None:
    done = clickdam("keys", "create", "--role", "admin", CLICKDAM_DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"cd_[0-9A-Za-z]{38}\n", done.stdout)


def test_a_key_without_its_owner_is_refused_in_one_line(database_url: str) -> None:
    done = clickdam("keys", "create", "--role", "partner", CLICKDAM_DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (2, "clickdam: a key for a partner needs partner_id\n")


def test_a_host_that_is_not_this_machines_is_one_clear_line(tmp_path: Path) -> None:
    for host in ("no-such-host.invalid", "203.0.113.9"):
        done = clickdam("up", "--data", str(tmp_path / "data"), "--host", host, "--edge-port", "0")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert host in done.stderr


def test_a_free_port_is_found_on_every_kind_of_address() -> None:
    for host in ("127.0.0.1", "0.0.0.0", "::1"):
        with listen(host, 0)[0] as listening:
            assert port_of(listening) > 0


def test_a_data_folder_that_cannot_be_one_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/below"):
        done = clickdam("up", "--data", str(tmp_path / folder))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "cannot use" in done.stderr


def test_a_damaged_data_folder_is_one_clear_line(tmp_path: Path) -> None:
    for name, command in (("clickdam.json", "demo"), ("secrets.json", "up")):
        (tmp_path / name).write_text('{"click_keys": 1')
        done = clickdam(command, "--data", str(tmp_path))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert f"cannot read {tmp_path / name}" in done.stderr


def test_a_demo_whose_edge_is_gone_is_one_clear_line(tmp_path: Path) -> None:
    demo = {"link_url": f"http://127.0.0.1:{free_port()}/c/demo"}
    (tmp_path / "clickdam.json").write_text(json.dumps({"demo": demo, "processes": {"aggregator": [1]}}))
    done = clickdam("demo", "--data", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "does not answer" in done.stderr


def test_a_demo_kills_one_of_several_aggregators_and_nobody_else() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "aggregator"]) as ours:
        told = {"processes": {"aggregator": [ours.pid, os.getpid()]}}
        while not psutil.Process(ours.pid).cmdline():  # for a moment a process that begins has none
            time.sleep(0.01)
        assert kill_aggregator(told) == ours.pid
        assert ours.wait(10) == -signal.SIGKILL
    with pytest.raises(CannotStart, match=f"{ours.pid} is not the aggregator any more"):
        kill_aggregator(told)


def test_up_with_a_database_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    ports = ("--edge-port", "0", "--api-port", "0", "--shop-port", "0")
    url = f"postgresql://me:hidden@127.0.0.1:{free_port()}/d"
    done = clickdam("up", "--data", str(tmp_path / "data"), *ports, CLICKDAM_DATABASE_URL=url)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "does not answer" in done.stderr
    assert "hidden" not in done.stderr


@pytest.mark.parametrize("command", ["up", "edge", "aggregator", "api"])
@pytest.mark.parametrize("asked_to_end", [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_end_while_it_loads_ends_in_order(command: str, asked_to_end: signal.Signals) -> None:
    loading = "import sys, signal, deploy.run; signal.raise_signal(signal.Signals(int(sys.argv[2])))"
    done = subprocess.run([sys.executable, "-c", loading, command, str(int(asked_to_end))], check=False, timeout=30)
    assert done.returncode == 0


def test_a_command_that_is_no_server_does_not_claim_success_when_it_is_ended() -> None:
    loading = "import signal, deploy.run; signal.raise_signal(signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", loading, "migrate"], check=False, timeout=30)
    assert done.returncode == -signal.SIGTERM


def test_keys_are_made_listed_and_revoked_on_the_machine_itself(database_url: str) -> None:
    on = {"CLICKDAM_DATABASE_URL": database_url}
    first = clickdam("keys", "create", "--role", "admin", "--name", "first", **on)
    options = ("--scope", "links.read", "--scope", "links.write", "--expires", "2099-01-01", "--name", "second")
    second = clickdam("keys", "create", "--role", "admin", *options, **on)
    listed = [json.loads(line) for line in clickdam("keys", "list", **on).stdout.splitlines()]
    assert [(key["name"], key["scopes"], key["expires_at"]) for key in listed] == [
        ("first", None, None),
        ("second", ["links.read", "links.write"], "2099-01-01T00:00:00.000Z"),
    ]
    assert [key["last_four"] for key in listed] == [first.stdout[-5:-1], second.stdout[-5:-1]]
    refused = clickdam("keys", "revoke", str(listed[0]["id"]), **on)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert clickdam("keys", "revoke", str(listed[1]["id"]), **on).returncode == 0
    assert len(clickdam("keys", "list", **on).stdout.splitlines()) == 1
    assert len(clickdam("keys", "list", "--all", **on).stdout.splitlines()) == 2
    wrong = clickdam("keys", "create", "--role", "admin", "--scope", "me.read", **on)
    assert (wrong.returncode, wrong.stderr) == (2, "clickdam: there is no scope 'me.read' for the role admin\n")
