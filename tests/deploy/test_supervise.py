"""The edge's supervisor: sockets outlive workers, workers do not outlive it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.run.admin import merged
from deploy.run.children import CannotStart, free_port, wait_until
from deploy.run.http import answers
from deploy.run.listening import listen, port_of

START_S = 20.0


@pytest.fixture
def edge(valkey_url: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """A supervisor with two workers, its edge URL and its admin URL."""
    port, admin_port = free_port(), free_port()
    settings = {
        "CLICKDAM_LOG_URL": f"journal://{tmp_path / 'journal'}",
        "CLICKDAM_REDIS_URL": valkey_url,
        "CLICKDAM_CLICK_KEYS": f"1:{'ab' * 32}",
        "CLICKDAM_VISITOR_KEY": "cd" * 16,
        "CLICKDAM_ADMIN_PORT": str(admin_port),
    }
    command = [sys.executable, "-m", "deploy.run.cli", "edge", "--workers", "2", "--edge-port", str(port)]
    with subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.DEVNULL) as process:
        url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
        assert wait_until(lambda: answers(f"{url}/live") and len(both_up(admin_url)) == 2, START_S)
        yield process, url, admin_url
        process.kill()


def both_up(admin_url: str) -> list[str]:
    return [line for line in metrics(admin_url) if line.startswith("clickdam_worker_up") and line.endswith(" 1.0")]


def metrics(admin_url: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"{admin_url}/metrics") as answer:
            return answer.read().decode().splitlines()
    except OSError:
        return []


def workers(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Slot -> pid of those that run."""
    found = {}
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):
            command = child.cmdline()
            if "--slot" in command:  # between fork and exec a child shows its parent's command
                found[command[command.index("--slot") + 1]] = child.pid
    return found


def test_a_dead_worker_is_started_again_in_its_slot_and_nobody_is_refused(
    edge: tuple[subprocess.Popen[bytes], str, str],
) -> None:
    process, url, admin_url = edge
    before = workers(process)
    os.kill(before["0"], signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 1):
        pass  # some of these go to the dead worker's socket, and wait there
    assert wait_until(lambda: workers(process).keys() == {"0", "1"} and len(both_up(admin_url)) == 2, START_S)
    after = workers(process)
    assert after["0"] != before["0"]
    assert after["1"] == before["1"]
    assert 'clickdam_worker_restarts_total{worker="0"} 1.0' in metrics(admin_url)


def test_sigterm_ends_the_edge_and_its_workers_with_success(edge: tuple[subprocess.Popen[bytes], str, str]) -> None:
    process, url, _ = edge
    started = [psutil.Process(pid) for pid in workers(process).values()]
    process.terminate()
    assert process.wait(15) == 0
    assert not any(one.is_running() for one in started)
    assert not answers(f"{url}/live")


def test_workers_end_when_their_supervisor_is_killed(edge: tuple[subprocess.Popen[bytes], str, str]) -> None:
    process, _, _ = edge
    started = [psutil.Process(pid) for pid in workers(process).values()]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


@pytest.mark.parametrize("count", [1, 3])
def test_a_used_port_is_refused_even_where_it_could_be_shared(count: int) -> None:
    first = listen("127.0.0.1", 0, count)
    try:
        with pytest.raises(CannotStart, match=rf"^port {port_of(first[0])} of 127\.0\.0\.1 is in use: .*$"):
            listen("127.0.0.1", port_of(first[0]), count)
    finally:
        for one in first:
            one.close()


def test_metrics_of_all_workers_are_one_page_in_which_each_has_its_label() -> None:
    text = '# HELP clicks_total How many\n# TYPE clicks_total counter\nclicks_total{reason=""} 2.0\n'
    page = merged([text, text, ""], [0, 3, 0]).decode()
    assert page.count("# TYPE clicks_total counter") == 1
    assert 'clicks_total{reason="",worker="0"} 2.0' in page
    assert 'clicks_total{reason="",worker="1"} 2.0' in page
    assert 'clickdam_worker_up{worker="2"} 0.0' in page
    assert 'clickdam_worker_restarts_total{worker="1"} 3.0' in page
