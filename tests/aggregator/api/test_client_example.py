"""The client of docs/client.md, as it stands there, against a running API."""

import asyncio
import os
import re
import sys
from pathlib import Path

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.db.connect import Connection
from tests.aggregator.api.conftest import Client, Made, sold

DOC = Path(__file__).parents[3] / "docs" / "client.md"


async def run_example(url: str, key: str, folder: Path, more: str = "") -> str:
    """What it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    script = folder / "client.py"
    script.write_text(code + more)
    environment = os.environ | {"CLICKDAM_URL": url, "CLICKDAM_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_example_prints_the_report_and_the_conversions(
    admin: Client, made: Made, db: Connection, tmp_path: Path
) -> None:
    sold_ids = [str(await sold(db, made, f"order-{n}")) for n in range(3)]
    key = (await keys.create(db, Wanted("partner", made.partner_id))).key
    printed = await run_example(str(admin.session._base_url).rstrip("/"), key, tmp_path)
    assert re.search(r"^\d{4}-\d\d-\d\d \d+ 3 12\.75 EUR$", printed, re.MULTILINE)
    assert "complete through" in printed
    assert all(f"{one} " in printed for one in sold_ids)


async def test_the_example_reads_a_list_to_its_end_and_sends_changes(
    admin: Client, made: Made, db: Connection, tmp_path: Path
) -> None:
    more = (
        '    for n in range(5):\n        call("POST", "/v1/partners", {"name": f"new-{n}"})\n'
        '    print("partners", *sorted(one["name"] for one in pages("/v1/partners", limit=2)))\n'
    )
    printed = await run_example(str(admin.session._base_url).rstrip("/"), admin.key, tmp_path, more)
    assert "partners Blog new-0 new-1 new-2 new-3 new-4\n" in printed
