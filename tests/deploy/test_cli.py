"""What an operator reads when something is to be put right."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deploy.run.children import free_port
from deploy.run.cli import app

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


def test_a_flag_wins_over_its_variable() -> None:
    done = clickdam("migrate", "--database-url", "sqlite://flag", CLICKDAM_DATABASE_URL="postgresql://u@127.0.0.1/d")
    assert done.returncode == 2
    assert "CLICKDAM_DATABASE_URL" in done.stderr


@pytest.mark.parametrize(
    "command", ["", "up", "edge", "aggregator", "api", "migrate", "keys create", "demo", "replay", "edge-worker"]
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
