"""A large file of CSV takes no memory."""

import psutil

from aggregator.db.connect import Connection
from tests.aggregator.api.conftest import Client
from tests.aggregator.api.test_api_streams import BY_LINK, many


async def test_300_000_rows_are_streamed_with_bounded_memory(admin: Client, db: Connection) -> None:
    await many(db, 300_000)
    process = psutil.Process()
    before_bytes = most_bytes = process.memory_info().rss
    lines = size_bytes = 0
    path = f"/v1/reports?{BY_LINK},conversions,payout&format=csv"
    async with admin.session.get(path, headers={"Authorization": f"Bearer {admin.key}"}) as answer:
        assert answer.status == 200
        async for data in answer.content.iter_any():
            lines, size_bytes = lines + data.count(b"\n"), size_bytes + len(data)
            most_bytes = max(most_bytes, process.memory_info().rss)
    grown_mb, size_mb = (most_bytes - before_bytes) / 2**20, size_bytes / 2**20
    print(f"{lines - 1:,} rows, {size_mb:.0f} MB: sender and reader together grew by {grown_mb:.0f} MB")
    assert lines == 300_001
    assert grown_mb < 60  # as rows in Python they are 300 MB
