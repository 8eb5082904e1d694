"""Settings are refused all at once, each refusal naming its variable and, unless it is a secret, the value."""

import pytest

from schemas.settings import AggregatorSettings, ApiSettings, BadSettings, DatabaseSettings, EdgeSettings, load

GOOD = {
    "LOG_URL": "journal:///var/lib/journal",
    "REDIS_URL": "redis://:secret-word@127.0.0.1:6379/0",
    "DATABASE_URL": "postgresql://user:secret-word@127.0.0.1:5432/clickdam",
    "CLICK_KEYS": "1:" + "ab" * 32,
    "VISITOR_KEY": "cd" * 16,
    "PUBLIC_URL": "https://go.example.com/",
}
ALL = (EdgeSettings, AggregatorSettings, ApiSettings, DatabaseSettings)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(f"CLICKDAM_{name}", value)
    return monkeypatch


@pytest.mark.parametrize("kind", ALL)
def test_good_settings_load_and_cannot_be_changed_after(kind: type[EdgeSettings]) -> None:
    found = load(kind)
    with pytest.raises(ValueError, match="frozen"):
        found.redis_url = "redis://elsewhere"  # type: ignore[misc]


def test_the_edge_reads_its_folder_and_keys() -> None:
    found = load(EdgeSettings)
    assert str(found.journal_folder) == "/var/lib/journal"
    assert found.keys.signing.secret == b"\xab" * 32
    assert found.visitor_secret == b"\xcd" * 16
    assert load(ApiSettings).public_url == "https://go.example.com"


def test_a_flag_wins_over_the_variable_and_an_absent_flag_does_not(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLICKDAM_EDGE_PORT", "9000")
    assert load(EdgeSettings, edge_port=None).edge_port == 9000
    assert load(EdgeSettings, edge_port=9001).edge_port == 9001


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("LOG_URL", "", "journal:///folder"),
        ("LOG_URL", "journal://", "journal:///folder"),
        ("LOG_URL", "journal://relative", "journal:///folder"),
        ("LOG_URL", "sqlite:///x", "journal:///folder"),
        ("LOG_URL", "kafka://", "kafka://host:9092"),
        ("LOG_URL", "kafka://broker", "kafka://host:9092"),
        ("LOG_URL", "kafka://one:9092,", "kafka://host:9092"),
        ("LOG_URL", "kafka://one:9092,two:70000", "kafka://host:9092"),
        ("LOG_URL", "kafka://user:word@one:9092", "kafka://host:9092"),
        ("KAFKA_EVENTS_TOPIC", "clicks and more", "a topic name"),
        ("KAFKA_SECURITY", "tls", "sasl_ssl"),
        ("KAFKA_SASL", "GSSAPI", "SCRAM-SHA-512"),
        ("KAFKA_CA_FILE", "no-such-file.pem", "file"),
        ("SPOOL_BYTES_MAX", "1", "1000000"),
        ("EDGE_PORT", "x", "integer"),
        ("EDGE_PORT", "", "integer"),
        ("EDGE_PORT", "65536", "65535"),
        ("EDGE_PORT", "-1", "0"),
        ("ADMIN_PORT", "99999", "65535"),
        ("WORKERS", "0", "1"),
        ("WORKERS", "65", "64"),
        ("EDGE_NAME", "", "at least 1"),
        ("EDGE_NAME", "x" * 101, "at most 100"),
    ],
)
def test_a_bad_value_is_named_shown_and_explained(
    environment: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    environment.setenv(f"CLICKDAM_{name}", value)
    with pytest.raises(BadSettings, match=why) as refusal:
        load(EdgeSettings)
    assert str(refusal.value).startswith(f"CLICKDAM_{name}={value!r}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    ["", "ftp://x", "https://", "go.example.com", "https://x/path", "https://x?q", "https://x#f", "https://x:99999",
     "https://u:p@x", "https://x:port"],
)  # fmt: skip
def test_a_public_url_is_an_origin(environment: pytest.MonkeyPatch, value: str) -> None:
    environment.setenv("CLICKDAM_PUBLIC_URL", value)
    with pytest.raises(BadSettings, match=r"^CLICKDAM_PUBLIC_URL="):
        load(ApiSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "http://:hidden@host"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://:hidden/word@host:6379"),  # a slash that was not encoded
        ("REDIS_URL", "redis://:hidden@host:99999"),
        ("REDIS_URL", "redis://:hidden@[::1"),
        ("REDIS_URL", "redis://:hidden\u2100@host"),
        ("CLICK_KEYS", "1:hidden"),
        ("CLICK_KEYS", "hidden"),
        ("CLICK_KEYS", ""),
        ("VISITOR_KEY", "hidden"),
        ("VISITOR_KEY", "abcd"),
        ("VISITOR_KEY", "ab" * 33),
    ],
)
def test_a_refused_secret_is_named_and_never_shown(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(f"CLICKDAM_{name}", value)
    with pytest.raises(BadSettings, match=rf"^CLICKDAM_{name}=\(a secret, not shown\): \w") as refusal:
        load(EdgeSettings)
    assert "hidden" not in str(refusal.value)
    assert "abcd" not in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    ["mysql://u:hidden@host", "postgresql://u:hidden@h:x/d", "postgresql://u:hidden@h:99999/d",
     "postgresql://u:hidden@[::1/d", "postgresql://u:hidden@h:1,h:99999/d?a=b"],
)  # fmt: skip
def test_a_refused_database_url_is_not_shown_either(environment: pytest.MonkeyPatch, value: str) -> None:
    environment.setenv("CLICKDAM_DATABASE_URL", value)
    with pytest.raises(BadSettings, match=r"^CLICKDAM_DATABASE_URL=\(a secret, not shown\)"):
        load(DatabaseSettings)


@pytest.mark.parametrize(
    "rest", ["", "u@h/d", "u:p%2F@[::1]:5432/d?x=y", "a:1,b:2,[::1]:3/d", "/d?host=/run/postgresql"]
)
def test_a_database_may_have_several_servers_or_none_that_is_named(environment: pytest.MonkeyPatch, rest: str) -> None:
    environment.setenv("CLICKDAM_DATABASE_URL", f"postgresql://{rest}")
    assert load(DatabaseSettings).database_url == f"postgresql://{rest}"


def test_all_refusals_come_at_once_a_line_each(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("CLICKDAM_LOG_URL")
    for name, value in (("REDIS_URL", "x"), ("CLICK_KEYS", "x"), ("WORKERS", "many"), ("EDGE_PORT", "70000")):
        environment.setenv(f"CLICKDAM_{name}", value)
    with pytest.raises(BadSettings) as refusal:
        load(EdgeSettings)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 5
    assert "CLICKDAM_LOG_URL is not set" in lines
    for name in ("REDIS_URL", "CLICK_KEYS", "WORKERS", "EDGE_PORT"):
        assert any(line.startswith(f"CLICKDAM_{name}=") for line in lines)


def test_the_database_is_no_business_of_the_edge(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("CLICKDAM_DATABASE_URL")
    assert not hasattr(load(EdgeSettings), "database_url")


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    assert "abab" not in repr(load(EdgeSettings))
    assert "cdcd" not in repr(load(EdgeSettings))


def test_a_log_may_be_several_brokers(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLICKDAM_LOG_URL", "kafka://one:9092,two.example:9093,[::1]:9094")
    found = load(EdgeSettings)
    assert found.is_kafka
    assert found.kafka_servers == ["one:9092", "two.example:9093", "[::1]:9094"]


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"KAFKA_SECURITY": "sasl_ssl", "KAFKA_USERNAME": "clickdam"}, "needs CLICKDAM_KAFKA_USERNAME and"),
        ({"KAFKA_CERT_FILE": __file__}, "CLICKDAM_KAFKA_CERT_FILE and CLICKDAM_KAFKA_KEY_FILE belong together"),
        ({"KAFKA_EVENTS_TOPIC": "one", "KAFKA_BEATS_TOPIC": "one"}, "must differ"),
    ],
)
def test_settings_of_kafka_that_need_each_other_are_refused_alone(
    environment: pytest.MonkeyPatch, variables: dict[str, str], why: str
) -> None:
    for name, value in variables.items():
        environment.setenv(f"CLICKDAM_{name}", value)
    with pytest.raises(BadSettings, match=why) as refused:
        load(AggregatorSettings)
    assert "CLICKDAM_KAFKA_" in str(refused.value)


def test_a_password_of_kafka_is_never_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CLICKDAM_KAFKA_PASSWORD", "another-word")
    assert "another-word" not in repr(load(EdgeSettings))
