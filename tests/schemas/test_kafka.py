"""The ways to reach a Kafka, each against a real broker that insists on it; and names for a topic's contents."""

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.run import kafka
from deploy.run.children import free_port
from schemas.kafka import connection, topic_ids
from schemas.settings import LogSettings

USER, PASSWORD = "clickdam", "a-password"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
LISTENERS = {"PLAINTEXT": "PLAINTEXT", "USERS": "SASL_PLAINTEXT", "CERTS": "SSL", "BOTH": "SASL_SSL"}


@dataclass
class Guarded:
    """A broker with a listener for each way in."""

    ports: dict[str, int]
    folder: Path

    def settings(self, listener: str, **fields: object) -> LogSettings:
        wanted: dict[str, object] = {"kafka_security": LISTENERS[listener].lower()}
        if "SASL" in LISTENERS[listener]:
            wanted |= {"kafka_username": USER, "kafka_password": PASSWORD}
        if "SSL" in LISTENERS[listener]:
            wanted |= {"kafka_ca_file": self.folder / "ca.pem"}
        return LogSettings(log_url=f"kafka://127.0.0.1:{self.ports[listener]}", **(wanted | fields))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    ports = {listener: free_port() for listener in LISTENERS}
    make_certificates(folder)
    server = kafka.start_kafka(folder / "kafka", ports["PLAINTEXT"], broker_settings(folder, ports))
    try:
        for mechanism in SCRAM:
            add_user(ports["PLAINTEXT"], mechanism)
        yield Guarded(ports, folder)
    finally:
        kafka.stop_kafka(server)


def make_certificates(folder: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.issue_cert("edge@clickdam").private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")


def broker_settings(folder: Path, ports: dict[str, int]) -> dict[str, str]:
    addresses = ",".join(f"{listener}://127.0.0.1:{port}" for listener, port in ports.items())
    kinds = ",".join(f"{listener}:{kind}" for listener, kind in LISTENERS.items())
    modules = "org.apache.kafka.common.security"
    settings = {
        "listeners": f"{addresses},CONTROLLER://127.0.0.1:{free_port()}",
        "advertised.listeners": addresses,
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{kinds}",
        "sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM)),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(pkcs8(folder / "server.pem")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.certs.ssl.client.auth": "required",
    }
    settings["controller.quorum.voters"] = "1@" + settings["listeners"].rpartition("//")[2]
    for listener in ("users", "both"):
        at = f"listener.name.{listener}"
        settings[f"{at}.plain.sasl.jaas.config"] = (
            f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        )
        for mechanism in SCRAM:
            settings[f"{at}.{mechanism.lower()}.sasl.jaas.config"] = f"{modules}.scram.ScramLoginModule required;"
    return settings


def pkcs8(path: Path) -> Path:
    """The same file with its key as Kafka reads it."""
    from cryptography.hazmat.primitives import serialization as s

    pem = path.read_bytes()
    key = s.load_pem_private_key(pem, None)
    chain = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()) + chain)
    return path


def add_user(port: int, mechanism: str) -> None:
    what = ["--alter", "--entity-type", "users", "--entity-name", USER]
    secret = ["--add-config", f"{mechanism}=[iterations=4096,password='{PASSWORD}']".replace("'", "")]
    command = [*kafka.java(), "kafka.admin.ConfigCommand", "--bootstrap-server", f"127.0.0.1:{port}"]
    subprocess.run([*command, *what, *secret], check=True, capture_output=True)


async def reaches(settings: LogSettings) -> bool:
    producer = AIOKafkaProducer(**connection(settings))
    try:
        async with asyncio.timeout(10):
            await producer.start()
    finally:
        await producer.stop()
    return True


@pytest.mark.parametrize("listener", ["USERS", "BOTH"])
@pytest.mark.parametrize("mechanism", ["PLAIN", *SCRAM])
async def test_a_user_gets_in_by_each_mechanism(guarded: Guarded, listener: str, mechanism: str) -> None:
    assert await reaches(guarded.settings(listener, kafka_sasl=mechanism))


async def test_a_certificate_gets_in(guarded: Guarded) -> None:
    own = guarded.folder / "client.pem"
    assert await reaches(guarded.settings("CERTS", kafka_cert_file=own, kafka_key_file=own))


async def test_nobody_gets_in_with_a_wrong_password_or_without_trust(guarded: Guarded) -> None:
    for wrong in (
        guarded.settings("USERS", kafka_password="wrong"),
        guarded.settings("BOTH", kafka_ca_file=None),
        guarded.settings("CERTS"),
    ):
        with pytest.raises(Exception, match=r"[Aa]uthentication|[Uu]nable|connect"):
            await reaches(wrong)


async def test_a_topic_made_again_has_another_id(kafka_url: str, kafka_topics: tuple[str, str]) -> None:
    topic = kafka_topics[0]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        first = await _id_of(admin, topic)
        assert first == await _id_of(admin, topic)
        await admin.delete_topics([topic])
        while topic in await topic_ids(admin._client, [topic]):
            await asyncio.sleep(0.05)
        await admin.create_topics([NewTopic(topic, 2, 1)])
        assert await _id_of(admin, topic) != first
    finally:
        await admin.close()


async def _id_of(admin: AIOKafkaAdminClient, topic: str) -> str:
    async with asyncio.timeout(10):
        while topic not in (found := await topic_ids(admin._client, [topic])):
            await asyncio.sleep(0.05)
    return found[topic]
