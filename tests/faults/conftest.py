"""Both kinds of log, so that one test tries a fault on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtests.faults import journals
from loadtests.faults.journals import JournalOnTrial
from loadtests.faults.kafkas import KafkaOnTrial, kafka_on_trial

OnTrial = JournalOnTrial | KafkaOnTrial


@pytest.fixture(params=["journal", "kafka"])
async def log(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, kafka_topics: tuple[str, str], tmp_path: Path
) -> AsyncIterator[OnTrial]:
    """A log with two partitions to be written to, and the settings of its consumers."""
    if request.param == "journal":
        yield JournalOnTrial(journals.settings(database_url, tmp_path, redis_url=redis_url))
        return
    kafka_url: str = request.getfixturevalue("kafka_url")
    async with kafka_on_trial(database_url, kafka_url, kafka_topics, redis_url=redis_url) as trial:
        yield trial
