"""Settings of every process, read once into frozen objects and checked as a whole before anything connects.

Each field is the variable `CLICKDAM_<FIELD>`; a flag of the command line wins over it.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.click_id import ClickKeys

PREFIX = "CLICKDAM_"
_SECRET = frozenset({"click_keys", "visitor_key", "redis_url", "database_url", "kafka_password"})


class BadSettings(ValueError):
    """All that is wrong with the settings, a line each, every line naming its variable."""


def _split(value: str) -> SplitResult:
    """The parts of a URL. Raises ValueError, for an impossible port too; its text is ours, because the parser's
    would show what lies between the slashes, and that may be a password."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    return parts


def _log_url(value: str) -> str:
    servers = value.removeprefix("kafka://").split(",") if value.startswith("kafka://") else []
    if not re.match(r"journal:///.", value) and not (servers and all(map(_is_server, servers))):
        raise ValueError("must be journal:///folder or kafka://host:9092,host:9092")
    return value


def _is_server(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) is not None and port.isdigit() and 0 < int(port) <= 65_535


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", value) or value in (".", ".."):
        raise ValueError("must be a topic name: letters, digits, . _ - and at most 200 of them")
    return value


def _redis_url(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError("must be redis://host:port/0 or rediss://…")
    return value


def _database_url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise ValueError("must be postgresql://user@host:port/database")
    for server in re.split("[/?#]", rest)[0].rpartition("@")[2].split(","):  # several may be named
        _split(f"postgresql://{server}")
    return value


def _origin_url(value: str) -> str:
    parts = _split(value)
    beyond = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in ("http", "https") or not parts.hostname or beyond:
        raise ValueError("must be an origin such as https://go.example.com")
    return value.rstrip("/")


def _click_keys(value: SecretStr) -> SecretStr:
    ClickKeys.parse(value.get_secret_value())
    return value


def _visitor_key(value: SecretStr) -> SecretStr:
    try:
        size = len(bytes.fromhex(value.get_secret_value()))
    except ValueError:
        raise ValueError("must be hexadecimal") from None
    if not 16 <= size <= 32:
        raise ValueError(f"has {size} bytes, wanted 16 to 32")
    return value


def _networks(value: str) -> str:
    for text in value.split(",") if value else ():
        try:
            ip_network(text.strip())
        except ValueError as error:
            raise ValueError(f"must be networks such as 10.0.0.0/8,2001:db8::/32: {error}") from None
    return value


Port = Annotated[int, Field(ge=0, le=65_535)]
Topic = Annotated[str, AfterValidator(_topic)]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")


class LogSettings(_Settings):
    """Where the log is, and how to reach a Kafka. `kafka_*` mean nothing to a journal."""

    log_url: Annotated[str, AfterValidator(_log_url)]
    kafka_events_topic: Topic = "clickdam.events"
    kafka_beats_topic: Topic = "clickdam.beats"
    kafka_client_id: str = "clickdam"
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    kafka_ca_file: FilePath | None = None  # the system's authorities where none is named
    kafka_cert_file: FilePath | None = None
    kafka_key_file: FilePath | None = None
    kafka_sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None

    @property
    def is_kafka(self) -> bool:
        return self.log_url.startswith("kafka:")

    @property
    def journal_folder(self) -> Path:
        return journal_folder(self.log_url)

    @property
    def kafka_servers(self) -> list[str]:
        return self.log_url.removeprefix("kafka://").split(",")

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        if self.kafka_security.startswith("sasl") and not (self.kafka_username and self.kafka_password):
            how = f"CLICKDAM_KAFKA_SECURITY={self.kafka_security!r}"
            raise ValueError(f"{how}: needs CLICKDAM_KAFKA_USERNAME and CLICKDAM_KAFKA_PASSWORD")
        if (self.kafka_cert_file is None) != (self.kafka_key_file is None):
            raise ValueError("CLICKDAM_KAFKA_CERT_FILE and CLICKDAM_KAFKA_KEY_FILE belong together")
        if self.kafka_events_topic == self.kafka_beats_topic:
            raise ValueError("CLICKDAM_KAFKA_EVENTS_TOPIC and CLICKDAM_KAFKA_BEATS_TOPIC must differ")
        return self


class EdgeSettings(LogSettings):
    """What an edge needs: the log, Redis and its keys. No database."""

    redis_url: Annotated[str, AfterValidator(_redis_url)]
    click_keys: Annotated[SecretStr, AfterValidator(_click_keys)]
    visitor_key: Annotated[SecretStr, AfterValidator(_visitor_key)]
    host: str = "127.0.0.1"
    edge_port: Port = 8080
    admin_port: Port = 8090
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    fast_lane: bool = True  # plain clicks are answered past aiohttp
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = ""  # whose X-Forwarded-* are believed
    edge_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=100)
    spool_folder: Path = Path("clickdam-spool")  # what Kafka could not take; a journal has no spool
    spool_bytes_max: Annotated[int, Field(ge=1_000_000)] = (
        4 * 1024**3
    )  # of one worker: an hour at 2,000 clicks a second

    @property
    def keys(self) -> ClickKeys:
        return ClickKeys.parse(self.click_keys.get_secret_value())

    @property
    def trusted_networks(self) -> frozenset[IPv4Network | IPv6Network]:
        return frozenset(ip_network(text.strip()) for text in self.trusted_proxies.split(",") if text)

    @property
    def visitor_secret(self) -> bytes:
        return bytes.fromhex(self.visitor_key.get_secret_value())


class DatabaseSettings(_Settings):
    """What `keys` needs."""

    database_url: Annotated[str, AfterValidator(_database_url)]


class TopicSettings(LogSettings):
    """What `migrate` makes of Kafka's topics, and what it wants of those that are there."""

    kafka_partitions: Annotated[int, Field(ge=1, le=1_000)] = 12  # as many consumers can share the work
    kafka_replication: Annotated[int, Field(ge=1, le=10)] = 3
    kafka_min_insync: Annotated[int, Field(ge=1, le=10)] = 2  # with three replicas, one may be away
    kafka_retention_h: Annotated[int, Field(ge=1, le=87_600)] = 168  # how long Postgres, or its backup, may lie behind

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if self.kafka_min_insync > self.kafka_replication:
            how = f"CLICKDAM_KAFKA_MIN_INSYNC={self.kafka_min_insync}"
            raise ValueError(f"{how}: is more than CLICKDAM_KAFKA_REPLICATION={self.kafka_replication}")
        return self


class AggregatorSettings(DatabaseSettings, LogSettings):
    """Consumer, publisher and partition keeper."""

    redis_url: Annotated[str, AfterValidator(_redis_url)]
    click_retention_days: Annotated[int, Field(ge=32, le=3_660)] = 400
    journal_retention_h: Annotated[int, Field(ge=0, le=8_760)] = 48  # covers a Postgres restored from last night
    host: str = "127.0.0.1"
    admin_port: Port = 8091
    kafka_group: str = "clickdam-aggregator"


class ApiSettings(DatabaseSettings):
    """The HTTP API. With `click_keys`, those of the edges, it can run intakes again that name a click."""

    redis_url: Annotated[str, AfterValidator(_redis_url)]
    public_url: Annotated[str, AfterValidator(_origin_url)]
    click_keys: Annotated[SecretStr, AfterValidator(_click_keys)] | None = None
    host: str = "127.0.0.1"
    api_port: Port = 8081

    @property
    def keys(self) -> ClickKeys | None:
        return ClickKeys.parse(self.click_keys.get_secret_value()) if self.click_keys else None


def journal_folder(log_url: str) -> Path:
    """The folder of `journal:///folder`."""
    return Path(log_url.removeprefix("journal://"))


S = TypeVar("S", bound=_Settings)


def load(kind: type[S], **flags: Any) -> S:
    """Settings from the environment, flags that are not None winning. Raises BadSettings with every refusal."""
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise BadSettings("\n".join(_refusal(dict(found)) for found in error.errors())) from None


def _refusal(found: dict[str, Any]) -> str:
    if not found["loc"]:
        return str(found["msg"]).removeprefix("Value error, ")
    name = str(found["loc"][0])
    variable = PREFIX + name.upper()
    if found["type"] == "missing":
        return f"{variable} is not set"
    message = str(found["msg"]).removeprefix("Value error, ")
    shown = "(a secret, not shown)" if name in _SECRET else repr(found["input"])
    return f"{variable}={shown}: {message}"
